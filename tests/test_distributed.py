"""DTensors whose rows are spread over two processes, or alike in both, beside PyTorch in float64 in one process."""

import pytest
import torch
import torch.nn.functional as F
from processes import ONE_GRAPH, Cases, collectives, failures_of, of_gradient
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel

import crossent
import crossent.nn as nn

PROCESSES = 2
CASES = Cases()


def tensors(rows=7, classes=10, features=6):
    """More rows in the first process than in the second, and most of the ignored ones there."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[:2] = -100
    return {
        "logits": torch.randn(rows, classes, generator=generator),
        "labels": labels,
        "probabilities": torch.rand(rows, classes, generator=generator).softmax(1),
        "weight": torch.rand(classes, generator=generator) + 0.1,
        "sample_weight": torch.rand(rows, generator=generator) + 0.1,
        "hidden": torch.randn(rows, features, generator=generator),
        "matrix": torch.randn(classes, features, generator=generator),
        "bias": torch.randn(classes, generator=generator),
    }


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread(mesh, tensor, *placements):
    return distribute_tensor(tensor.detach().clone(), mesh, placements)


def close(ours, exact, tolerance=2e-6):
    torch.testing.assert_close(whole(ours).detach().double(), exact.detach().double(), rtol=tolerance, atol=tolerance)


def compare(call, exact, found, tolerance=2e-6):
    """Value and gradients of `call(**found)` and `exact(**found in float64)`, upstream 1 to 2."""
    exact_found = {name: whole(t).detach().double() for name, t in found.items() if t.is_floating_point()}
    exact_found = {name: t.requires_grad_(found[name].requires_grad) for name, t in exact_found.items()}
    exact_found |= {name: whole(t) for name, t in found.items() if not t.is_floating_point()}
    loss, expected = call(**found), exact(**exact_found)
    close(loss, expected, tolerance)
    above = torch.linspace(1, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    expected.backward(above)
    if isinstance(loss, DTensor):
        placed = distribute_tensor(above.to(loss.dtype), loss.device_mesh, loss.placements)
        (loss * placed).sum().backward()
    for name, tensor in found.items():
        if tensor.requires_grad:
            assert tensor.grad.dtype == tensor.dtype
            if isinstance(tensor, DTensor):
                placed = tensor.grad.placements
                assert placed == tensor.placements or placed == of_gradient(tensor), (name, placed)
            close(tensor.grad, exact_found[name].grad, tolerance)
    return loss


def exact_loss(
    logits, labels=None, weight=None, sample_weight=None, probabilities=None, reduction="mean", logged=False
):
    """Written out, in operations that PyTorch differentiates by all of these."""
    if probabilities is not None:
        log_p = logits.log_softmax(1)
        losses = -(probabilities * log_p * (1.0 if weight is None else weight)).sum(1)
        counts = torch.ones_like(losses)
    else:
        log_p, kept = logits if logged else logits.log_softmax(1), labels != -100
        counts = torch.where(kept, 1.0 if weight is None else weight[labels.clamp(0)], 0.0).double()
        losses = -counts * log_p.gather(1, labels.clamp(0)[:, None])[:, 0]
    if sample_weight is not None:
        losses, counts = losses * sample_weight, counts * sample_weight
    return losses if reduction == "none" else losses.sum() / (counts.sum() if reduction == "mean" else 1.0)


def layouts(mesh):
    return [Shard(0)], [Replicate()]


@CASES.add
def losses_of_rows(mesh):
    for placements in layouts(mesh):
        for names in (("labels",), ("labels", "weight"), ("labels", "weight", "sample_weight"),
                      ("probabilities", "sample_weight")):  # fmt: skip
            for reduction in ("mean", "sum", "none"):
                for function in (crossent.cross_entropy, crossent.nll_loss):
                    logged = function is crossent.nll_loss
                    if logged and "probabilities" in names:
                        continue
                    for differentiated in (("logits",), ("logits", "weight", "sample_weight", "probabilities")):
                        found = {name: tensors()[name] for name in ("logits", *names)}
                        found = {
                            name: spread(mesh, value, *([Replicate()] if name == "weight" else placements))
                            .requires_grad_(name in differentiated) for name, value in found.items()
                        }  # fmt: skip

                        def call(logits, labels=None, probabilities=None, weight=None, sample_weight=None):
                            target = labels if probabilities is None else probabilities
                            return function(logits, target, weight, sample_weight=sample_weight, reduction=reduction)  # noqa: B023

                        def exact(**exact_found):
                            return exact_loss(**exact_found, reduction=reduction, logged=logged)  # noqa: B023

                        loss = compare(call, exact, found)
                        assert list(loss.placements) == ([Replicate()] if reduction != "none" else placements)


@CASES.add
def a_mean_is_one_number_however_it_is_read(mesh):
    found = tensors()
    loss = crossent.cross_entropy(*(spread(mesh, found[name], Shard(0)) for name in ("logits", "labels")))
    exact = float(F.cross_entropy(found["logits"].double(), found["labels"]))
    for value in (float(loss), loss.item(), float(loss.to_local()), float(loss.full_tensor())):
        assert abs(value - exact) < 1e-6


@CASES.add
def other_arguments_where_they_are(mesh):
    """Plain ones are the whole; others are brought to the input's rows; sums still to be made are made."""
    found = tensors()
    exact = exact_loss(found["logits"].double(), found["labels"], found["weight"].double())
    logits = spread(mesh, found["logits"], Shard(0))
    for labels in (
        found["labels"],
        spread(mesh, found["labels"], Replicate()),
        spread(mesh, found["labels"], Shard(0)),
    ):
        for weight in (found["weight"], spread(mesh, found["weight"], Shard(0))):
            close(crossent.cross_entropy(logits, labels, weight), exact)
    partial = DTensor.from_local(found["logits"] / PROCESSES, mesh, [Partial()])
    close(crossent.cross_entropy(partial, found["labels"], found["weight"]), exact)
    close(crossent.cross_entropy(logits, found["labels"], denominator=spread(mesh, torch.tensor(4.0), Replicate())),
          exact_loss(found["logits"].double(), found["labels"], reduction="sum") / 4)  # fmt: skip
    module = nn.CrossEntropyLoss(weight=found["weight"])
    close(module(logits, spread(mesh, found["labels"], Shard(0))), exact)
    loss, gradient = crossent.value_and_grad(crossent.cross_entropy)(logits, found["labels"], found["weight"])
    close(loss, exact)
    leaf = found["logits"].double().requires_grad_()
    exact_loss(leaf, found["labels"], found["weight"].double()).backward()
    close(gradient, leaf.grad)
    mask = torch.arange(7) % 2 == 0
    sequence = spread(mesh, found["logits"].reshape(7, 1, 10).expand(7, 3, 10), Shard(0))
    tokens = found["labels"][:, None].expand(7, 3)
    close(crossent.cross_entropy(sequence, tokens, dim=-1, sample_weight=mask[:, None]),
          exact_loss(found["logits"].double()[mask], found["labels"][mask]))  # fmt: skip


