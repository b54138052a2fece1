"""How a duration reads."""

from __future__ import annotations


def short_duration(seconds: float) -> str:
    """Return a duration in its largest useful unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}" if seconds >= 100 * size else f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
