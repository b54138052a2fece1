"""The names that an experiment can use, each with a word on what it is. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def methods() -> dict[str, str]:
    """Distillation methods with their papers."""
    from raydistill.methods.registry import METHODS, method_class

    return {name: method_class(name).paper for name in sorted(METHODS)}


def models() -> dict[str, str]:
    """Networks by name; others are ``torchvision/<name>``, ``timm/<name>`` and ``package.module:function``."""
    from raydistill.models.zoo import imagenet_names, names

    return dict.fromkeys(names(), "") | dict.fromkeys(imagenet_names(), "for ImageNet, 224 x 224 pixels")


def datasets() -> dict[str, str]:
    """Data sets."""
    from raydistill.data.names import DATA_SETS

    return dict.fromkeys(sorted(DATA_SETS), "")


def protocols() -> dict[str, str]:
    """What ``raydistill eval`` can measure."""
    from raydistill.protocol_names import PROTOCOLS

    return dict(PROTOCOLS)


def layouts() -> dict[str, str]:
    """Tables of papers that ``raydistill compare`` can fill."""
    from raydistill.reporting.layouts import layout_names, load_layout

    known = {name: load_layout(name) for name in layout_names()}
    return {name: f"{layout.reference}: {layout.title}" for name, layout in known.items()}


KINDS: Mapping[str, Callable[[], dict[str, str]]] = {
    "methods": methods,
    "models": models,
    "datasets": datasets,
    "protocols": protocols,
    "layouts": layouts,
}
"""What can be listed."""

ABOUT: Mapping[str, str] = {
    "methods": "what a student learns by, with the papers; `raydistill list methods NAME` tells all about one",
    "models": "networks for students and teachers",
    "datasets": "images that `data.name` can name",
    "protocols": "what `raydistill eval` can measure",
    "layouts": "tables of papers that `raydistill compare` can fill",
}
"""A line on each of them."""

NOTES: Mapping[str, str] = {
    "models": "also torchvision/<name>, timm/<name>, and package.module:function: code of your own, which is run",
}
"""What a list cannot name one by one."""