@CASES.add
def images(mesh):
    """Rows are spread along an axis after the classes, and over two axes of processes."""
    logits = torch.randn(3, 10, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(10, (3, 5), generator=torch.Generator().manual_seed(2))
    grid = init_device_mesh("cpu", (PROCESSES, 1))
    for on, placements, of_labels in (
        (mesh, [Shard(2)], [Shard(1)]), (grid, [Shard(0), Shard(2)], [Shard(0), Shard(1)]),
        (grid, [Replicate(), Shard(0)], [Replicate(), Shard(0)]),
        (grid, [Replicate(), Replicate()], [Replicate(), Replicate()]),
    ):  # fmt: skip
        for reduction in ("mean", "none"):
            found = {
                "input": spread(on, logits, *placements).requires_grad_(),
                "target": spread(on, labels, *of_labels),
            }
            loss = compare(
                lambda **k: crossent.cross_entropy(**k, reduction=reduction),  # noqa: B023
                lambda **k: F.cross_entropy(**k, reduction=reduction),  # noqa: B023
                found,
            )
            if reduction == "none":
                assert list(loss.placements) == of_labels and loss.shape == labels.shape


@CASES.add
def no_rows_in_one_process(mesh):
    found = {"input": spread(mesh, tensors()["logits"][2:3], Shard(0)).requires_grad_()}
    found["target"] = spread(mesh, tensors()["labels"][2:3], Shard(0))
    compare(crossent.cross_entropy, F.cross_entropy, found)
    all_ignored = crossent.cross_entropy(found["input"], torch.full((1,), -100))
    assert whole(all_ignored).isnan()


@CASES.add
def sixteen_bits(mesh):
    """The parts are summed up before they are rounded."""
    found = tensors(rows=64)
    logits = found["logits"].bfloat16()
    exact = F.cross_entropy(logits.double(), found["labels"])
    for options, dtype in (({}, torch.bfloat16), ({"loss_dtype": torch.float32}, torch.float32)):
        loss = crossent.cross_entropy(spread(mesh, logits, Shard(0)), found["labels"], **options)
        assert loss.dtype is dtype
        if dtype is torch.bfloat16:
            assert whole(loss) == exact.to(dtype)
        close(loss, exact, 4e-3 if dtype is torch.bfloat16 else 1e-6)
    probabilities = spread(mesh, found["probabilities"], Shard(0))
    assert crossent.cross_entropy(spread(mesh, logits, Shard(0)), probabilities).dtype is torch.float32


@CASES.add
def heads(mesh):
    for placements in layouts(mesh):
        for reduction in ("mean", "sum", "none"):
            found = {
                name: tensors()[name] for name in ("hidden", "matrix", "labels", "bias", "weight", "sample_weight")
            }
            shared = ("matrix", "bias", "weight")
            found = {
                name: spread(mesh, value, *([Replicate()] if name in shared else placements))
                for name, value in found.items()
            }
            for name in ("hidden", "matrix", "bias"):
                found[name].requires_grad_()

            def call(hidden, matrix, labels, bias, weight, sample_weight):
                return crossent.linear_cross_entropy(
                    hidden, matrix, labels, linear_bias=bias, weight=weight, sample_weight=sample_weight,
                    reduction=reduction,  # noqa: B023
                )  # fmt: skip

            def exact(hidden, matrix, labels, bias, **others):
                return exact_loss(F.linear(hidden, matrix, bias), labels, **others, reduction=reduction)  # noqa: B023

            compare(call, exact, found, 5e-6)
    # The weight of a plain module, whose gradient is that of all rows.
    found = tensors()
    head = nn.LinearCrossEntropyLoss(6, 10)
    head.linear.weight.data.copy_(found["matrix"])
    head(spread(mesh, found["hidden"], Shard(0)), spread(mesh, found["labels"], Shard(0))).backward()
    leaf = found["matrix"].double().requires_grad_()
    F.cross_entropy(found["hidden"].double() @ leaf.T, found["labels"]).backward()
    close(head.linear.weight.grad, leaf.grad)


@CASES.add
def heads_of_sequences(mesh):
    """Shifted, with sparse targets, along the batch."""
    generator = torch.Generator().manual_seed(3)
    hidden, tokens = torch.randn(3, 5, 6, generator=generator), torch.randint(10, (3, 5), generator=generator)
    matrix = tensors()["matrix"]
    x, labels = spread(mesh, hidden, Shard(0)), spread(mesh, tokens, Shard(0))
    logits = F.linear(hidden.double(), matrix.double())
    shifted = F.cross_entropy(logits[:, :-1].movedim(-1, 1), tokens[:, 1:], reduction="none")
    for reduction, exact in (("none", shifted), ("mean", shifted.mean())):
        loss = crossent.linear_cross_entropy(x, matrix, labels, shift=1, reduction=reduction)
        assert loss.shape == exact.shape
        close(loss, exact)
    classes, probs = tokens[..., None], torch.full((3, 5, 1), 0.5)
    sparse = crossent.SparseTarget(spread(mesh, classes, Shard(0)), spread(mesh, probs, Shard(0)))
    close(crossent.linear_cross_entropy(x, matrix, sparse),
          0.5 * F.cross_entropy(logits.movedim(-1, 1), tokens))  # fmt: skip
    time = spread(mesh, hidden, Shard(1))
    close(crossent.linear_cross_entropy(time, matrix, labels), F.cross_entropy(logits.movedim(-1, 1), tokens))
    with pytest.raises(ValueError, match=r"must not be sharded along time, axis 1, where a shift of 1"):
        crossent.linear_cross_entropy(time, matrix, labels, shift=1)


@CASES.add
def statistics(mesh):
    found = tensors()
    labels = spread(mesh, found["labels"], Shard(0))
    exact_stats = crossent.prediction_stats(found["logits"].double(), found["labels"])
    for axis, placements in ((0, [Shard(0)]), (1, [Replicate()])):  # classes that are spread are brought together
        for ours, exact in zip(
            crossent.prediction_stats(spread(mesh, found["logits"], Shard(axis)), labels), exact_stats
        ):
            assert list(ours.placements) == placements and ours.shape == labels.shape
            close(ours, exact)
    hidden = spread(mesh, found["hidden"], Shard(0)).requires_grad_()
    ours = crossent.linear_token_stats(hidden, found["matrix"], labels)
    leaf = found["hidden"].double().requires_grad_()
    exact = crossent.linear_token_stats(leaf, found["matrix"].double(), found["labels"])
    for one, other in zip(ours, exact):
        close(one, other)
    ours.lse.sum().backward()
    exact.lse.sum().backward()
    close(hidden.grad, leaf.grad)


@CASES.add
def softmaxes(mesh):
    """Results are placed as the logits are, under `loss_parallel` too, whose own is not right."""
    logits, above = tensors()["logits"], torch.rand(7, 10, generator=torch.Generator().manual_seed(4))
    for name in ("softmax", "log_softmax"):
        for placement in (Shard(0), Shard(1), Replicate()):
            for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 8e-3)):
                x = spread(mesh, logits.to(dtype), placement).requires_grad_()
                leaf = logits.to(dtype).double().requires_grad_()
                exact = getattr(F, name)(leaf, 1)
                exact.backward(above.double())
                ours = getattr(crossent, name)(x, 1)
                assert ours.dtype is dtype and list(ours.placements) == [placement]
                close(ours, exact, tolerance)
                (ours * spread(mesh, above.to(dtype), *ours.placements)).sum().backward()
                assert list(x.grad.placements) == [placement]
                close(x.grad, leaf.grad, 4 * tolerance)
    with loss_parallel():
        x = spread(mesh, logits, Shard(1)).requires_grad_()
        crossent.log_softmax(x, 1).full_tensor().backward(above)
    leaf = logits.double().requires_grad_()
    F.log_softmax(leaf, 1).backward(above.double())
    close(x.grad, leaf.grad)


