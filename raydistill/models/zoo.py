"""Names of networks, and building a network from its name.

Importing this module imports neither torch nor torchvision, so that a configuration can be checked within a
second.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from raydistill.models.taps import Tapped

TORCHVISION = "torchvision/"
TIMM = "timm/"
FUNCTION = ":"
"""What separates module and function in the name of a network of one's own."""


@dataclass(frozen=True)
class _Entry:
    """Where a network's class lives and what it is called with besides classes and channels."""

    module: str
    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


_QUADRUPLE = (32, 64, 128, 256)

_ZOO: dict[str, _Entry] = {
    **{f"resnet{d}": _Entry("resnet", "CifarResNet", {"depth": d}) for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": _Entry("resnet", "CifarResNet", {"depth": d, "widths": _QUADRUPLE}) for d in (8, 32)},
    **{f"wrn_{d}_{w}": _Entry("wrn", "WideResNet", {"depth": d, "width": w}) for d in (16, 40) for w in (1, 2)},
    **{f"vgg{d}": _Entry("vgg", "Vgg", {"depth": d}) for d in (8, 11, 13, 16, 19)},
    "mobilenet_v2_half": _Entry("mobilenet", "MobileNetV2", {"width": 0.5}),
    "shufflenet_v1": _Entry("shufflenet", "ShuffleNetV1"),
    "shufflenet_v2": _Entry("shufflenet", "ShuffleNetV2"),
    "resnet50_cifar": _Entry("resnet", "CifarResNet50"),
}


# Built of torchvision's layers, hence apart: they want 224 x 224 pixels.
_IMAGENET: dict[str, _Entry] = {
    "resnet50x4": _Entry("imagenet", "wide_resnet50", {"width": 4}),
    "deit_small_16": _Entry("imagenet", "deit_small"),
}

_TAP_NAME = re.compile(r"embedding|features/\d+")
_TOKEN_CHOICES = ("cls", "mean")


def names() -> tuple[str, ...]:
    """Return the names of the platform's own networks for small images."""
    return tuple(_ZOO)


def imagenet_names() -> tuple[str, ...]:
    """Return the names of networks for ImageNet that torchvision does not have."""
    return tuple(_IMAGENET)


def split_tap(name: str, path: str) -> tuple[str, str]:
    """Split ``layer4`` or ``blocks.11@mean`` into the module's path and how tokens become a vector, which may be empty.

    Raises:
        ConfigError: if ``name`` is no output that can be tapped, or the text behind ``@`` is unknown.
    """
    if not _TAP_NAME.fullmatch(name):
        raise ConfigError(f"taps.{name}: the outputs that can be tapped are embedding and features/<number>")
    module, at, how = path.partition("@")
    if not module or (at and how not in _TOKEN_CHOICES) or (at and name != "embedding"):
        raise ConfigError(f"taps.{name} = '{path}': give a module's path; for embedding with @cls or @mean behind it")
    return module, how


def check_name(name: str) -> None:
    """Raise ``ConfigError`` for a name that no network has.

    Names of torchvision are looked up in its source text; names of timm and functions can only be checked when
    one is built.
    """
    if name.startswith(TORCHVISION):
        known = torchvision_names()
        if known and name not in known:
            raise ConfigError(f"torchvision has no network '{name}'{did_you_mean(name, known)}")
    elif name.startswith(TIMM):
        if name == TIMM:
            raise ConfigError("'timm/' needs the name of a network behind it")
    elif FUNCTION in name:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", name):
            raise ConfigError(
                f"model '{name}': a function of one's own, which is code that runs, is named package.module:function"
            )
    elif name not in _ZOO and name not in _IMAGENET:
        own = [*_ZOO, *_IMAGENET]
        libraries = f"{TORCHVISION}<name>, {TIMM}<name>, package.module:function (your own code, which is run)"
        of_torchvision = TORCHVISION + name
        near = [of_torchvision] if of_torchvision in torchvision_names() else [*own, *torchvision_names()]
        hint = did_you_mean(name, near)
        raise ConfigError(f"unknown model '{name}'{hint} (known: {', '.join(own)}, {libraries})")


def build_model(name: str, num_classes: int, in_channels: int = 3) -> Tapped:
    """Build a network with fresh weights.

    Args:
        name: one of ``names()`` or ``imagenet_names()``, ``torchvision/<name>``, ``timm/<name>`` or
            ``package.module:function``.
        num_classes: width of the logits.
        in_channels: channels of the images.

    Returns:
        A network that is called as ``model(images, outputs=("logits", "embedding")) -> dict``.
    """
    check_name(name)
    for what, number in (("num_classes", num_classes), ("in_channels", in_channels)):
        if number < 1:
            hint = (
                "; images without labels need data.num_classes, the width of the teacher's classifier"
                if what == "num_classes"
                else ""
            )
            raise ConfigError(f"model '{name}': {what} must be at least 1, not {number}{hint}")
    if FUNCTION in name:
        functions = importlib.import_module("raydistill.models.hooked")
        foreign: Tapped = functions.build_function(name, num_classes, in_channels)
        return foreign
    if name.startswith((TORCHVISION, TIMM)):
        library, _, plain_name = name.partition("/")
        hooked = importlib.import_module("raydistill.models.hooked")
        build = {"torchvision": hooked.build_torchvision, "timm": hooked.build_timm}[library]
        borrowed: Tapped = build(plain_name, num_classes, in_channels)
        return borrowed
    entry = _ZOO.get(name) or _IMAGENET[name]
    factory = getattr(importlib.import_module(f"raydistill.models.{entry.module}"), entry.factory)
    model: Tapped = factory(num_classes, in_channels, **entry.arguments)
    return model


@cache
def torchvision_names() -> frozenset[str]:
    """Return the classification networks of the installed torchvision, prefixed; nothing without it.

    Importing torchvision would import torch, which takes seconds; its sources mark every network with a
    decorator.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    found: set[str] = set()
    for source in Path(spec.submodule_search_locations[0], "models").glob("*.py"):
        if not source.name.startswith("_"):
            text = source.read_text(encoding="utf-8")
            found |= set(re.findall(r"^@register_model\(\).*?^def (\w+)\(", text, re.DOTALL | re.MULTILINE))
    return frozenset(TORCHVISION + name for name in found)
