"""`crossent.watch`: its numbers, what it sees, that training is the same with it, and what it finds to be wrong."""

import json
import math
import re
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import browser
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import get_gradient_edge

import crossent
from benchmarks.watch import OWN
from crossent import watch
from crossent.frontends.torch import router
from crossent.tools.watch import looks, seen

CLASSES, FEATURES = 5, 4
LIBRARY = str(Path(crossent.__file__).parent)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 6), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(6, CLASSES)
    )


def batch(rows=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    labels[::5] = -100
    return torch.randn(rows, FEATURES, generator=generator), labels


def train(model, loss_of=F.cross_entropy, steps=3, rate=0.5):
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=rate), []
    for step in range(steps):
        x, labels = batch(seed=step)
        loss = loss_of(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_hand(logits, labels, weight=None, smoothing=0.0, cap=None, z_loss=0.0):
    """In float64: of the rows that count the losses -log p[y], p, and the gradients of their losses at the logits."""
    x = logits.detach().double().numpy()
    keep = labels.numpy() != -100
    x, y = x[keep], labels.numpy()[keep]
    z = x if cap is None else cap * np.tanh(x / cap)
    lse = np.log(np.exp(z).sum(1, keepdims=True))
    p = np.exp(z - lse)
    w = np.ones(x.shape[1]) if weight is None else weight.double().numpy()
    q = w * ((1 - smoothing) * np.eye(x.shape[1])[y] + smoothing / x.shape[1])
    gradient = q.sum(1, keepdims=True) * (1 + 2 * z_loss * lse) * p - q
    gradient = gradient if cap is None else gradient * (1 - np.tanh(x / cap) ** 2)
    return y, -np.log(p[np.arange(len(y)), y]), p, gradient


WEIGHT = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
CALLS = {
    "torch": (lambda x, y: F.cross_entropy(x, y), {}),
    "torch's module": (torch.nn.CrossEntropyLoss(weight=WEIGHT), {"weight": WEIGHT}),
    "torch's nll_loss": (lambda x, y: F.nll_loss(x.log_softmax(1), y), {}),
    "crossent": (lambda x, y: crossent.cross_entropy(x, y), {}),
    "sum": (lambda x, y: crossent.cross_entropy(x, y, reduction="sum"), {}),
    "none": (lambda x, y: F.cross_entropy(x, y, reduction="none").sum(), {}),
    "denominator": (lambda x, y: crossent.cross_entropy(x, y, denominator=64), {}),
    "smoothing": (lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1), {"smoothing": 0.1}),
    "options": (
        lambda x, y: crossent.cross_entropy(x, y, softcap=2.0, z_loss=0.1), {"cap": 2.0, "z_loss": 0.1}
    ),
    "nll_loss": (lambda x, y: crossent.nll_loss(x.log_softmax(1), y), {}),
    "images": (lambda x, y: crossent.cross_entropy(x.T.reshape(1, CLASSES, 5, 8), y.reshape(1, 5, 8)), {}),
    "head": (lambda x, y: crossent.linear_cross_entropy(x, torch.eye(CLASSES), y), {}),
    "shifted head": (
        lambda x, y: crossent.linear_cross_entropy(
            F.pad(x, (0, 0, 0, 1))[None], torch.eye(CLASSES), F.pad(y, (1, 0))[None], shift=1
        ),
        {},
    ),
    **({
        "torch's chunked head": (
            lambda x, y: F.linear_cross_entropy(x, torch.eye(CLASSES), y, options=torch.nn.LinearCrossEntropyOptions()),
            {},
        ),
        "torch's chunked rows": (
            lambda x, y: F.linear_cross_entropy(
                x, torch.eye(CLASSES), y, reduction="none", options=torch.nn.LinearCrossEntropyOptions()
            ).sum(),
            {},
        ),
    } if hasattr(torch.nn, "LinearCrossEntropyOptions") else {}),
}  # fmt: skip


@pytest.fixture
def no_page(monkeypatch):
    """Which takes longer than the rest."""
    monkeypatch.setattr("crossent.tools.watch.page.write", lambda path: None)


SUMS = {"sum": 32, "none": 32, "torch's chunked rows": 32, "denominator": 0.5}  # over the mean
COMPILED = ("denominator", "shifted head")