@CASES.add
def refusals(mesh):
    found = tensors()
    rows = spread(mesh, found["logits"], Shard(0))
    hidden, matrix = spread(mesh, found["hidden"], Shard(0)), spread(mesh, found["matrix"], Shard(1))
    for function in (crossent.linear_cross_entropy, crossent.linear_token_stats):
        for way in (function, lambda *call: crossent.plan(function, *call)):  # noqa: B023
            with pytest.raises(ValueError, match="linear_weight must be replicated, or sharded along its classes"):
                way(hidden, matrix, found["labels"])
            with pytest.raises(ValueError, match="input must not be sharded along its features, axis 1"):
                way(spread(mesh, found["hidden"], Shard(1)), found["matrix"], found["labels"])
            with pytest.raises(TypeError, match="linear_weight must be a plain tensor like input, got a DTensor"):
                way(found["hidden"], matrix, found["labels"])
    for name in ("target", "weight", "sample_weight", "denominator"):
        given = {"target": found["labels"], name: spread(mesh, found["labels"], Shard(0))}
        if name == "denominator":
            given["denominator"] = spread(mesh, torch.tensor(1.0), Replicate())
        for way in (crossent.cross_entropy, lambda *call, **more: crossent.plan(crossent.cross_entropy, *call, **more)):
            with pytest.raises(TypeError, match=f"{name} must be a plain tensor like input, got a DTensor"):
                way(found["logits"], **given)
    with pytest.raises(ValueError, match=r"target has the wrong shape.*expected \(7,\) for labels"):
        crossent.cross_entropy(rows, found["labels"][:4])
    with pytest.raises(TypeError, match="target must be a tensor like input, got ndarray"):
        crossent.cross_entropy(rows, found["labels"].numpy())
    with pytest.raises(ValueError, match="weight must be on the device of input, cpu, got meta"):
        crossent.cross_entropy(rows, found["labels"], found["weight"].to("meta"))


