"""Every registered method with hyper-parameters small enough for the tiny setting, and variants of some."""

from __future__ import annotations

from typing import Any

from raydistill.methods.base import Method, Setting
from raydistill.methods.registry import METHODS, method_class
from tests.methods.support import tiny_setting

SMALL: dict[str, dict[str, Any]] = {
    "cocord": {"queue": 12, "hidden": 9, "dimension": 8, "predictor_hidden": 4},
    "compress": {"queue": 12, "momentum": 0.9},
    "crd": {"negatives": 5, "dimension": 8},
}
SAME_MAPS: set[str] = set()
"""Methods whose student and teacher must have maps of one shape."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ce smoothed": ("ce", {"label_smoothing": 0.1}),
    "cocord one-sided": ("cocord", {"symmetric": False}),
    "compress 1q": ("compress", {"queues": "1q"}),
    "compress without copy": ("compress", {"momentum": 0.0}),
    "crd instance": ("crd", {"exclude": "instance"}),
    "crd paper": ("crd", {"variant": "paper"}),
    "kd standardised": ("kd", {"standardise": True}),
    "protocpc code": ("protocpc", {"variant": "code"}),
    "protocpc softmax": ("protocpc", {"assignment": "softmax"}),
}


def build_cases() -> dict[str, Method]:
    """Label -> method."""
    chosen: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in METHODS} | VARIANTS
    return {label: method_class(name)(**(SMALL.get(name, {}) | extra)) for label, (name, extra) in chosen.items()}


def setting_of(method: Method) -> Setting:
    """The setting that a case runs in."""
    return tiny_setting(same_maps=method.name in SAME_MAPS)
