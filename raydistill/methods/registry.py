"""Names of the methods and where each one lives. Adding a method is one line here."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from raydistill.errors import ConfigError, did_you_mean
from raydistill.methods.base import Method

METHODS: dict[str, str] = {
    "ce": "CrossEntropy",
    "cocord": "CoCoRD",
    "compress": "CompRes",
    "crd": "CRD",
    "kd": "KD",
    "protocpc": "ProtoCPC",
}
"""Name -> class; the class stands in the file of the method's name."""


@cache
def method_class(name: str) -> type[Method]:
    """Return the class of a method. Raises ``ConfigError`` for an unknown name."""
    if name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise ConfigError(f"unknown method '{name}'{did_you_mean(name, METHODS)} (known: {known})")
    found: type[Method] = getattr(import_module(f"raydistill.methods.{name}"), METHODS[name])
    return found