@CASES.add
def a_bad_label_in_one_process(mesh):
    """Raises in all, so that none waits for ever or gets a number."""
    found = tensors()
    found["labels"][-1] = 99
    labels = spread(mesh, found["labels"], Shard(0))
    logits, hidden = (spread(mesh, found[name], Shard(0)) for name in ("logits", "hidden"))
    calls = [lambda: crossent.cross_entropy(logits, labels)]
    calls += [lambda: crossent.cross_entropy(logits, labels, reduction="sum")]
    calls += [lambda: crossent.linear_cross_entropy(hidden, found["matrix"], labels)]
    for call in calls:
        with pytest.raises(IndexError, match=f"rank {PROCESSES - 1}: Target 99 at position 2 is out of bounds"):
            call()


HEAD = {"hidden": Replicate(), "matrix": Shard(0)}
REFUSED = "torch.func and forward mode take no DTensors: differentiate them by torch.autograd, or"
LOSSES_OF_ROWS = {
    "cross_entropy": lambda given: crossent.cross_entropy(given["logits"], given["labels"], reduction="none"),
    "with weights": lambda given: crossent.cross_entropy(
        given["logits"], given["labels"], given["weight"], sample_weight=given["sample_weight"], reduction="none"
    ),
    "nll_loss": lambda given: crossent.nll_loss(given["logits"], given["labels"], reduction="none"),
    "head": lambda given: crossent.linear_cross_entropy(
        given["hidden"], given["matrix"], given["labels"], reduction="none"
    ),
    "prediction_stats": lambda given: crossent.prediction_stats(given["logits"], given["labels"]),
    "linear_token_stats": lambda given: crossent.linear_token_stats(given["hidden"], given["matrix"], given["labels"]),
    "module": lambda given: nn.CrossEntropyLoss(reduction="none")(given["logits"], given["labels"]),
}  # fmt: skip


