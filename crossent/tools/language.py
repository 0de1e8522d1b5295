"""What is said to people, in their language: `messages.toml` has every message in each."""

import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.resources import files
from typing import Any
from unicodedata import east_asian_width

LANGUAGES = ("en", "zh")
_speaking = ContextVar("speaking", default="en")
_naming: ContextVar[Callable[[int], str | None]] = ContextVar("naming", default=lambda c: None)
_CHARACTERS = "\u2e80-\u9fff\uff00-\uffef"
_WIDE = re.compile(f"(?<=[{_CHARACTERS}]) +(?=[{_CHARACTERS}])")
_PIECES = re.compile(f"(?:[（]?[{_CHARACTERS}]|[^\\s{_CHARACTERS}]+)[，。：；、）]*|\\s+")


@cache
def messages() -> dict[str, Any]:
    return tomllib.loads(files("crossent.tools").joinpath("messages.toml").read_text("utf-8"))


@contextmanager
def speaking(language: str, naming: Callable[[int], str | None] = lambda c: None) -> Iterator[None]:
    """What is said in here is said in this language, English if it is none of ours, with these names of classes."""
    tokens = _speaking.set(language if language in LANGUAGES else "en"), _naming.set(naming)
    try:
        yield
    finally:
        _speaking.reset(tokens[0])
        _naming.reset(tokens[1])


def name_of(c: int) -> str | None:
    """The name of a class, None where it has none."""
    return _naming.get()(c)


def say(key: str, **values: Any) -> str:
    """The message of this name, with these values in their places."""
    found = messages()
    for part in key.split("."):
        found = found[part]
    text = found[_speaking.get()].format(**values)
    return _WIDE.sub("", text)


@cache
def _patterns() -> dict[re.Pattern, str]:
    """What plans say in English, as patterns, and what these messages are called."""
    escaped = {key: re.escape(message["en"]) for key, message in messages()["from_english"].items()}
    return {re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", text), re.DOTALL): key for key, text in escaped.items()}


def translated(text: str) -> str:
    """What a plan says in English, in the language that is spoken, where a message has it."""
    if _speaking.get() != "en":
        for pattern, key in _patterns().items():
            if found := pattern.fullmatch(text):
                places = {name: translated(part) for name, part in found.groupdict().items()}
                return say(f"from_english.{key}", **places)
    return text


def width(text: str) -> int:
    """The columns of a terminal that it takes."""
    return len(text) + sum(east_asian_width(character) in "WF" for character in text)


def padded(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def line_starts(text: str, room: int) -> list[int]:
    """Where lines begin after the first, if none is to take more columns: at a word, or at any Chinese character."""
    starts, used = [], 0
    for piece in _PIECES.finditer(text):
        if used and used + width(piece[0].rstrip()) > room:
            starts.append(piece.start())
            used = 0
        used += width(piece[0])
    return starts
