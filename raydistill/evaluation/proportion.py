"""Terms of a loss of which one leaves nothing for another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LARGEST_RATIO = 1000.0


def proportion_warnings(shares: Mapping[str, float]) -> list[str]:
    """One line for each term whose share in the loss is less than a thousandth of the largest one's.

    Args:
        shares: name of a method -> its weight times its loss. One that is exactly 0 has nothing to learn from any more,
            or never had, and is left out.
    """
    sizes = {name: abs(share) for name, share in shares.items() if share}
    if not sizes:
        return []
    largest = max(sizes, key=lambda name: sizes[name])
    return [
        f"{largest} is more than {LARGEST_RATIO:.0f} times {name} in the loss, which hardly sees it; "
        f"compare methods.{largest}.weight and methods.{name}.weight"
        for name, size in sizes.items()
        if size * LARGEST_RATIO < sizes[largest]
    ]


def history_warnings(history: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> list[str]:
    """The same for the records of a run's epochs: one line for each time that a term fell behind."""
    found: list[str] = []
    before: set[str] = set()
    for record in history:
        shares = {
            name: weight * record[f"train/{name}"] for name, weight in weights.items() if f"train/{name}" in record
        }
        new = proportion_warnings(shares)
        found += [f"epoch {record['epoch']:.0f}: {text}" for text in new if text not in before]
        before = set(new)
    return found