def rows_spread(mesh, labels):
    found = tensors() | {"labels": labels}
    return {
        name: spread(mesh, value, *([Replicate()] * (mesh.ndim - 1)), Shard(0))
        if name in ("logits", "labels", "hidden", "sample_weight")
        else value
        for name, value in found.items()
    }


@CASES.add
def a_bad_label_among_losses_of_rows(mesh):
    """Raises in all though nothing is summed, and they go on together."""
    good = rows_spread(mesh, tensors()["labels"])
    wrong = tensors()["labels"]
    wrong[-1] = 99
    bad = rows_spread(mesh, wrong)
    for name, call in LOSSES_OF_ROWS.items():
        with pytest.raises(IndexError, match=f"rank {PROCESSES - 1}: Target 99 at position 2 is out of bounds"):
            call(bad)
        found = call(good)
        first = found[0] if isinstance(found, tuple) else found
        close(first[:2], torch.zeros(2)), name
    grid = init_device_mesh("cpu", (1, PROCESSES))
    with pytest.raises(IndexError, match=f"rank {PROCESSES - 1}: Target 99 at position 2"):
        LOSSES_OF_ROWS["head"](rows_spread(grid, wrong))


@CASES.add
def what_losses_of_rows_send(mesh):
    """One number, if rows are spread over more than one process and nothing else is summed over them."""
    for name, call in LOSSES_OF_ROWS.items():
        with collectives() as sent:
            call(rows_spread(mesh, tensors()["labels"]))
        assert [(kind, shape) for kind, shape in sent if kind == "all_reduce"] == [("all_reduce", [])], (name, sent)
        alone = {key: whole(value) for key, value in rows_spread(mesh, tensors()["labels"]).items()}
        alone = {key: spread(mesh, value, Replicate()) for key, value in alone.items()}
        with collectives() as sent:
            call(alone)
        assert not sent, (name, sent)
    given = rows_spread(mesh, tensors()["labels"])
    for reduction, count in (("sum", 1), ("mean", 2)):
        with collectives() as sent:
            crossent.cross_entropy(given["logits"], given["labels"], reduction=reduction)
        assert sent == [("all_reduce", [])] * count


