"""The page to play with, in a browser: its numbers are those of the library whatever its controls are set to."""

import json
from contextlib import ExitStack

import browser
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import crossent
from crossent.tools.explain.command import worked_example

# Sets the page's controls as a reader does, or its address, and reads what it then says of every row.
DRIVE = """
const find = (selector) => document.querySelector(selector);
const fill = (element, text) => {
  element.value = text;
  element.dispatchEvent(new Event("input"));
};
const named = (name) => find(`[aria-label="${name}, as a number"]`);
const choose = (name, value) => find(`[name=${name}][value="${value}"]`).click();
const numbers = (selector) => [...document.querySelectorAll(selector)].map((data) => data.value);
function byControls({ x, labels, ignored, weight, temperature, smoothing, reduction }) {
  find("#reset").click();
  fill(named("Temperature"), temperature);
  fill(named("Label smoothing"), smoothing);
  choose("reduction", reduction);
  weight.forEach((w, c) => fill(named(`Weight of class ${c}`), w));
  x.forEach((row, i) => {
    choose("row", i);
    row.forEach((value, c) => fill(named(`Logit of class ${c}`), value));
    choose("label", labels[i]);
    if (find("#ignored").checked !== ignored[i]) find("#ignored").click();
  });
  return read();
}
function byAddress(fragment) {
  history.replaceState(null, "", `#${fragment}`);
  begin(fromAddress());
  return read();
}
function read() {
  const rows = state.rows.map((_, i) => {
    choose("row", i);
    return {
      loss: find("#row-loss").value, p: numbers(".share data"), gradient: numbers(".slope data"),
      worked: numbers("tr[data-step=gradient] data"),
    };
  });
  return JSON.stringify({ loss: find("#loss").value, rows, wrong: find("#wrong").textContent, code: find("#python").textContent });
}
"""


def floats(words):
    return np.array([float(word) for word in words])


def settings_of(rng, rows=3, classes=4):
    x = rng.normal(size=(rows, classes)) * rng.choice([1.0, 8.0, 1e3])
    if rng.random() < 0.4:
        where = rng.random(x.shape) < 0.2
        x[where] = rng.choice([1e4, -1e4, np.inf, -np.inf, -np.inf, np.nan], where.sum())
    return {
        "x": x,
        "labels": rng.integers(classes, size=rows),
        "ignored": np.full(rows, True) if rng.random() < 0.1 else rng.random(rows) < 0.25,
        "weight": rng.choice([0.0, 0.5, 1.0, 3.0], classes) if rng.random() < 0.5 else np.ones(classes),
        "temperature": rng.choice([1.0, 0.3, 7.5]),
        "smoothing": rng.choice([0.0, 0.1, 1.0, rng.random()]),
        "reduction": str(rng.choice(["mean", "sum", "none"])),
    }


def words(value):
    """As they are typed into a field."""
    if isinstance(value, np.ndarray):
        return [words(item) for item in value]
    return bool(value) if isinstance(value, np.bool_) else value if isinstance(value, str) else repr(value.item())


def fragment(setting):
    x, weight = setting["x"], setting["weight"]
    found = [f"{name}={setting[name]}" for name in ("temperature", "smoothing", "reduction")]
    found += [f"logit={i}.{c}:{x[i, c]}" for i, c in np.ndindex(x.shape)]
    found += [f"weight=0.{c}:{w}" for c, w in enumerate(weight)]
    found += [f"label={i}.0:{label}" for i, label in enumerate(setting["labels"])]
    return "&".join(found + [f"ignored={i}.0:{int(ignored)}" for i, ignored in enumerate(setting["ignored"])])


def called(function, setting):
    """The loss and the losses of the rows, what the softmax is, and the gradient."""
    x = torch.tensor(setting["x"], requires_grad=True)
    labels = torch.tensor(np.where(setting["ignored"], -100, setting["labels"]))
    options = {"weight": torch.tensor(setting["weight"]), "label_smoothing": float(setting["smoothing"])}
    z = x / float(setting["temperature"])
    loss = function(z, labels, **options, reduction=setting["reduction"])
    losses = function(z, labels, **options, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    total = np.nan if setting["reduction"] == "none" else loss.item()
    return total, losses.detach().numpy(), gradient.numpy()


def assert_close(found, expected, what):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14, err_msg=str(what))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Opens the page of a call."""
    folder = tmp_path_factory.mktemp("play")
    with ExitStack() as stack:

        def opens(*args, width=1200, dark=False, **kwargs):
            path = folder / "play.html"
            path.write_text(crossent.explain(*args, **kwargs).to_play(), encoding="utf-8")
            page = stack.enter_context(browser.opened(path.as_uri(), width, dark))
            assert page.errors == [] and page.requests == [path.as_uri()]
            page.evaluate(DRIVE)
            return page

        yield opens


def assert_agrees(found, setting):
    """With crossent, and with PyTorch's own loss where it does not multiply a 0 by what is not finite."""
    plain = setting["weight"].all() and np.isfinite(setting["x"]).all()
    for function in (crossent.cross_entropy, F.cross_entropy) if plain else (crossent.cross_entropy,):
        total, losses, gradient = called(function, setting)
        p = torch.softmax(torch.tensor(setting["x"] / setting["temperature"]), 1).numpy()
        kept = ~setting["ignored"]
        undefined = setting["reduction"] == "mean" and not setting["weight"][setting["labels"][kept]].sum()
        if setting["reduction"] != "none":
            assert_close(float(found["loss"]), total, setting)
        for i, row in enumerate(found["rows"]):
            assert_close(float(row["loss"]), losses[i], (i, setting))
            assert_close(floats(row["p"]), p[i], (i, setting))
            if not undefined:
                assert_close(floats(row["gradient"]), gradient[i], (i, setting))
            assert row["worked"] == row["gradient"]
    assert found["wrong"] == ""


@browser.needs_chromium
def test_numbers_are_those_of_the_library(opened):
    page, rng = opened(*worked_example()), np.random.default_rng(0)
    for _ in range(150):
        setting = settings_of(rng)
        assert_agrees(json.loads(page.evaluate(f"byAddress({fragment(setting)!r})")), setting)
    for _ in range(10):
        setting = settings_of(rng)
        told = json.dumps({name: words(value) for name, value in setting.items()})
        assert_agrees(json.loads(page.evaluate(f"byControls({told})")), setting)
    assert page.errors == []