@pytest.mark.parametrize(
    ("case", "backend"), [(case, "") for case in CALLS] + [(case, "aot_eager") for case in COMPILED]
)
def test_numbers_are_those_of_the_formula(case, backend, model, tmp_path, no_page):
    loss_of, options = CALLS[case]
    if backend:
        torch._dynamo.reset()
        loss_of = torch.compile(loss_of, backend=backend, fullgraph=True)
    model.eval()[2] = torch.nn.Identity()
    model.train()
    x, labels = batch(40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    logits = model(x)
    y, nll, p, gradient = by_hand(logits, labels, **options)
    with watch(model, tmp_path / "run.jsonl", every=1):
        loss = loss_of(model(x), labels)
        loss.backward()
        optimizer.step()
    start, step, classes, end = lines(tmp_path / "run.jsonl")
    assert [line["event"] for line in (start, step, classes, end)] == ["start", "step", "classes", "end"]
    ((name, said),) = step["losses"].items()
    assert name.endswith("of 5 classes") and said["rows"] == len(y) == 32
    assert said["loss"] == pytest.approx(loss.item() / SUMS.get(case, 1), rel=1e-6)
    assert said["ignored"] == pytest.approx(0.2)
    norm = math.sqrt(sum(parameter.grad.double().square().sum() for parameter in model.parameters()))
    assert step["gradient"] == pytest.approx(norm, rel=1e-5)
    found = said["looked"]
    top, confidence = p.argmax(1), p.max(1)
    assert found["rows"] == len(y) and found["nll"] == pytest.approx(nll.mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((top == y).mean())
    assert found["confidence"] == pytest.approx(confidence.mean(), rel=1e-5)
    at_logits = math.sqrt((gradient**2).sum(1).mean())
    assert found["gradient_at_logits"] == pytest.approx(at_logits, rel=1e-5)
    assert classes["class"] == sorted(set(y.tolist()))
    for c, rows, right, total in zip(classes["class"], classes["rows"], classes["right"], classes["nll"]):
        assert (rows, right) == ((y == c).sum(), ((top == y) & (y == c)).sum())
        assert total == pytest.approx(nll[y == c].sum(), rel=1e-5)
    place = np.ceil(confidence * looks.BINS).astype(int) - 1
    for i, (rows, right, sure) in enumerate(zip(*classes["bins"])):
        assert (rows, right) == ((place == i).sum(), ((top == y) & (place == i)).sum())
        assert sure == pytest.approx(confidence[place == i].sum(), rel=1e-5)


def test_a_look_is_at_some_rows_of_each_part(monkeypatch):
    monkeypatch.setattr(looks, "_NUMBERS", 0)
    logits = torch.zeros(1000, 3).requires_grad_()
    labels = torch.arange(1000) % 3
    labels[500:] = -100
    arguments = {"input": logits, "target": labels, "ignore_index": -100}
    generator = np.random.default_rng(0)
    met = [looks.look(seen.Loss(crossent.cross_entropy, arguments, logits.sum()), generator) for _ in range(2)]
    labels = [rows["label"] for rows, _ in met]
    assert [len(found) for found in labels] == [16, 16] and (labels[0] != labels[1]).any()
    chosen = looks._chosen(generator, 500, 16)
    assert (chosen // (500 / 16)).long().tolist() == list(range(16))


def test_training_is_the_same(model, tmp_path, no_page):
    """Losses, parameters, and the random numbers that follow."""
    found = []
    for watched in (False, True):
        torch.manual_seed(3)
        for module in model:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        if watched:
            with watch(model, tmp_path / "run.jsonl", every=1):
                losses = train(model)
        else:
            losses = train(model)
        found.append((losses, [p.detach().clone() for p in model.parameters()], torch.rand(3)))
    (losses, parameters, numbers), (losses_too, parameters_too, numbers_too) = found
    assert losses == losses_too and torch.equal(numbers, numbers_too)
    assert all(torch.equal(a, b) for a, b in zip(parameters, parameters_too))
    assert [line["step"] for line in lines(tmp_path / "run.jsonl") if line["event"] == "step"] == [1, 2, 3]


def test_nothing_is_in_the_way_but_while_somebody_watches(model, tmp_path, no_page):
    places = [(owner, name) for owner, name in seen._SITES]
    before = [getattr(owner, name) for owner, name in places]
    hooks = len(model._forward_pre_hooks)
    with pytest.raises(ZeroDivisionError), watch(model, tmp_path / "run.jsonl") as outer, watch(model) as inner:
        assert all(getattr(owner, name) is not original for (owner, name), original in zip(places, before))
        train(model, steps=1)
        raise ZeroDivisionError
    assert inner.steps == outer.steps == 1 and lines(tmp_path / "run.jsonl")[-1]["stopped"] == "ZeroDivisionError"
    assert [getattr(owner, name) for owner, name in places] == before and len(model._forward_pre_hooks) == hooks
    assert router.told is None


def test_evaluation_is_not_seen(model, tmp_path, no_page):
    x, labels = batch()

    def with_evaluation(logits, target):
        model.eval()
        F.cross_entropy(model(x), labels)
        model.train()
        with torch.no_grad():
            crossent.cross_entropy(model(x) * math.inf, labels)
        return F.cross_entropy(logits, target)

    with watch(model, tmp_path / "run.jsonl", every=1):
        train(model, with_evaluation, steps=2)
    steps = [line["losses"] for line in lines(tmp_path / "run.jsonl") if line["event"] == "step"]
    assert [list(losses) for losses in steps] == [["cross_entropy of 5 classes"]] * 2
    assert [losses["cross_entropy of 5 classes"]["rows"] for losses in steps] == [9, 9]


def test_several_losses_and_several_batches_a_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    with watch(model) as watched:
        for seed in range(2):
            x, labels = batch(rows=12 + 8 * seed, seed=seed)
            logits = model(x)
            values.append(
                [F.cross_entropy(logits, labels), F.cross_entropy(-logits, labels), F.nll_loss(logits, labels)]
            )
            sum(values[-1]).backward()
        optimizer.step()
        optimizer.step()  # with nothing new
    assert watched.steps == watched.last["step"] == 1
    names = ["cross_entropy of 5 classes", "cross_entropy of 5 classes (2)", "nll_loss of 5 classes"]
    assert list(watched.last["losses"]) == names
    for said, first, second in zip(watched.last["losses"].values(), *values):
        assert said["rows"] == 9 + 16
        assert said["loss"] == pytest.approx((9 * first.item() + 16 * second.item()) / 25, rel=1e-6)


def in_a_checkpoint(model, x, labels, use_reentrant=False):
    loss_of = lambda z: F.cross_entropy(model(z), labels)  # noqa: E731
    return torch.utils.checkpoint.checkpoint(loss_of, x.requires_grad_(), use_reentrant=use_reentrant)


def in_two_checkpoints(model, x, labels, use_reentrant=False):
    inner = partial(in_a_checkpoint, model, labels=labels, use_reentrant=use_reentrant)
    return torch.utils.checkpoint.checkpoint(inner, x.requires_grad_(), use_reentrant=True)


def with_a_penalty(model, x, labels):
    loss = F.cross_entropy(model(x), labels)
    (gradient,) = torch.autograd.grad(loss, model[3].weight, create_graph=True)
    return loss + gradient.square().sum()


def after_evaluation(model, x, labels, loss_of=crossent.nll_loss):
    step = of_the_model(loss_of, model)
    with torch.no_grad():
        step(x, labels)
    return step(x, labels)


def in_a_compiled_checkpoint(model, x, labels):
    torch._dynamo.reset()
    loss_of = lambda z: crossent.cross_entropy(model(z), labels)  # noqa: E731
    again = partial(torch.utils.checkpoint.checkpoint, loss_of, use_reentrant=False)
    return torch.compile(again, backend="aot_eager", fullgraph=True)(x)


WAYS = {
    "compiled, after evaluation": after_evaluation,
    "compiled head, after evaluation": partial(
        after_evaluation, loss_of=lambda x, y: crossent.linear_cross_entropy(x, torch.eye(CLASSES), y)
    ),
    "compiled in a checkpoint": lambda model, x, labels: torch.utils.checkpoint.checkpoint(
        of_the_model(crossent.cross_entropy, model), x.requires_grad_(), labels, use_reentrant=False
    ),
    "in a compiled checkpoint": in_a_compiled_checkpoint,
    "in a checkpoint": in_a_checkpoint,
    "in a reentrant checkpoint": partial(in_a_checkpoint, use_reentrant=True),
    "in a checkpoint in a reentrant one": in_two_checkpoints,
    "in two reentrant checkpoints": partial(in_two_checkpoints, use_reentrant=True),
    "with a penalty": with_a_penalty,
    "beside a transform": lambda model, x, labels: (
        torch.func.grad(lambda z: F.cross_entropy(z, labels))(model(x)).sum() + F.cross_entropy(model(x), labels)
    ),
    "of one row": lambda model, x, labels: crossent.cross_entropy(model(x)[1], labels[1]),
    "of probabilities": lambda model, x, labels: F.cross_entropy(
        model(x), F.one_hot(labels % CLASSES, CLASSES).float()
    ),
    "of nothing": lambda model, x, labels: F.cross_entropy(model(x), labels * 0 - 100, reduction="sum"),
    "in 16 bits": lambda model, x, labels: F.cross_entropy(model(x).bfloat16(), labels),
    "written over": lambda model, x, labels: crossent.cross_entropy(model(x), labels, inplace_backward=True),
}


@pytest.mark.filterwarnings("ignore:Part of this training is computed")
@pytest.mark.parametrize("way", WAYS)
def test_each_loss_is_seen_once_and_no_other(way, model):
    if "reentrant" in way and not seen._KNOWS_HOOKS:
        pytest.skip("before PyTorch 2.8 it is told that such a loss is not seen")
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, every=1) as watched:
        loss = WAYS[way](model, *batch())
        loss.backward()
        norm = math.sqrt(sum(p.grad.double().square().sum() for p in model.parameters()))
        optimizer.step()
    ((_, said),) = watched.last["losses"].items()
    assert watched.last["gradient"] == pytest.approx(norm, rel=1e-5)
    assert said["rows"] == {"of one row": 1, "of probabilities": 12, "of nothing": 0}.get(way, 9)
    assert ("looked" in said) == (way not in ("of probabilities", "of nothing"))


def test_nothing_is_held_longer_than_by_the_loss(model):
    """Of logits: where no backward pass follows as long as the loss is there, else until that ends."""
    x, labels = batch()
    with watch(model) as watched:
        loss = F.cross_entropy(scaled := model(x) * 1.0, labels)
        held = weakref.ref(scaled)
        del scaled
        assert held() is not None
        loss.backward()
        assert held() is None and not watched._batches
        for _ in range(100):
            loss = F.cross_entropy(scaled := model(x) * 1.0, labels)
        held = weakref.ref(scaled)
        del scaled, loss
        assert held() is None and len(watched._batches) == 16 and len(watched._line) == 1


def test_the_gradient_of_other_losses_is_watched(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model) as watched:
        model(batch()[0]).square().mean().backward()
        with pytest.warns(UserWarning, match=f"{MISSED}outside of cross_entropy, nll_loss and linear_cross_entropy$"):
            optimizer.step()
        assert watched.last["losses"] == {} and watched.last["gradient"] > 0.0
        with pytest.raises(crossent.NonFiniteError) as raised:
            (model(batch()[0]) * math.inf).sum().backward()
            optimizer.step()
    assert raised.value.fault.kind == "gradient" and raised.value.fault.module == "3"
    assert raised.value.fault.explanation is None


def test_a_closure_is_watched(model):
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    x, labels = batch()

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        (loss + spoilt * model[0].weight[0, 0]).backward()
        return loss

    with watch(model) as watched:
        spoilt = 0.0
        optimizer.step(closure)
        assert watched.steps == 1
        spoilt = math.inf
        with pytest.raises(crossent.NonFiniteError) as raised:
            optimizer.step(closure)
    assert raised.value.fault.parameters == ("0.weight",)


class Ends(torch.nn.Module):
    """A model whose parts can be made to fail."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(FEATURES, FEATURES) for _ in range(3))
        self.scale = 1.0
        self.mask = torch.tensor([0.0, -math.inf, 0.0, 0.0])

    def forward(self, x, mask=None):
        x = self.second(self.first(x) * self.scale)
        return self.third(x)


FAULTS = {
    "a parameter": (lambda m: m.second.weight.data[1].fill_(math.nan), 1.0, "second", ("second.weight",)),
    "what it does itself": (lambda m: setattr(m, "scale", math.inf), 1.0, "", ()),
    "its inputs": (lambda m: None, math.nan, None, ()),
    "overflow": (lambda m: m.third.weight.data.fill_(3e38), 1e3, "third", ()),
}
SAID = {
    "a parameter": "in second (Linear)",
    "what it does itself": "between the modules in it",
    "its inputs": "inputs of the model",
    "overflow": "in third (Linear)",
}


@pytest.mark.parametrize("case", FAULTS)
def test_where_a_loss_first_became_not_finite(case, tmp_path, no_page):
    spoil, size, module, parameters = FAULTS[case]
    torch.manual_seed(0)
    model = Ends()
    spoil(model)
    x, labels = batch()
    with pytest.raises(FloatingPointError) as raised, watch(model, tmp_path / "run.jsonl", every=7):
        F.cross_entropy(model(x * size, mask=model.mask), labels % FEATURES)
    fault = raised.value.fault
    assert isinstance(raised.value, crossent.NonFiniteError)
    assert (fault.kind, fault.step, fault.module, fault.parameters) == ("loss", 1, module, parameters)
    assert SAID[case] in fault.sentence and "nan in the logits" not in fault.sentence.partition(".")[0]
    assert fault.explanation.faulty and fault.explanation.summary["rows"] == 12
    _, line, end = lines(tmp_path / "run.jsonl")
    assert line["event"] == "fault" and line["sentence"] == fault.sentence == str(raised.value)
    assert line["explanation"].startswith("cross_entropy: mean nan over 12 rows") and end["stopped"] == "NonFiniteError"


class Root(torch.nn.Module):
    """Whose derivative at 0 is infinite."""

    def forward(self, x):
        return (x * 0).sqrt()


@pytest.mark.parametrize(("faulty", "held"), [(0, 1000), (1, 1000), (1, 100)])
def test_where_a_gradient_first_became_not_finite(faulty, held, monkeypatch):
    """Of two batches of a step one is at fault, and clipping makes nan of all gradients."""
    monkeypatch.setattr("crossent.tools.watch.faults.HELD", held)  # bytes of logits
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(FEATURES, FEATURES), "b": torch.nn.Linear(FEATURES, FEATURES)})
    model["c"] = torch.nn.Linear(FEATURES, CLASSES)
    root = Root()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(crossent.NonFiniteError) as raised, watch(model):
        for number in range(2):
            x, labels = batch(8 + number, seed=number)
            hidden = model["b"](model["a"](x))
            hidden = root(hidden) if number == faulty else hidden
            F.cross_entropy(model["c"](hidden), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert all(p.grad.isnan().any() for p in model.parameters())
        optimizer.step()
    fault = raised.value.fault
    assert (fault.kind, fault.module) == ("gradient", "b")
    assert fault.parameters[:2] == ("b.weight", "b.bias") and "c.weight" not in fault.parameters
    assert held == 100 or fault.explanation.summary["rows"] == 8 + faulty
    assert ("MB are not held" in fault.sentence) == (held == 100)


def test_a_callback_is_told_once_and_training_goes_on(model):
    told = []
    model[3].weight.data.fill_(math.nan)
    with watch(model, on_fault=told.append) as watched:
        train(model, steps=3)
    assert [fault.module for fault in told] == ["3"] and watched.fault is told[0] and watched.steps == 3
    assert told[0].parameters == ("3.weight",)


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_a_scaler(model, fused, sharded, tmp_path, no_page, request):
    """Infinite ones, which it leaves out, are no fault and no step; of others the norm is told without the scale."""
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    kind, more = torch.amp.GradScaler, {}
    if sharded:
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler as kind

        more = {"process_group": request.getfixturevalue("process_group")}
    scaler = kind("cpu", init_scale=2.0**127 * 1.5, growth_interval=1000, **more)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    x, labels = batch()
    with watch(model, tmp_path / "run.jsonl") as watched:
        for scale in (None, 1024.0, 1.0):
            optimizer.zero_grad()
            for _ in range(2):  # batches of a step
                loss = F.cross_entropy(model(x), labels)
                scaler.scale(loss * (1e6 if scale is None else 1.0)).backward()
            norm = math.sqrt(sum(p.grad.double().square().sum() for p in model.parameters())) / scaler.get_scale()
            if not fused:
                scaler.unscale_(optimizer)
            if not sharded:  # processes may bring gradients together until the step, so that these count
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            scaler.step(optimizer)
            if scale is None:
                assert all(map(torch.equal, before, model.parameters())) and not watched.steps
            else:
                assert watched.last["gradient"] == pytest.approx(norm, rel=1e-5)
            scaler.update(scale)
    assert watched.fault is None
    steps = [line["losses"]["cross_entropy of 5 classes"] for line in lines(tmp_path / "run.jsonl")[1:-2]]
    assert [said["rows"] for said in steps] == [4 * 9, 2 * 9]


def test_looks_take_their_share_of_the_time(model, monkeypatch):
    """Half a second for a look, ten for a step: one look in ten steps."""
    clock, made = [0.0], []
    monkeypatch.setattr("crossent.tools.watch.time.perf_counter", lambda: clock[0])

    def slow(*arguments):
        clock[0] += 0.5
        made.append(watched.steps + 1)
        return looks.look(*arguments)

    monkeypatch.setattr("crossent.tools.watch.look", slow)

    def loss_of(logits, labels):
        clock[0] += 10.0
        return F.cross_entropy(logits, labels)

    with watch(model) as watched:
        train(model, loss_of, steps=30)
    assert made == [1, 2, 12, 22]
    made.clear()
    with watch(model) as watched:  # in one step all losses, and the next look is later
        train(model, lambda x, y: loss_of(x, y) + F.cross_entropy(-x, y) + F.nll_loss(x, y), steps=50)
    assert made == [1, 1, 1, 2, 2, 2, 32, 32, 32]


def test_calls_of_a_step_without_a_look(model):
    """Of Python, in the library: what every step costs, whatever the model."""
    places = []

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(LIBRARY):
            places.append(frame.f_code.co_name)

    with watch(model, every=1000):
        train(model, steps=1)
        sys.setprofile(profile)
        try:
            train(model, steps=1)
        finally:
            sys.setprofile(None)
    assert len(places) <= 60, places
    assert all(hasattr(watch, name) for name in OWN)  # whose time the benchmark measures


def test_compiled_models_are_followed(model):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with watch(compiled, every=1) as watched, watch(model):  # hooks outside of the graph, and inside
        train(compiled, steps=1)
        assert watched.last["losses"]["cross_entropy of 5 classes"]["looked"]["rows"] == 9
        model[3].weight.data.fill_(math.nan)
        with pytest.raises(crossent.NonFiniteError) as raised:
            train(compiled, steps=1)
    assert raised.value.fault.module == "3" and raised.value.fault.parameters == ("3.weight",)


def of_the_model(loss_of, model, **options):
    torch._dynamo.reset()
    return torch.compile(lambda x, y: loss_of(model(x), y), **{"backend": "aot_eager", "fullgraph": True} | options)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_compiled_losses_are_seen_and_nothing_is_compiled_again(backend, model, monkeypatch):
    """Where compiling comes before all else in the process, too."""
    monkeypatch.setattr("crossent._dispatch._frontends", {})
    step = of_the_model(crossent.cross_entropy, model, backend=backend)
    x, labels = batch()
    plain = step(x, labels)
    with torch._dynamo.config.patch(error_on_recompile=True):
        with watch(model), watch(model, every=1) as watched:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            for _ in range(2):
                loss = step(x, labels)
                loss.backward()
                optimizer.step()
                (said,) = watched.last["losses"].values()
                assert said["loss"] == pytest.approx(loss.item(), rel=1e-6) and said["looked"]["rows"] == 9
        step(x, labels)
    assert not any(watched._missed) and plain.isfinite()


def test_a_loss_of_compiled_code_that_is_not_finite(model):
    """Is explained before that code writes over it; for a gradient it is too late."""
    step, (x, labels) = of_the_model(crossent.cross_entropy, model), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(crossent.NonFiniteError, match="compiled code may have written over it") as raised:
        with watch(model):
            (step(x, labels) * math.inf).backward()
            optimizer.step()
    assert raised.value.fault.kind == "gradient" and raised.value.fault.explanation is None
    model[3].weight.data.fill_(math.nan)
    with pytest.raises(crossent.NonFiniteError) as raised, watch(model):
        step(x, labels)
    assert raised.value.fault.parameters == ("3.weight",) and raised.value.fault.explanation.summary["counted"] == 9


def test_a_graph_that_a_gpu_captures_is_told_of(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    names = seen._OPERATORS["_loss_alone"]
    with watch(model) as watched:
        seen._told_operator(lambda *args: (SimpleNamespace(is_cuda=True),), names, True, *[None] * (len(names) - 1))
    assert list(watched._missed) == [seen._CAPTURED]


def test_what_is_compiled_in_a_model_is_run_again_as_it_is(model):
    whole = torch.nn.Sequential(model, torch.nn.Linear(CLASSES, CLASSES))
    model.compile(backend="eager")
    with pytest.raises(crossent.NonFiniteError) as raised, watch(whole):
        train(whole, steps=1)
        model[3].weight.data.fill_(math.nan)
        train(whole, steps=1)
    assert raised.value.fault.module == "0.3"


def in_a_thread(model, x, labels):
    with ThreadPoolExecutor() as threads:
        return threads.submit(lambda: F.cross_entropy(model(x), labels)).result()


class Whole(torch.nn.Module):
    """A model that makes its loss."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, labels):
        return crossent.cross_entropy(self.model(x), labels)


def exported(model, x, labels):
    return torch.export.export(Whole(model), (x, labels)).module()(x, labels)


IN_COMPILED = "inside of compiled code (call crossent.cross_entropy there, or leave the loss outside)"
MISSED = "Part of this training is computed where crossent.watch sees no loss: "
PLACES = {
    "compiled": (lambda model, x, labels: of_the_model(F.cross_entropy, model)(x, labels), IN_COMPILED),
    "compiled plain operations": (
        lambda model, x, labels: of_the_model(lambda x, y: crossent.cross_entropy(x, y, model[3].bias.exp()), model)(
            x, labels
        ),
        IN_COMPILED,
    ),
    "compiled beside ours": (
        lambda model, x, labels: (
            of_the_model(F.cross_entropy, model)(x, labels) + of_the_model(crossent.cross_entropy, model)(x, labels)
        ),
        IN_COMPILED,
    ),
    "exported": (exported, "inside of an exported program (leave the loss outside)"),
    "compiled in a reentrant checkpoint": (
        lambda model, x, labels: torch.utils.checkpoint.checkpoint(
            of_the_model(crossent.cross_entropy, model), x.requires_grad_(), labels, use_reentrant=True
        ),
        "inside of a reentrant checkpoint",
    ),
    "a thread": (in_a_thread, "in another thread"),
    "a transform": (
        lambda model, x, labels: torch.func.grad(lambda z: F.cross_entropy(z, labels))(model(x)).sum(),
        "inside of a function transform or a dispatch mode",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_losses_that_are_not_seen_are_told_of(place, model):
    """At the first step, and beside others that are seen."""
    hidden, where = PLACES[place]
    edge = get_gradient_edge(model(batch()[0]))  # a backward pass may begin at one
    assert not seen._hidden_in(edge) and not seen._hidden_in([edge])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model) as watched:
        x, labels = batch()
        for _ in range(2):
            (hidden(model, x, labels) + F.cross_entropy(model(x), labels)).backward()
            with nullcontext() if watched.steps else pytest.warns(UserWarning, match=f"^{MISSED}{re.escape(where)}$"):
                optimizer.step()
    assert list(watched.last["losses"]) == ["cross_entropy of 5 classes"]


def test_losses_that_processes_share(model, tmp_path, process_group):
    """Are told without looks; of DTensors means alone, which is said by a warning, in the lines and on the page."""
    from torch.distributed import tensor

    mesh = tensor.init_device_mesh("cpu", (1,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[2] = torch.nn.Identity()
    x, labels = batch()
    expected = F.cross_entropy(model(x), labels).item()
    logits = tensor.DTensor.from_local(model(x), mesh, [tensor.Shard(0)])
    spread = tensor.DTensor.from_local(labels, mesh, [tensor.Shard(0)])
    with watch(model, tmp_path / "run.jsonl", every=1) as watched:
        crossent.cross_entropy(model(x), labels, group=process_group, reduction="sum").backward()
        crossent.linear_cross_entropy(model(x), torch.eye(CLASSES), labels, group=process_group).backward()
        crossent.cross_entropy(logits, spread).backward(retain_graph=True)
        crossent.cross_entropy(logits, spread, reduction="sum").backward()
        where = "of subclasses of tensors, such as DTensors"
        with pytest.warns(UserWarning, match=f"{MISSED}{where}$"):
            optimizer.step()
        assert list(watched.last["losses"]) == [
            "cross_entropy of 5 classes of this process",
            "linear_cross_entropy of 5 classes of this process",
            "cross_entropy of 5 classes",
        ]
        for said in watched.last["losses"].values():
            assert said == {"loss": pytest.approx(expected, rel=1e-6), "rows": 9, "ignored": 0.25}
    assert lines(tmp_path / "run.jsonl")[1]["sentence"] == MISSED + where
    page = (tmp_path / "run.html").read_text()
    assert f"<b>warning</b> {MISSED}{where}." in page and page.count("what knowing nothing costs") == 1
    for given in (
        lambda: crossent.cross_entropy(model(x), labels, group=process_group),
        lambda: crossent.cross_entropy(tensor.DTensor.from_local(model(x), mesh, [tensor.Shard(0)]), spread),
    ):
        model[3].weight.data.fill_(math.nan)
        with pytest.raises(crossent.NonFiniteError, match="Its batch is not explained: it is spread") as raised:
            with watch(model):
                given()
        assert raised.value.fault.parameters == ("3.weight",) and raised.value.fault.module is None


def test_faults_of_losses_that_cannot_be_run_again_or_explained(model):
    model[3].weight.data.fill_(math.nan)
    model.forward = lambda x: torch.nn.Sequential.forward(model, x)
    with pytest.raises(crossent.NonFiniteError) as raised, watch(model):
        x, labels = batch()
        loss = model(x)
        model.forward = lambda x: 1 / 0
        F.cross_entropy(loss, labels)
    assert "cannot be run again to see where: ZeroDivisionError" in str(raised.value)
    assert raised.value.fault.parameters == ("3.weight",) and raised.value.fault.explanation.faulty


def test_buffers_and_random_numbers_are_as_before_when_a_batch_was_run_again(model):
    model[1] = torch.nn.BatchNorm1d(6)
    model[3].weight.data.fill_(math.nan)
    told = []
    with watch(model, on_fault=told.append):
        logits = model(batch()[0])
        mean, number = model[1].running_mean.clone(), torch.get_rng_state()
        F.cross_entropy(logits, batch()[1])
    assert (
        told[0].module == "3"
        and torch.equal(model[1].running_mean, mean)
        and torch.equal(torch.get_rng_state(), number)
    )


def test_the_trainer_of_transformers(tmp_path, no_page):
    transformers = pytest.importorskip("transformers")
    from crossent.integrations.transformers import patch

    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    tokens = torch.randint(50, (16, 8)).tolist()
    for patched in (False, True):
        model, path = transformers.LlamaForCausalLM(config), tmp_path / f"{patched}.jsonl"
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to=[],
            disable_tqdm=True, use_cpu=True, save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        trainer = transformers.Trainer(
            patch(model) if patched else model, arguments, callbacks=[watch.for_trainer(path, every=1)],
            train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        )  # fmt: skip
        trainer.train()
        steps = [line for line in lines(path) if line["event"] == "step"]
        name = "linear_cross_entropy of 50 classes" if patched else "cross_entropy of 50 classes"
        assert [line["step"] for line in steps] == [1, 2, 3]
        for line in steps:
            said = line["losses"][name]
            assert said["rows"] == 2 * 2 * 7 and 3.0 < said["loss"] < 5.0 and said["looked"]["rows"] == 14
        assert not seen._here.watchers
    model.lm_head.weight.data[7] = math.nan
    with pytest.raises(crossent.NonFiniteError) as raised:
        trainer.train()
    assert raised.value.fault.parameters == ("lm_head.weight",)
    assert lines(path)[-1]["stopped"] == "NonFiniteError" and not seen._here.watchers


def test_the_trainer_of_lightning(tmp_path, no_page):
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(FEATURES, 8), torch.nn.Linear(8, CLASSES)

        def training_step(self, pair, number):
            x, labels = pair
            return crossent.cross_entropy(self.last(self.first(x)), labels)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch(40)), batch_size=10)

    def fit(model, path):
        lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accumulate_grad_batches=2, callbacks=[watch.for_lightning(path, every=1)],
        ).fit(model, rows)  # fmt: skip

    torch.manual_seed(0)
    fit(Model(), tmp_path / "good.jsonl")
    steps = [line for line in lines(tmp_path / "good.jsonl") if line["event"] == "step"]
    assert [line["losses"]["cross_entropy of 5 classes"]["rows"] for line in steps] == [16, 16]
    model = Model()
    model.last.weight.data[2] = math.inf
    with pytest.raises(crossent.NonFiniteError) as raised:
        fit(model, tmp_path / "bad.jsonl")
    assert raised.value.fault.module == "last" and not seen._here.watchers
    assert lines(tmp_path / "bad.jsonl")[-1]["stopped"] == "NonFiniteError"


def test_what_is_wrong_with_arguments(model, tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got function"):
        watch(train)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        watch(model, every=0)
    with pytest.raises(ValueError, match="path must be a file to write"):
        watch(model, tmp_path / "nowhere" / "run.jsonl")
    with pytest.raises(ValueError, match="path must be a file for lines of JSON"):
        watch(model, tmp_path / "run.html")
    with watch(model) as watched, pytest.raises(RuntimeError, match="this watch is in use"), watched:
        pass
    monkeypatch.setattr("crossent.tools.watch.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs jinja2: pip install crossent\[explain\]"):
        watch(model, tmp_path / "run.jsonl")


def test_each_process_has_its_own_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    with watch(model, tmp_path / "run.jsonl", every=100):
        train(model, steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.3.html", "run.3.jsonl"]


def test_lines_are_there_at_once_and_the_page_is_made_of_what_is_left(model, tmp_path):
    """After a crash that cut a line off, a training goes on in the same file."""
    path = tmp_path / "run.jsonl"
    with watch(model, path, every=100):
        train(model, steps=2)
        assert [line["event"] for line in lines(path)] == ["start", "step", "step"]
    page = path.with_suffix(".html")
    assert ", 2 steps" in page.read_text()
    with path.open("a") as file:
        file.write('{"event": "step", "lo')
    with watch(model, path, every=100):
        train(model, steps=1)
    assert ", 3 steps" in page.read_text() and [file.name for file in tmp_path.iterdir() if file.name[0] == "."] == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The page of a training that had two losses and ended in a fault."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(FEATURES, 6), torch.nn.Tanh(), torch.nn.Linear(6, CLASSES))
    path = tmp_path_factory.mktemp("watch") / "run.jsonl"

    def loss_of(logits, labels):
        return F.cross_entropy(logits, labels) + crossent.nll_loss(logits.log_softmax(1), labels)

    with pytest.raises(crossent.NonFiniteError), watch(model, path, every=2):
        train(model, loss_of, steps=5)
        model[2].weight.data[1] = math.inf
        train(model, loss_of, steps=1)
    return path.with_suffix(".html")


@browser.needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (420, True)])
def test_the_page_in_a_browser(run, width, dark):
    with browser.opened(run.as_uri(), width, dark) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelectorAll('svg[role=img]').length") == 11
        text = page.evaluate("document.body.innerText")
        assert page.errors == [] and [address for address in page.requests if not address.startswith("file:")] == []
        assert browser.violations(page) == []
    assert "Training of run.jsonl" in run.read_text() and "5 steps, stopped by NonFiniteError" in text
    assert "The loss of step 6, cross_entropy of 5 classes, is not finite. It first arose in 2 (Linear)" in text
    assert (
        re.search("cross_entropy: mean (nan|inf) over 9 rows of 5 classes, float32", text) and "one step, x - g" in text
    )
    assert "nll_loss of 5 classes: 2 of 5 steps were looked at, 18 of 45 rows that count" in text


@pytest.mark.filterwarnings("error")
def test_pages_of_little(tmp_path):
    """Of a fault in the first step, of rows that are all ignored, and of no step."""
    for name, spoilt, loss_of in (
        ("fault", math.nan, F.cross_entropy),
        ("ignored", 1.0, lambda logits, labels: F.cross_entropy(logits, labels * 0 - 100, reduction="sum")),
    ):
        model = torch.nn.Linear(FEATURES, CLASSES)
        model.weight.data *= spoilt
        with pytest.MonkeyPatch.context() as patch, watch(model, tmp_path / f"{name}.jsonl", every=1) as watched:
            patch.setattr(watched, "on_fault", lambda fault: None)
            train(model, loss_of, steps=1)
    with watch(model, tmp_path / "nothing.jsonl"):
        pass
    pages = {path.stem: path.read_text() for path in tmp_path.glob("*.html")}
    assert "It first arose in the model itself (Linear)" in pages["fault"] and "Ignored<b>100.0%" in pages["ignored"]
    assert "Linear of 25 parameters, 0 steps." in pages["nothing"]


def test_the_page_says_what_the_lines_say(run):
    said = lines(run.with_suffix(".jsonl"))
    steps = [line["losses"]["nll_loss of 5 classes"] for line in said if line["event"] == "step"]
    windows = [line for line in said if line["event"] == "classes" and line["loss"] == "nll_loss of 5 classes"]
    text, of = run.read_text(), " (nll_loss of 5 classes)"
    shown = dict(re.findall(r"<div>([^<]+)<b>([^<]+)</b>", text))
    shown = {name.removesuffix(of): value for name, value in shown.items() if name.endswith(of)}
    text = text.partition(f"<h2>Classes with the largest loss{of}</h2>")[2]
    assert float(shown["Loss"]) == pytest.approx(steps[-1]["loss"], rel=1e-3)
    assert shown["Accuracy"] == f"{steps[3]['looked']['accuracy']:.1%}"
    rows, right, confidence = np.sum([line["bins"] for line in windows], axis=0)
    assert float(shown["Calibration error"]) == pytest.approx(abs(right - confidence).sum() / rows.sum(), abs=1e-4)
    first = re.search(r"loss at last.*?<td>(\d)\s*<td>(\d+)\s*<td>([\d.]+)\s*<td>([\d.]+)", text, re.DOTALL).groups()
    means = {c: (nll / n, n) for c, n, nll in zip(windows[0]["class"], windows[0]["rows"], windows[0]["nll"])}
    worst = max(means, key=lambda c: means[c][0])
    assert (int(first[0]), int(first[1])) == (worst, means[worst][1])
    assert float(first[3]) == pytest.approx(means[worst][0], rel=1e-3)
