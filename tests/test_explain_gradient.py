"""The gradient in `crossent.explain`, against autograd of PyTorch's own loss in float64, and what stands beside it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_explain import calls, heads, quick, to, values

import crossent
import crossent.nn

few = settings(quick, max_examples=25)


def losses_of(rows, target, options, s):
    """Of logits by row; the target are labels or probabilities by row."""
    rows = rows if options.get("softcap") is None else options["softcap"] * torch.tanh(rows / options["softcap"])
    weight, smoothing = options.get("weight"), options.get("label_smoothing", 0.0)
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    ignored = {"ignore_index": options.get("ignore_index", -100)}
    kind = torch.nn.functional.cross_entropy
    if options.get("picks"):
        kind, smoothed = torch.nn.functional.nll_loss, ignored
    elif target.ndim == 1:
        smoothed = ignored | {"label_smoothing": smoothing}
    else:
        smoothed = {"label_smoothing": smoothing}
    losses = kind(rows, target, weight, reduction="none", **smoothed)
    held = 1.0 if weight is None else weight
    if target.ndim == 1:
        t = torch.nn.functional.one_hot(target.clamp(0, rows.shape[1] - 1), rows.shape[1]).double()
        losses = torch.where(target == ignored["ignore_index"], 0.0, losses)
        t = torch.where((target == ignored["ignore_index"])[:, None], torch.nan, t)
    else:
        t = target
    if options.get("z_loss"):
        mass = (held * ((1.0 - smoothing) * t + smoothing / rows.shape[1])).sum(-1).nan_to_num(0.0)
        losses = losses + options["z_loss"] * mass * rows.logsumexp(-1) ** 2
    counts = torch.ones(len(rows), dtype=torch.float64)
    if target.ndim == 1:
        counts = torch.where(torch.isnan(t[:, 0]), 0.0, (t * held).sum(-1).nan_to_num(0.0))
    return torch.where(s == 0.0, 0.0, s * losses), (s * counts).sum().item()


def way_down(rows, target, options, rate):
    """The gradient at the logits by row, and the losses after a step."""
    s = options.get("sample_weight")
    s = torch.ones(len(rows), dtype=torch.float64) if s is None else torch.tensor(s, dtype=torch.float64).reshape(-1)
    x = rows.detach().clone().requires_grad_()
    losses, divisor = losses_of(x, target, options, s)
    if options.get("reduction", "mean") == "mean":
        divisor = options.get("denominator", divisor)
    else:
        divisor = 1.0
    (g,) = torch.autograd.grad(losses.sum(), x)
    g = g / divisor if divisor else g * math.nan
    return g.numpy(), losses_of(x.detach() - rate * g, target, options, s)[0].numpy()


def close(found, g, after):
    """The shown classes of each row, and the sum over the others."""
    for index, row in enumerate(found.rows):
        step = next(step for step in found.steps if step.name == "gradient")
        shown = list(row.classes)
        np.testing.assert_allclose(step.values[index], g[index, shown], rtol=1e-9, atol=1e-12)
        if step.others[index] is not None:
            np.testing.assert_allclose(step.others[index], np.delete(g[index], shown).sum(), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(values(found, "loss after a step"), after, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@quick
@given(data=st.data(), rate=st.sampled_from([1.0, 0.25, 30.0]))
def test_gradient(name, data, rate):
    logits, target, options, dtype = data.draw(calls(name))
    logits = np.nan_to_num(logits, posinf=3.0, neginf=-4.0)
    dtype = "float32" if dtype == "bfloat16" else dtype
    axis = options.get("dim", 1 if logits.ndim > 1 else 0)
    rows = np.moveaxis(logits, axis, -1).reshape(-1, logits.shape[axis])
    soft = target.dtype.kind == "f"
    by_row = np.moveaxis(target, axis, -1).reshape(rows.shape) if soft else target.reshape(-1)
    passed = {key: to("numpy", value, "float32") for key, value in options.items()}
    found = crossent.explain(
        to("numpy", logits, dtype), to("numpy", target, dtype), function=getattr(crossent, name),
        rows=range(len(rows)), learning_rate=rate, **passed,
    )  # fmt: skip
    if soft and dtype == "float32":
        by_row = by_row.astype(np.float32).astype(np.float64)
    expected = way_down(
        torch.tensor(rows.astype(dtype), dtype=torch.float64), torch.tensor(by_row),
        options | {"picks": name == "nll_loss"}, rate,
    )  # fmt: skip
    close(found, *expected)


@few
@given(data=st.data())
def test_gradient_of_the_head(data):
    x, weight, target, options, _ = data.draw(heads())
    lead, shift = x.ndim - 1, options.get("shift", 0)
    logits = np.moveaxis(np.tensordot(x, weight, axes=(-1, -1)) + options.get("linear_bias", 0.0), lead, -1)
    classes = weight.shape[0]
    if isinstance(target, crossent.SparseTarget):
        dense = np.zeros((*x.shape[:-1], classes))
        for at in np.ndindex(*target.classes.shape):
            dense[(*at[:-1], target.classes[at])] += target.probs[at]
    else:
        dense = np.moveaxis(target, lead, -1) if target.dtype.kind == "f" else target
    given, s = dict(options), options.get("sample_weight")
    if shift:
        logits = logits[..., : logits.shape[-2] - shift, :] if logits.shape[-2] > shift else logits[..., :0, :]
        dense = dense[..., shift:, :] if dense.ndim == logits.ndim else dense[..., shift:]
        if s is not None:
            given["sample_weight"] = s[..., shift:]
    found = crossent.explain(
        x, weight, target, function=crossent.linear_cross_entropy, rows=range(logits.size // classes), **options
    )
    by_row = dense.reshape(-1, classes) if dense.ndim == logits.ndim else dense.reshape(-1)
    close(found, *way_down(torch.tensor(logits.reshape(-1, classes)), torch.tensor(by_row), given, 1.0))


@few
@given(data=st.data())
def test_gradient_is_that_of_the_backward_pass_whatever_the_logits_hold(data):
    logits, target, options, _ = data.draw(calls("cross_entropy"))
    axis = options.get("dim", 1 if logits.ndim > 1 else 0)
    options = {key: value for key, value in options.items() if key != "denominator"} | {"reduction": "sum"}
    _, g = crossent.value_and_grad(crossent.cross_entropy)(logits, target, **options)
    rows = np.moveaxis(g, axis, -1).reshape(-1, logits.shape[axis])
    found = crossent.explain(logits, target, rows=range(len(rows)), **options)
    for row, ours, theirs in zip(found.rows, values(found, "gradient"), rows):
        np.testing.assert_allclose(ours, theirs[list(row.classes)], rtol=1e-7, atol=1e-12)


def test_confident_rows_keep_their_digits():
    found = crossent.explain(np.array([[40.0, 0.0]]), np.array([0]))
    exact = math.exp(-40.0) / (1.0 + math.exp(-40.0))
    np.testing.assert_allclose(values(found, "gradient"), [[-exact, exact]], rtol=1e-14)


@quick
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.1, 3.0, 10.0, 40.0]), wide=st.booleans())
def test_digits_that_the_sum_keeps(seed, scale, wide):
    dtype = np.float64 if wide else np.float32
    logits = (np.random.default_rng(seed).normal(size=(4, 6)) * scale).astype(dtype)
    found = crossent.explain(logits, np.zeros(4, np.int64))
    for total, e, digits in zip(*(values(found, name) for name in ("sum of exponentials", "exponentials", "digits"))):
        kept = dtype(total) + np.asarray(e, dtype) != dtype(total)
        e, digits = np.array(e), np.array(digits)
        assert kept[digits > 0.1].all() and not kept[e < 0.5 * np.spacing(dtype(total))].any()
        assert (digits <= -np.log10(np.finfo(dtype).eps / 2.0) + 0.05).all()
        # as many decimals of e come back
        back = (dtype(total) + np.asarray(e, dtype)) - dtype(total)
        error = np.abs(back.astype(np.float64) - e) / e
        assert (error <= 2.5 * 10.0**-digits)[digits > 0.5].all()


@pytest.mark.parametrize(("offset", "said"), [(100.0, "inf"), (-200.0, "0"), (3.0, None)])
def test_what_the_shift_is_for(offset, said):
    logits = np.array([[0.0, -30.0, 1.0], [0.0, 1.0, 2.0]], np.float32) + np.float32(offset)
    text = str(crossent.explain(logits, np.array([0, 1])))
    assert ("sum exp(x) in float32" in text) == (said is not None)
    assert said is None or text.count(f"sum exp(x) in float32 = {said} ") == 2
    assert text.count("digits kept in float32") == 1  # of the row in which they die
    assert "sum exp(x)" not in str(crossent.explain(logits.astype(np.float64), np.array([0, 1])))


@few
@given(data=st.data())
def test_both_styles_are_the_call(data):
    logits, target, options, _ = data.draw(calls("cross_entropy"))
    tensors = {key: to("torch", value, "float64") for key, value in options.items()}
    input, goal = torch.tensor(logits), torch.tensor(target)
    found = crossent.explain(input, goal, **tensors)
    assert list(found.styles) == ["module", "function"]
    known = {"crossent": crossent, "input": input, "target": goal} | tensors
    expected = crossent.cross_entropy(input, goal, **tensors)
    for call in found.styles.values():
        torch.testing.assert_close(eval(call, known), expected, rtol=0, atol=0, equal_nan=True)
    names = [key for key, value in options.items() if value is not None and f"{key}=" in found.styles["function"]]
    assert all(f"{key}=" in found.styles["module"] for key in names)


def test_styles():
    def styles(*args, **kwargs):
        return tuple(crossent.explain(*args, **kwargs).styles.values())

    x, y = np.zeros((3, 4)), np.array([0, 1, 2])
    assert styles(x, y) == ("crossent.nn.CrossEntropyLoss()(input, target)", "crossent.cross_entropy(input, target)")
    assert styles(x, y, np.ones(4), label_smoothing=np.float32(0.5), denominator=np.float64(3), sample_weight=y) == (
        "crossent.nn.CrossEntropyLoss(weight=weight, label_smoothing=0.5)(input, target, sample_weight=sample_weight, "
        "denominator=3.0)",
        "crossent.cross_entropy(input, target, weight=weight, label_smoothing=0.5, sample_weight=sample_weight, "
        "denominator=3.0)",
    )
    assert styles(x, y + 3, function=crossent.nll_loss, reduction="sum", ignore_index=5) == (
        "crossent.nn.NLLLoss(ignore_index=5, reduction='sum')(input, target)",
        "crossent.nll_loss(input, target, ignore_index=5, reduction='sum')",
    )
    head = {"function": crossent.linear_cross_entropy, "linear_bias": np.zeros(5), "shift": 1}
    module, function = styles(np.zeros((2, 3, 4)), np.zeros((5, 4)), np.zeros((2, 3), int), **head)
    assert module == "crossent.nn.LinearCrossEntropyLoss(4, 5, bias=True, shift=1)(input, target)"
    assert function == ("crossent.linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias, shift=1)")
    assert isinstance(eval(module.partition(")(")[0] + ")"), crossent.nn.LinearCrossEntropyLoss)


@few
@given(data=st.data())
def test_baselines(data):
    """Of equal probabilities, and of the best ones that are the same in every row, by PyTorch's loss."""
    logits, target, options, _ = data.draw(calls("cross_entropy"))
    logits = np.nan_to_num(logits, posinf=3.0, neginf=-4.0)
    options |= {"softcap": None, "z_loss": 0.0}
    axis = options.get("dim", 1 if logits.ndim > 1 else 0)
    classes = logits.shape[axis]
    rows = torch.tensor(np.moveaxis(logits, axis, -1).reshape(-1, classes))
    soft = target.dtype.kind == "f"
    by_row = torch.tensor(np.moveaxis(target, axis, -1).reshape(rows.shape) if soft else target.reshape(-1))
    s = torch.tensor(options.get("sample_weight", np.ones(len(rows)))).double().reshape(-1)
    found = crossent.explain(logits, target, **options).baselines

    def mean(x):
        losses, divisor = losses_of(x, by_row, options, s)
        return losses.sum() / divisor

    _, divisor = losses_of(rows, by_row, options, s)
    if divisor == 0.0:
        assert not found
        return
    same = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    uniform = mean(same.expand_as(rows))
    assert math.isclose(found["uniform"], uniform.item(), rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(found["mean"], mean(rows).item(), rel_tol=1e-6, abs_tol=1e-9)
    # The slope at equal probabilities says each class's share. There the slope is 0, and nothing that is the same in
    # every row costs less, since the loss is convex.
    (slope,) = torch.autograd.grad(uniform, same)
    mass = uniform.item() / math.log(classes) if classes > 1 else 1.0
    best = (1.0 / classes - slope / mass).clamp(1e-300).log().requires_grad_()
    lowest = mean(best.expand_as(rows))
    (slope,) = torch.autograd.grad(lowest, best)
    assert math.isclose(found["label_entropy"], lowest.item(), rel_tol=1e-9, abs_tol=1e-9)
    assert slope.abs().max() < 1e-9 * max(1.0, mass)


def test_worse_than_knowing_nothing():
    x, y = np.zeros((4, 3), np.float32), np.array([0, 0, 1, 2])
    even = crossent.explain(x, y)
    assert even.baselines == pytest.approx(
        {"uniform": math.log(3), "label_entropy": 1.5 * math.log(2), "mean": math.log(3), "worse_than_uniform": False}
    )
    wrong = crossent.explain(x + np.float32([0, 0, 1]), y)
    assert wrong.baselines["worse_than_uniform"]
    said = "Knowing nothing costs log 3 = 1.0986 a row, knowing how often each class occurs 1.0397; these rows cost "
    for found, more in ((even, "1.0986."), (wrong, "1.3014: worse than knowing nothing.")):
        text = " ".join(str(found).split())
        assert said + more in text and said + more in found.to_html()
    assert crossent.explain(x.astype(np.float16), y).baselines["worse_than_uniform"] is False  # rounded up
    masked = crossent.explain(x + np.float32([-np.inf, 0, 0]), y)
    assert masked.baselines["worse_than_uniform"] and masked.to_dict()["baselines"]["mean"] == "inf"
    assert crossent.explain(x, y * 0 - 100).baselines == {}


OPTIONS = {
    "plain": {},
    "every option": {
        "weight": np.array([1.0, 0.5, 2.0] + [1.0] * 9), "sample_weight": np.arange(1.0, 5.0), "softcap": 30.0,
        "z_loss": 0.01,
    },
    "smoothing": {"label_smoothing": 0.1, "weight": np.arange(1.0, 13.0), "z_loss": 1e-4, "softcap": 5.0},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_text_fits_its_width(options, width):
    from rich.console import Console

    logits = np.random.default_rng(0).normal(size=(4, 12)) * 20
    found = crossent.explain(logits, np.array([0, 11, 3, 4]), **OPTIONS[options])
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    found.print(console)
    text = console.export_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert text.count("  p = e / sum e") == 4 * (2 if width == 60 else 1)
    assert text.count("\n  sum e = ") == 4
    per_row = [len(part.splitlines()) for part in text.split("\nrow ")[1:-1]]
    assert max(per_row) <= (34 if width == 60 else 19), per_row
