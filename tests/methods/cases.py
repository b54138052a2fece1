"""Every registered method with hyper-parameters small enough for the tiny setting, and variants of some."""

from __future__ import annotations

from typing import Any

from raydistill.methods.base import Method, Setting
from raydistill.methods.registry import METHODS, method_class
from tests.methods.support import tiny_setting

SMALL: dict[str, dict[str, Any]] = {
    "ab": {"weight": 1.0},
    "cc": {"dimension": 8},
    "cluster_cls": {"clusters": 4},
    "cocord": {"queue": 12, "hidden": 9, "dimension": 8, "predictor_hidden": 4},
    "compress": {"queue": 12, "momentum": 0.9},
    "crd": {"negatives": 5, "dimension": 8},
    "dino": {"prototypes": 11, "hidden": 9, "bottleneck": 5, "local_crops": 2, "freeze_last_layer": 0},
    "fsp": {"weight": 1.0},
    "gckt": {"negatives": 5, "dimension": 8},
    "info_nce": {"negatives": 5, "dimension": 8},
    "moco_v2": {"queue": 12, "hidden": 9, "dimension": 8},
    "seed": {"queue": 12},
    "sskd": {"pretrain_epochs": 1},
    "swav": {"prototypes": 11, "hidden": 9, "dimension": 8, "local_crops": 2, "freeze_prototypes": 0},
    "wcord": {"negatives": 5, "dimension": 8},
}
SELF = SMALL["dino"]
SAME_MAPS: set[str] = {"fsp", "kdsvd"}
"""Methods whose student and teacher must have maps of one shape."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "at code": ("at", {"variant": "code"}),
    "cc paper": ("cc", {"variant": "paper"}),
    "cc paper bilinear": ("cc", {"variant": "paper", "kernel": "bilinear"}),
    "ce smoothed": ("ce", {"label_smoothing": 0.1}),
    "cocord one-sided": ("cocord", {"symmetric": False}),
    "compress 1q": ("compress", {"queues": "1q"}),
    "compress without copy": ("compress", {"momentum": 0.0}),
    "crd instance": ("crd", {"exclude": "instance"}),
    "crd paper": ("crd", {"variant": "paper"}),
    "dino with free prototypes": ("dino", {"norm_last_layer": False, "batch_norm": True, "local_crops": 0}),
    "dist standardised": ("dist", {"standardise": True}),
    "dkd standardised": ("dkd", {"standardise": True, "warmup": 0}),
    "dml standardised": ("dml", {"standardise": True}),
    "fsp paper": ("fsp", {"variant": "paper"}),
    "ft code": ("ft", {"variant": "code", "p": 2}),
    "fitnet from larger": ("fitnet", {"stage": 1, "teacher_stage": 2}),
    "fitnet from smaller": ("fitnet", {"stage": 2, "teacher_stage": 1}),
    "kd standardised": ("kd", {"standardise": True}),
    "kd sum": ("kd", {"ensemble": "sum"}),
    "kdsvd two directions": ("kdsvd", {"k": 2}),
    "moco_v2 in groups": ("moco_v2", {"key_group": 3}),
    "one ramped up": ("one", {"rampup": 2}),
    "pkt code": ("pkt", {"variant": "code"}),
    "protocpc code": ("protocpc", {"variant": "code"}),
    "protocpc compress": ("protocpc", {"mode": "compress", "prototypes": 11, "hidden": 9, "local_crops": 2}),
    "protocpc self": ("protocpc", {"mode": "self", **SELF}),
    "protocpc self centred": (
        "protocpc",
        {"mode": "self", "assignment": "softmax", "centering": True, "variant": "code", **SELF},
    ),
    "protocpc softmax": ("protocpc", {"assignment": "softmax"}),
    "reviewkd unequal sizes": ("reviewkd", {"stages": (1, 3), "teacher_stages": (2, 1), "max_width": 3}),
    "rkd code": ("rkd", {"variant": "code"}),
    "rkd distance": ("rkd", {"angle_weight": 0.0}),
    "seed without own key": ("seed", {"own_key": False}),
    "swav with queue": ("swav", {"queue": 12, "queue_from": 1}),
    "sp code": ("sp", {"variant": "code"}),
    "sskd selective": ("sskd", {"keep_turned": 0.5, "keep_similarities": 0.5, "standardise": True}),
    "vid unequal sizes": ("vid", {"stages": (1, 2), "teacher_stages": (2, 1)}),
}


def build_cases() -> dict[str, Method]:
    """Label -> method."""
    chosen: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in METHODS} | VARIANTS
    return {label: method_class(name)(**(SMALL.get(name, {}) | extra)) for label, (name, extra) in chosen.items()}


def setting_of(method: Method) -> Setting:
    """The setting that a case runs in."""
    return tiny_setting(same_maps=method.name in SAME_MAPS)
