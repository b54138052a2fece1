"""Names that a shell completes. Imports neither torch nor Ray, as a shell asks at each press of the key."""

from __future__ import annotations

from typing import Any

from raydistill.catalogue import ABOUT, KINDS
from raydistill.protocol_names import ALL


def kinds(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """What can be listed."""
    return [*ABOUT.items()]


def methods(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """Methods with their papers."""
    return [*KINDS["methods"]().items()]


def models(ctx: Any, incomplete: str) -> list[str]:
    """Networks, those of torchvision too where one begins to ask for them."""
    from raydistill.models.zoo import TORCHVISION, torchvision_names

    own = [*KINDS["models"]()]
    return [*own, *sorted(torchvision_names())] if incomplete.startswith(TORCHVISION[:1]) else [*own, TORCHVISION]


def datasets(ctx: Any, incomplete: str) -> list[str]:
    """Data sets."""
    return [*KINDS["datasets"]()]


def layouts(ctx: Any, incomplete: str) -> list[str]:
    """Tables of papers."""
    from raydistill.reporting.layouts import layout_names

    return [*layout_names()]


def protocols(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """What can be measured."""
    return [*KINDS["protocols"]().items(), (ALL, "each of them")]


def goals(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """What ``raydistill init`` writes experiments for."""
    from raydistill.starting.draft import goals

    return [(name, goal.about) for name, goal in goals().items()]


def listed(ctx: Any, incomplete: str) -> list[tuple[str, str]]:
    """What ``raydistill list KIND`` can tell all about."""
    return methods(ctx, incomplete) if ctx.params.get("kind") == "methods" else []