@CASES.add
def in_a_graph(mesh):
    """Losses of rows send nothing."""
    if not ONE_GRAPH:
        return
    given = rows_spread(mesh, tensors()["labels"])
    compiled = torch.compile(crossent.cross_entropy, fullgraph=True, backend="aot_eager")
    exact = exact_loss(tensors()["logits"].double(), tensors()["labels"], reduction="none")
    for _ in range(2):
        with collectives() as sent:
            found = compiled(given["logits"], given["labels"], reduction="none")
        close(found, exact)
    assert not sent


@CASES.add
def transforms(mesh):
    """torch.func and forward mode have softmaxes of DTensors; losses of them are refused."""
    found, labels = tensors(), tensors()["labels"]
    logits, above = found["logits"].double(), found["probabilities"].double()
    hidden, matrix = (spread(mesh, found[name].double(), placed) for name, placed in HEAD.items())
    samples = found["sample_weight"].double()
    for placement in (Shard(0), Shard(1), Replicate()):
        x, d = spread(mesh, logits, placement), spread(mesh, above, placement)
        both = torch.stack([x, d])
        for name in ("softmax", "log_softmax") if torch.__version__ >= "2.10" else ():
            ours, exact = getattr(crossent, name), getattr(F, name)
            gradient = torch.func.grad(lambda z: (exact(z, 1) * above).sum())(logits)  # noqa: B023
            close(torch.func.grad(lambda z: (ours(z, 1) * d).sum())(x), gradient, 1e-12)  # noqa: B023
            mapped = torch.vmap(lambda z: ours(z, 1))(both)  # noqa: B023
            close(mapped, torch.stack([exact(logits, 1), exact(above, 1)]), 1e-12)
        for call in (
            lambda z: crossent.cross_entropy(z, labels),
            lambda z: crossent.nll_loss(z, labels),
            lambda z: crossent.prediction_stats(z, labels).logprob.sum(),
        ):
            for transform, given in ((torch.func.grad, x), (torch.vmap, both)):
                with pytest.raises(TypeError, match=REFUSED):
                    transform(call)(given)
        with pytest.raises(TypeError, match=REFUSED):
            torch.func.grad(lambda s: crossent.cross_entropy(x, labels, sample_weight=s).to_local())(samples)  # noqa: B023
        with pytest.raises(TypeError, match=REFUSED), forward_ad.dual_level():
            crossent.cross_entropy(x, labels, sample_weight=forward_ad.make_dual(samples, samples))
        with forward_ad.dual_level():
            close(crossent.cross_entropy(x, labels), exact_loss(logits, labels), 1e-12)
    for function in (crossent.linear_cross_entropy, lambda *call: crossent.linear_token_stats(*call).lse.sum()):
        with pytest.raises(TypeError, match=REFUSED):
            torch.func.grad(lambda z: function(z, matrix, labels))(hidden)  # noqa: B023


