"""The pages of score, compare, calibrate and watch: one file with its plots in it, which asks no other host for
anything."""

from collections.abc import Iterable
from typing import Any

import crossent
from crossent.tools.pages import rendered


def made(
    kind: str, title: str, said: list[str], notes: Iterable[str], texts: Iterable[tuple[str, str]] = (), **shown: Any
) -> str:
    """`texts` are titles and what is shown below them as it is."""
    values = {"kind": kind, "title": title, "said": said, "notes": notes, "texts": texts}
    return rendered("crossent.tools.score", "report.html", version=crossent.__version__, **values, **shown)
