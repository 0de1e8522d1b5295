"""The answer of `explain`: plain data, and the ways to look at it."""

from dataclasses import asdict, dataclass, field, replace
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossent import Plan
from crossent.tools import plain_json
from crossent.tools.explain import words
from crossent.tools.language import say, speaking

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

Position = int | tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A row whose steps are shown. `label` is None for class probabilities, `classes` are the classes shown.

    `state` is "counts", "ignored" or "bad label"; `reason` says why this row was chosen.
    """

    position: Position
    label: int | None
    state: str
    reason: str
    classes: tuple[int, ...]
    loss: float

    def picks(self, c: int) -> bool:
        """Whether the label picks this class."""
        return self.state == "counts" and c == self.label


@dataclass(frozen=True)
class Step:
    """A step of the computation, in float64.

    `level` says what `values` holds: "class", for each row shown a tuple of one number for each class shown, None where
    the class takes no part; "row", a number for each row shown; "call", one number. `others` is, for each row shown,
    the sum over the classes that are not shown, None where that sum means nothing. `of_target` says that the step is
    about the target, which only rows that count have.
    """

    name: str
    formula: str
    level: str
    values: Any
    note: str = ""
    others: tuple[float | None, ...] = ()
    of_target: bool = False


@dataclass(frozen=True)
class Check:
    """Two ways to one number: to how many digits they agree, and whether that is all that the dtype allows for.

    `digits` is at most 16, which stands for equality.
    """

    name: str
    digits: float
    passed: bool


@dataclass(frozen=True)
class Finding:
    """Something worth knowing about a call. `severity` is "note", "warning" or "error".

    `sentence` says what, where and what to do; `rows` and `classes` are the first ones concerned.
    """

    name: str
    severity: str
    sentence: str
    rows: tuple[Position, ...] = ()
    classes: tuple[int, ...] = ()


@dataclass(frozen=True, repr=False)
class Explanation:
    """What `crossent.explain` found: the steps with their numbers, the checks, the findings and the plan of the call.

    `result` is what the function returned, None for reduction "none"; with bad labels, which the function refuses, it
    is that of the other rows. `losses` are those of all rows, in the shape of the labels. `styles` say the call as a
    "module", what it holds and what it is then called with, and as a "function". `baselines` are the mean losses of
    models that say the same of every row, in nats: "uniform" of equal probabilities, "label_entropy" of each class's
    share of the targets; "mean" is the loss beside them, "worse_than_uniform" says how it compares. No row, no
    baselines. `names` are those of the classes shown, where they have some. `lang` is the language of all sentences.
    """

    function: str
    shape: tuple[int, ...]
    dtype: str
    classes: int
    reduction: str
    result: float | None
    rows: tuple[Row, ...]
    steps: tuple[Step, ...]
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    summary: dict[str, Any]
    styles: dict[str, str]
    baselines: dict[str, Any]
    plan: Plan
    losses: np.ndarray = field(compare=False)
    given: Any = field(compare=False)  # what a page starts from that can be played with
    names: dict[int, str] = field(default_factory=dict)
    lang: str = "en"

    @property
    def faulty(self) -> bool:
        """Whether a finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    def print(self, console: "Console | None" = None) -> None:
        """Print to a rich console, by default to standard output: colours in a terminal, plain text elsewhere.

        Without rich it is plain text everywhere.
        """
        from crossent.tools.explain.lines import show

        with speaking(self.lang, self.names.get):
            if find_spec("rich"):
                show(self, console)
            else:
                print(self)

    def __str__(self) -> str:
        from crossent.tools.explain.lines import text

        with speaking(self.lang, self.names.get):
            return text(self)

    def __repr__(self) -> str:
        found = f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}"
        return f"<Explanation of {self.function}: {self.summary['rows']} rows, {self.classes} classes, {found}>"

    def _repr_html_(self) -> str:
        if not find_spec("jinja2"):
            return f"<pre>{escape(str(self))}</pre>"
        from crossent.tools.pages import rendered

        with speaking(self.lang, self.names.get):
            return rendered("crossent.tools.explain", "explanation.html", e=self, words=words, say=say)

    def to_html(self) -> str:
        """A page of its own that asks for no other file, on which all that the loss depends on can be moved.

        It has the first rows shown, eight at most. Without rows it is to be read only. Needs jinja2.
        """
        _require("jinja2", "to_html")
        from crossent.tools.explain.play import page

        return page(self)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """A matplotlib figure: logits and probabilities as heat maps with the picked entries marked, and the losses.

        Written to `path` where one is given, in the format that its ending names. Where the language is Chinese and no
        font with its letters is installed, it is in English, and a warning says so once. Needs matplotlib.
        """
        _require("matplotlib", "plot")
        from crossent.tools.explain.plot import figure

        with speaking(self.lang, self.names.get):
            made = figure(self)
        if path is not None:
            made.savefig(path)
        return made

    def to_dict(self) -> dict[str, Any]:
        """All but `losses` and `given`, in lists, dicts, numbers and strings; nan, inf and -inf are these words."""
        found = asdict(replace(self, losses=np.empty(0), given=None))
        del found["losses"], found["given"]
        return plain_json.plain(found)

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict` as JSON, which has no word for nan."""
        return plain_json.text(self.to_dict(), indent)


def _require(package: str, method: str) -> None:
    if not find_spec(package):
        raise ImportError(f"Explanation.{method} needs {package}: pip install crossent[explain]")
