"""The page to play with, in a browser: its numbers are those of the library whatever its controls are set to."""

import html
import json
import re
from contextlib import ExitStack
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import crossent
from crossent.tools.commands import _application
from crossent.tools.explain import play
from crossent.tools.explain.command import worked_example
from crossent.tools.language import messages

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
const SETTING = { temperature: "Temperature", smoothing: "Label smoothing", softcap: "Softcap", zloss: "z-loss",
  denominator: "Denominator" };
function byControls({ x, labels, target, samples, ignored, weight, reduction, ...others }) {
  find("#reset").click();
  for (const [key, value] of Object.entries(others)) fill(named(SETTING[key]), value);
  choose("reduction", reduction);
  weight.forEach((w, c) => fill(named(`Weight of class ${c}`), w));
  x.forEach((row, i) => {
    choose("row", i);
    row.forEach((value, c) => fill(named(`Logit of class ${c}`), value));
    fill(named("Weight of this row"), samples[i]);
    if (target) target[i].forEach((value, c) => fill(named(`Target's share of class ${c}`), value));
    else choose("label", labels[i]);
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
  const [wrong, code] = ["#wrong", "#python"].map((selector) => find(selector).textContent);
  return JSON.stringify({ loss: find("#loss").value, evenly: find("#evenly").value, rows, wrong, code });
}
"""


def floats(words):
    return np.array([float(word) for word in words])


def settings_of(rng, rows=3, classes=4, soft=False):
    x = rng.normal(size=(rows, classes)) * rng.choice([1.0, 8.0, 1e3])
    if rng.random() < 0.4:
        where = rng.random(x.shape) < 0.2
        x[where] = rng.choice([1e4, -1e4, np.inf, -np.inf, -np.inf, np.nan], where.sum())
    target = {"target": rng.dirichlet(np.ones(classes), rows)} if soft else {"labels": rng.integers(classes, size=rows)}
    return target | {
        "x": x,
        "samples": rng.choice([0.0, 0.5, 1.0, 2.5], rows) if rng.random() < 0.5 else np.ones(rows),
        "ignored": np.full(rows, True) if rng.random() < 0.1 else rng.random(rows) < 0.25,
        "weight": rng.choice([0.0, 0.5, 1.0, 3.0], classes) if rng.random() < 0.5 else np.ones(classes),
        "temperature": rng.choice([1.0, 0.3, 7.5]),
        "smoothing": rng.choice([0.0, 0.1, 1.0, rng.random()]),
        "softcap": rng.choice([np.inf, 30.0, 2.0]),
        "zloss": rng.choice([0.0, 0.01]),
        "reduction": str(rng.choice(["mean", "sum", "none"])),
    }


def words(value):
    """As they are typed into a field."""
    if isinstance(value, np.ndarray):
        return [words(item) for item in value]
    return bool(value) if isinstance(value, np.bool_) else value if isinstance(value, str) else repr(value.item())


def fragment(setting):
    x, weight = setting["x"], setting["weight"]
    names = "temperature", "smoothing", "reduction", "softcap", "zloss", "denominator"
    found = [f"{name}={setting[name]}" for name in names if name in setting]
    found += [f"logit={i}.{c}:{x[i, c]}" for i, c in np.ndindex(x.shape)]
    found += [f"weight=0.{c}:{w}" for c, w in enumerate(weight)]
    found += [f"sample={i}.0:{s}" for i, s in enumerate(setting["samples"])]
    if "target" in setting:
        found += [f"target={i}.{c}:{t}" for (i, c), t in np.ndenumerate(setting["target"])]
    else:
        found += [f"label={i}.0:{label}" for i, label in enumerate(setting["labels"])]
    return "&".join(found + [f"ignored={i}.0:{int(ignored)}" for i, ignored in enumerate(setting["ignored"])])


def called(function, setting):
    """The loss and the losses of the rows, what the softmax is, and the gradient."""
    x, samples = torch.tensor(setting["x"], requires_grad=True), torch.tensor(setting["samples"])
    if "target" in setting:
        target, samples = torch.tensor(setting["target"]), samples * torch.tensor(~setting["ignored"])
    else:
        target = torch.tensor(np.where(setting["ignored"], -100, setting["labels"]))
    options = {"weight": torch.tensor(setting["weight"]), "label_smoothing": float(setting["smoothing"])}
    by = {}
    if function is crossent.cross_entropy:
        cap = float(setting["softcap"])
        options |= {"sample_weight": samples, "softcap": None if cap == np.inf else cap, "z_loss": setting["zloss"]}
        if setting["reduction"] == "mean" and "denominator" in setting:
            by = {"denominator": setting["denominator"]}
    z = x / float(setting["temperature"])
    loss = function(z, target, **options, **by, reduction=setting["reduction"])
    losses = function(z, target, **options, reduction="none")
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
            path.write_text(crossent.explain(*args, **kwargs).to_html(), encoding="utf-8")
            page = stack.enter_context(browser.opened(path.as_uri(), width, dark))
            assert page.errors == [] and page.requests == [path.as_uri()]
            page.evaluate(DRIVE)
            return page

        yield opens


@pytest.fixture(scope="module")
def example(opened):
    return opened(*worked_example())


TARGET = np.array([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def of_probabilities(opened):
    return opened(worked_example()[0], TARGET, denominator=2)


def assert_agrees(found, setting):
    """With crossent, and with PyTorch's own loss where it does not multiply a 0 by what is not finite."""
    plain = setting["weight"].all() and np.isfinite(setting["x"]).all() and (setting["samples"] == 1.0).all()
    plain &= setting["softcap"] == np.inf and not setting["zloss"] and "target" not in setting
    for function in (crossent.cross_entropy, F.cross_entropy) if plain else (crossent.cross_entropy,):
        total, losses, gradient = called(function, setting)
        z, cap = setting["x"] / setting["temperature"], setting["softcap"]
        p = torch.softmax(torch.tensor(z if cap == np.inf else cap * np.tanh(z / cap)), 1).numpy()
        counts = np.where(setting["ignored"], 0.0, setting["samples"])
        counts *= 1.0 if "target" in setting else setting["weight"][setting["labels"]]
        undefined = setting["reduction"] == "mean" and not counts.sum() and "denominator" not in setting
        if setting["reduction"] != "none":
            assert_close(float(found["loss"]), total, setting)
            even = {"x": np.zeros_like(setting["x"]), "zloss": 0.0}  # the logits that a z-loss costs nothing
            evenly, *_ = called(function, setting | even)
            assert_close(float(found["evenly"]), evenly, setting)
        for i, row in enumerate(found["rows"]):
            assert_close(float(row["loss"]), losses[i], (i, setting))
            assert_close(floats(row["p"]), p[i], (i, setting))
            if not undefined:
                assert_close(floats(row["gradient"]), gradient[i], (i, setting))
            assert row["worked"] == row["gradient"]
    assert found["wrong"] == ""


@browser.needs_chromium
def test_numbers_are_those_of_the_library(example, of_probabilities):
    rng = np.random.default_rng(0)
    for page, soft in (example, False), (of_probabilities, True):
        for _ in range(40):
            setting = settings_of(rng, soft=soft) | ({"denominator": rng.choice([0.5, 7.0])} if soft else {})
            assert_agrees(json.loads(page.evaluate(f"byAddress({fragment(setting)!r})")), setting)
        for _ in range(5):
            setting = settings_of(rng, soft=soft) | ({"denominator": np.float64(2.0)} if soft else {})
            told = json.dumps({name: words(value) for name, value in setting.items()})
            assert_agrees(json.loads(page.evaluate(f"byControls({told})")), setting)
        assert page.errors == []


def large(rng, rows=2, classes=3000):
    """A call with more classes than a page shows, whose first label is among those."""
    logits, labels = rng.normal(size=(rows, classes)) * 3, rng.integers(classes, size=rows)
    return logits, labels, rng.uniform(0.5, 2.0, classes)


PLAIN = {
    "ignored": np.zeros(3, bool), "weight": np.ones(4), "samples": np.ones(3), "temperature": 1.0, "smoothing": 0.0,
    "softcap": np.inf, "zloss": 0.0, "reduction": "sum",
}  # fmt: skip


@browser.needs_chromium
def test_rows_that_are_sure_keep_their_digits(example):
    x, labels = np.array([[40.0, 0.0, 0.0, 0.0], [0.0, -300.0, 0.0, 400.0], [1e4, 1e4, 0.0, 0.0]]), np.array([0, 3, 1])
    setting = PLAIN | {"x": x, "labels": labels}
    found = json.loads(example.evaluate(f"byAddress({fragment(setting)!r})"))
    _, losses, gradient = called(crossent.cross_entropy, setting)
    assert 0.0 < losses[0] < 1e-16 and 0.0 < losses[1] < 1e-170
    np.testing.assert_allclose([float(row["loss"]) for row in found["rows"]], losses, rtol=1e-12)
    np.testing.assert_allclose([floats(row["gradient"]) for row in found["rows"]], gradient, rtol=1e-12)


@browser.needs_chromium
def test_a_target_without_weight_still_needs_its_logits(example):
    for smoothing in 0.5, 0.0:
        setting = PLAIN | {"x": np.zeros((3, 4)), "labels": np.arange(3), "weight": np.zeros(4), "smoothing": smoothing}
        setting["x"][1, 2] = np.nan
        assert_agrees(json.loads(example.evaluate(f"byAddress({fragment(setting)!r})")), setting)


@browser.needs_chromium
def test_classes_that_are_not_shown_count_in_full(opened):
    logits, labels, weight = large(np.random.default_rng(1))
    page = opened(logits, labels, weight=weight, label_smoothing=0.2)
    (first, *_) = shown = crossent.explain(logits, labels).rows[0].classes
    weight[first] = 3.0
    page.evaluate(f"fill(named('Weight of class {first}'), '3'); fill(named('Temperature'), '2.5')")
    setting = PLAIN | {"x": logits, "labels": labels, "weight": weight, "ignored": np.zeros(2, bool)}
    setting |= {"samples": np.ones(2), "temperature": 2.5, "smoothing": 0.2, "reduction": "mean"}
    total, losses, gradient = called(crossent.cross_entropy, setting)
    found, p = json.loads(page.evaluate("read()")), torch.softmax(torch.tensor(logits[0] / 2.5), 0).numpy()
    hidden = np.delete(np.arange(3000), shown)
    assert_close(float(found["loss"]), total, "")
    assert_close([float(row["loss"]) for row in found["rows"]], losses, "")
    for name, expected in {"p": p, "gradient": gradient[0]}.items():
        assert_close(floats(found["rows"][0][name]), [*expected[list(shown)], expected[hidden].sum()], name)
    assert found["code"] == "" and "2,995 others" in page.evaluate("document.body.innerText")


@browser.needs_chromium
def test_plots_show_the_loss_along_a_logit(opened):
    """The functions behind them, and the point and the line that are drawn."""
    logits, labels, weight = large(np.random.default_rng(2), classes=40)
    logits[0, 3] = -np.inf
    page = opened(logits, labels, weight=weight, rows=[0])
    c = crossent.explain(logits, labels, rows=[0]).rows[0].classes[0]
    for value in (-30.0, 0.5, 4.0, 1e4, -np.inf):
        logits[0, c] = value
        loss = crossent.cross_entropy(logits[:1], labels[:1], weight=weight, reduction="sum")
        p = torch.softmax(torch.tensor(logits[0]), 0).numpy()
        curve = page.evaluate(
            f"(() => {{const at = along(state.rows[0], state, {c})({value}".replace("-inf", "-Infinity")
            + f"); return [at.loss, at.share({c}), at.share(7)].map(String)}})()"
        )
        assert_close(floats(curve), [loss, p[c], p[7]], value)
    page.evaluate(f"fill(named('Logit of class {c}'), '0.5')")
    logits[0, c] = 0.5
    drawn = page.evaluate(
        "(() => {const [line, point] = ['.tangent', 'circle'].map(name => document.querySelector('#curve ' + name));"
        "const {x, y} = axes(find('#curve'), 1), unit = (x(1) - x(0)) / (y(0) - y(1)),"
        "of = (element, name) => Number(element.getAttribute(name));"
        "return [(of(line, 'y1') - of(line, 'y2')) / (of(line, 'x2') - of(line, 'x1')) * unit,"
        "(of(point, 'cx') - x(0)) / (x(1) - x(0)), (y(0) - of(point, 'cy')) / (y(0) - y(1))]})()"
    )
    high = page.evaluate("Number([...document.querySelectorAll('#curve text')].at(-1).textContent)")
    x = torch.tensor(logits[:1], requires_grad=True)
    loss = F.cross_entropy(x, torch.tensor(labels[:1]), weight=torch.tensor(weight))
    loss.backward()
    np.testing.assert_allclose(
        [drawn[0] * high, drawn[1], drawn[2] * high], [x.grad[0, c], 0.5, loss.item()], rtol=1e-6, atol=1e-9
    )


@browser.needs_chromium
def test_the_code_on_the_page_gives_its_numbers(example, of_probabilities):
    rng = np.random.default_rng(3)
    for i in range(10):
        page = of_probabilities if i % 2 else example
        found = json.loads(page.evaluate(f"byAddress({fragment(settings_of(rng, soft=bool(i % 2)))!r})"))
        names = {"print": lambda *_: None}
        exec(found["code"], names)
        losses = names["loss"].detach().numpy()
        expected = [row["loss"] for row in found["rows"]] if losses.ndim else found["loss"]
        np.testing.assert_allclose(losses, np.array(expected, float), rtol=1e-12, atol=1e-14)


@browser.needs_chromium
def test_by_keyboard_alone(opened):
    """Every control can be reached, shows that it has the focus, and does what its keys say."""
    page = opened(*worked_example())

    def press(key, code, **more):
        for kind in ("keyDown", "keyUp"):
            page.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    seen = []
    for _ in range(70):
        press("Tab", 9)
        seen.append(
            page.evaluate("(e => e.name || e.id || e.ariaLabel || e.dataset.try || e.tagName)(document.activeElement)")
        )
        outline = "(e => getComputedStyle(e.matches('.choices input') ? e.nextElementSibling : e).outlineStyle)"
        assert page.evaluate(f"{outline}(document.activeElement)") != "none", seen[-1]
        if seen[-1] == "python":
            break
    logits = {name for c in range(4) for name in (f"Logit of class {c}", f"Logit of class {c}, as a number")}
    assert logits | {"row", "label", "ignored", "even", "Temperature", "Label smoothing", "reduction"} <= {*seen}
    assert {"descend", "reset", "SUMMARY", "back", "step", "next", "python"} <= {*seen}
    before = float(page.evaluate("find('#loss').value"))
    page.evaluate("find('[aria-label=\"Logit of class 1\"]').focus()")
    press("ArrowRight", 39)
    assert float(page.evaluate("find('#loss').value")) < before
    page.evaluate("find('[name=step][value=exp]').focus(); find('[name=step][value=exp]').click()")
    press("ArrowRight", 39)
    assert page.evaluate("state.step") == "sum"
    assert page.evaluate("[...document.querySelectorAll('tr.lit th')].map(e => e.innerText)") == ["∑ exp(z − max z)"]


@browser.needs_chromium
@pytest.mark.parametrize(
    ("width", "dark", "lang", "status", "curve", "wrong"),
    [
        (1400, False, "en", "mean loss nan, this row nan", "The mean loss is nan here", "Temperature must be a number"),
        (420, True, "zh", "平均损失 nan，这一行 nan", "这里的平均损失：nan", "温度必须是大于 0 的数"),
    ],
    ids=["wide", "phone"],
)
def test_for_everybody(opened, width, dark, lang, status, curve, wrong):
    page = opened(*worked_example(), width=width, dark=dark, label_smoothing=0.1, lang=lang)
    page.evaluate("find('details').open = true")
    assert browser.violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate(
        "[...document.querySelectorAll('button, input, summary')].map(e => (e.closest('label') ?? e)"
        ".getBoundingClientRect()).map(box => Math.min(box.width, box.height))"
    )
    assert min(sizes) >= 44
    page.evaluate("fill(find('.class input[type=text]'), 'nan'); 0")
    said = page.evaluate("new Promise(done => setTimeout(() => done(find('[role=status]').textContent), 600))")
    assert said == status
    assert page.evaluate(
        "document.getElementById(find('#curve').getAttribute('aria-labelledby')).innerText"
    ).startswith(curve)
    page.evaluate("fill(find('#temperature input[type=text]'), '0')")
    assert (
        page.evaluate("find('[role=alert]').textContent").startswith(wrong) and page.evaluate("state.temperature") == 1
    )
    assert page.evaluate("find('#temperature input[type=text]').getAttribute('aria-invalid')") == "true"
    assert page.evaluate("document.documentElement.lang") == lang


@browser.needs_chromium
@pytest.mark.parametrize("width", [710, 1190])
def test_long_names_and_large_logits_have_room(opened, width):
    logits, names = np.full((2, 12), 3e4), ["Wide-mouthed frog", "W" * 20, *(f"category {i}" for i in range(10))]
    logits[0, 1], logits[1] = -2e4, np.arange(12.0)
    page = opened(logits, np.array([12, 0]), names=names, width=width)
    overflows = "[...document.querySelectorAll('.class > *')].filter(e => e.getBoundingClientRect().right > "
    overflows += "e.closest('section').getBoundingClientRect().right + 1).length"
    assert page.evaluate(overflows) == 0
    assert page.evaluate("find('.class .choice span').textContent") == "y = Wide-mouthe…"
    assert page.evaluate("state.row") == 1  # the first has a bad label
    beyond = "[...document.querySelectorAll('#shares text')].filter(e => e.getBBox().x < 0).length"
    assert page.evaluate(beyond) == 0 and page.evaluate("span") == 45000


def test_every_message_is_shown():
    """Those whose name is put together end as the page's steps and reductions do."""
    sources = "".join(path.read_text("utf-8") for path in Path(play.__file__).parent.iterdir() if path.is_file())
    for key in messages()["play"]:
        whole = rf't\.{key}\b|"{key}"|play\.{key}"'
        assert re.search(whole, sources) or re.match("(name|step|loss)_", key), key


@browser.needs_chromium
def test_an_address_that_makes_no_sense_is_passed_over(example):
    bad = "temperature=0&smoothing=2&row=9&moving=x&step=no&reduction=max&weight=0.0:-1&weight=0.9:1&label=0.0:9"
    bad += "&logit=7.0:1&logit=0.9:1&logit=x&logit=0.0:y&ignored=map.0:1&constructor=1&softcap=-1&zloss=inf"
    bad += "&sample=0.0:-1&target=0.0:1&denominator=3"
    assert example.evaluate(
        f"byAddress({bad!r}); begin(fromAddress()); JSON.stringify(state) === JSON.stringify(fresh())"
    )


@browser.needs_chromium
def test_an_address_holds_all_that_was_set(example):
    setting = settings_of(np.random.default_rng(4)) | {"x": np.array([[np.nan, np.inf, -np.inf, 1e-300]] * 3)}
    example.evaluate(f"byAddress({fragment(setting)!r}); goTo('log'); keepInAddress()")
    written = "rows.map(row => list(row.x) + Object.values(row)), list(weight), Object.values(others)"
    states = f"[state, fromAddress(), fresh()].map(({{rows, weight, ...others}}) => [{written}].join())"
    here, kept, start = example.evaluate(states)
    assert here == kept != start and "1e-300" in here


@browser.needs_chromium
def test_buttons_and_plots_move_the_logits(opened):
    logits, labels = worked_example()
    page = opened(logits, labels, learning_rate=2.0)
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(x, torch.tensor(labels)).backward()
    page.evaluate("find('#descend').click()")
    moved = page.evaluate("state.rows.map(row => [...row.x])")
    np.testing.assert_allclose(moved, (x - 2.0 * x.grad).detach(), rtol=1e-14)
    expected = {"even": np.log(4.0), "right": np.log1p(3 * np.exp(-8)), "masked": np.inf, "huge": np.inf}
    for name, loss in expected.items():
        page.evaluate(f"find('[data-try={name}]').click()")
        assert_close(float(page.evaluate("find('#row-loss').value")), loss, name)
    page.evaluate("find('#reset').click(); find('#curve').scrollIntoView(); 0")
    left, top, width = page.evaluate("(box => [box.left, box.top, box.width])(find('#curve').getBoundingClientRect())")
    for kind, share in {"mousePressed": 0.5, "mouseMoved": 0.75, "mouseReleased": 0.75}.items():
        at = {"x": left + 46 + share * (width - 58), "y": top + 60}
        page.send("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **at)
    assert page.evaluate("state.rows[0].x[1]") == pytest.approx(3.0, abs=0.03)
    assert page.errors == []


@browser.needs_chromium
def test_a_page_starts_with_its_call(opened):
    """Whatever the call was told."""
    x, weight = worked_example()[0].astype(np.float64), np.array([1.0, 0.0, 2.0, 0.3])
    target = crossent.SparseTarget(np.array([[0, 2], [1, 0], [3, 1]]), np.array([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]]))
    dense = np.array([[0.5, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.8, 0.0, 0.2]])
    samples = np.array([0.5, 3.0, 0.0])
    options = {"weight": weight, "sample_weight": samples, "softcap": 1.5, "z_loss": 0.1, "label_smoothing": 0.1}
    head = {"function": crossent.linear_cross_entropy, "denominator": 2.0}
    page = opened(x, np.eye(4), target, **head, **options, width=420, dark=True)
    assert browser.violations(page) == [] and page.evaluate("document.documentElement.scrollWidth") <= 420
    setting = PLAIN | {"x": x, "target": dense, "samples": samples, "weight": weight, "softcap": 1.5, "zloss": 0.1}
    setting |= {"smoothing": 0.1, "denominator": 2.0, "reduction": "mean"}
    assert_agrees(json.loads(page.evaluate("read()")), setting)


@browser.needs_chromium
def test_without_rows_there_is_nothing_to_play_with(tmp_path):
    logits, labels = worked_example()
    path = tmp_path / "empty.html"
    path.write_text(crossent.explain(logits[:0], labels[:0]).to_html(), encoding="utf-8")
    with browser.opened(path.as_uri()) as page:
        assert browser.violations(page) == [] and page.errors == []
        said = page.evaluate("document.body.innerText")
    assert "cross_entropy: mean nan over 0 rows" in said and "Step by step" not in said


def test_a_page_of_many_classes_is_small():
    logits = np.random.default_rng(0).normal(size=(4, 50_257)).astype(np.float32)
    assert len(crossent.explain(logits, np.arange(4)).to_html()) < 4 * 4 * 50_257 * 1.34 + 100_000


def test_the_call_as_it_was_given_stands_below():
    logits, labels = worked_example()
    found = crossent.explain(logits, np.array([1, 0, 9]), names=["cat", "dog", "elk", "fox"])
    page = found.to_html()
    assert page.count(html.escape(found.findings[0].sentence)) == 1
    for told in ("y = dog", "log p = x - lse", "the softmax sums to 1", "crossent.cross_entropy(input, target)"):
        assert page.index(told) > page.index('id="given-title"')


def test_where_a_page_differs_from_its_call_it_says_so():
    logits, labels = np.zeros((9, 3), np.float32), np.array([0, 1, 2, 9, 0, 1, 2, 0, 1])
    page = crossent.explain(logits, labels, rows=range(9)).to_html()
    assert "Of 9 rows the page has 8" in page and "Row 3 has the label 9, which is no class" in page
    page = crossent.explain(logits - np.log(3.0), labels % 3, function=crossent.nll_loss).to_html()
    assert "was given log-probabilities" in page and '"given"' not in crossent.explain(logits, labels).to_json()


def test_the_command(tmp_path, capsys):
    logits, labels = worked_example()
    np.savez(tmp_path / "both.npz", logits=logits, labels=labels)
    for files in ([], [str(tmp_path / "both.npz")]):
        with pytest.raises(SystemExit) as stopped:
            _application()(["explain", *files, "--html", str(tmp_path / "play.html")])
        assert stopped.value.code == 0, capsys.readouterr().err
        page = (tmp_path / "play.html").read_text(encoding="utf-8")
        assert page == crossent.explain(logits, labels).to_html()