@CASES.add
def plans(mesh):
    found = tensors(rows=8)
    logits, labels = spread(mesh, found["logits"], Shard(0)), spread(mesh, found["labels"], Shard(0))
    hidden = spread(mesh, found["hidden"], Shard(0))
    calls = [
        (crossent.cross_entropy, logits, labels), (crossent.cross_entropy, logits, found["labels"]),
        (crossent.cross_entropy, logits, spread(mesh, found["labels"], Replicate())),
        (crossent.nll_loss, logits, labels, found["weight"]), (crossent.prediction_stats, logits, labels),
        (crossent.softmax, spread(mesh, found["logits"].repeat(1, 10), Shard(0)), 1),
        (crossent.linear_cross_entropy, hidden, found["matrix"], labels),
        (crossent.linear_token_stats, hidden, spread(mesh, found["matrix"], Replicate()), labels),
    ]  # fmt: skip
    for call in calls:
        planned = crossent.plan(*call)
        assert planned.path == "kernels", call
        assert planned.reasons[0] == "every process computes the rows that it has"
    said = "its rows are spread over 2 processes, which send "
    error = said + "8 bytes, by which an error in one is raised in all"
    for call, reduction, sent in (
        (crossent.cross_entropy, "none", error),
        (crossent.nll_loss, "none", error),
        (crossent.cross_entropy, "sum", said + "8 bytes, of which the loss is the sum"),
        (crossent.cross_entropy, "mean", said + "16 bytes, whose sums are the loss and what it is divided by"),
    ):
        assert crossent.plan(call, logits, labels, reduction=reduction).reasons[1] == sent
    assert crossent.plan(crossent.prediction_stats, logits, labels).reasons[1] == error
    assert crossent.plan(crossent.linear_token_stats, hidden, found["matrix"], labels).reasons[1] == error
    alike = spread(mesh, found["logits"], Replicate())
    assert not any("send" in one for one in crossent.plan(crossent.prediction_stats, alike, labels).reasons)
    classes = spread(mesh, found["logits"], Shard(1))
    planned = crossent.plan(crossent.cross_entropy, classes, labels, found["weight"])
    assert planned.path == "kernels in two stages"
    assert planned.reasons[1] == "its classes are spread over 2 processes, which send 16 bytes a row, once"
    planned = crossent.plan(crossent.nll_loss, classes, labels)
    assert planned.reasons[1] == "its classes are spread over 2 processes, whose losses are added up"
    assert crossent.plan(crossent.prediction_stats, classes, labels).path == "plain operations"
    # Of 8 rows each has 4; and it is planned without a word to the others.
    if mesh.get_rank() == 0:
        assert "4 rows" in str(crossent.plan(crossent.linear_cross_entropy, hidden, found["matrix"], found["labels"]))


@CASES.add
def explained_as_a_whole(mesh):
    found = tensors()
    call = [spread(mesh, found[name], Shard(0)) for name in ("logits", "labels")]
    explained = crossent.explain(*call, spread(mesh, found["weight"], Replicate()))
    exact = exact_loss(found["logits"].double(), found["labels"], found["weight"].double())
    assert explained.shape == (7, 10) and abs(explained.result - float(exact)) < 1e-6
    assert all(check.passed for check in explained.checks)


@pytest.fixture(scope="module")
def failures():
    return failures_of(__name__, PROCESSES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_two_processes(name, failures):
    assert name not in failures, failures.get(name)
