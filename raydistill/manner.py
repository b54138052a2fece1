"""Whether the user wants to see how the work gets on."""

from __future__ import annotations

_chosen = {"quiet": False}


def be_quiet(quiet: bool) -> None:
    """Show no progress from now on, only what ``display.say`` says; False takes that back."""
    _chosen["quiet"] = quiet


def is_quiet() -> bool:
    """Whether progress is not to be shown."""
    return _chosen["quiet"]
