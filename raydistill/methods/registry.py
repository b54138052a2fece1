"""Names of the methods and where each one lives. Adding a method is one line here."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from raydistill.errors import ConfigError, did_you_mean
from raydistill.methods.base import Method

METHODS: dict[str, str] = {
    "ab": "AB",
    "at": "AT",
    "cc": "CC",
    "ce": "CrossEntropy",
    "cluster_cls": "ClusterClassification",
    "cocord": "CoCoRD",
    "compress": "CompRes",
    "crd": "CRD",
    "dino": "DINO",
    "dist": "DIST",
    "dkd": "DKD",
    "dml": "DML",
    "fitnet": "FitNet",
    "fsp": "FSP",
    "ft": "FT",
    "gckt": "GCKT",
    "info_nce": "InfoNCE",
    "kd": "KD",
    "kdsvd": "KDSVD",
    "lckt": "LCKT",
    "moco_v2": "MoCoV2",
    "nst": "NST",
    "one": "ONE",
    "pkt": "PKT",
    "protocpc": "ProtoCPC",
    "reg": "Regression",
    "reg_bn": "RegressionBN",
    "reviewkd": "ReviewKD",
    "rkd": "RKD",
    "seed": "SEED",
    "sp": "SP",
    "sskd": "SSKD",
    "swav": "SwAV",
    "vid": "VID",
    "wcord": "WCoRD",
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
