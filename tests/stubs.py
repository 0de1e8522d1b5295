"""The stubs by which type checkers find torch's own modules below `crossent.nn`; `python tests/stubs.py` writes them.

Each is an `__init__.pyi` in a folder of its own: of a stub beside which there is no code pyright says that it found no
source, of one in a folder it does not.
"""

import importlib
import inspect
import pkgutil
import warnings
from pathlib import Path

import torch.nn

from crossent.nn._submodules import OWN

TORCH = "2.13"  # that they are written with
NN = Path(__file__).parents[1] / "crossent/nn"


def stubs():
    """Of each public module below torch.nn that is not ours, the stub's path below crossent/nn, and its text."""
    names = [found.name.removeprefix("torch.nn.") for found in pkgutil.walk_packages(torch.nn.__path__, "torch.nn.")]
    names = [name for name in names if name not in OWN and not any(part.startswith("_") for part in name.split("."))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # All before the first is looked at: a package has a module as its attribute once somebody has imported it.
        modules = [importlib.import_module(f"torch.nn.{name}") for name in names]
    for name, module in zip(names, modules):
        yield Path(*name.split("."), "__init__.pyi"), text_of(f"torch.nn.{name}", module)


def text_of(name, module):
    if Path(inspect.getfile(module)).with_suffix(".pyi").exists():  # torch's own stub, which has no hidden names
        return f"from {name} import *\n"
    starred = getattr(module, "__all__", [each for each in vars(module) if not each.startswith("_")])
    hidden = [each for each, value in vars(module).items() if each not in starred and belongs(value, module)]
    named = [f"from {name} import {each} as {each}\n" for each in sorted(hidden)]
    # That they are not for everybody is torch's to say: who imports them from torch.nn can import them from here.
    return "".join([*["# pyright: reportPrivateImportUsage=false\n"] * bool(named), f"from {name} import *\n", *named])


def belongs(value, module):
    """Whether it is a public module below this one, or a class or a function that is defined there."""
    if inspect.ismodule(value):
        below = value.__name__.removeprefix(f"{module.__name__}.")
        return below != value.__name__ and not below.startswith("_")
    return (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__


if __name__ == "__main__":
    for path, text in stubs():
        (NN / path).parent.mkdir(parents=True, exist_ok=True)
        (NN / path).write_text(text)
