"""The public functions by name, for the protocols by which array subclasses take calls over."""

_functions = {}


def public(function):
    """A decorator that makes the function known."""
    _functions[function.__name__] = function
    return function


def named(name):
    return _functions[name]
