"""Names of the measures that compare a student's embeddings with the teacher's, as experiments write them.

``neighbours@K`` and ``cka`` need no labels. A run reports them as ``val/neighbours@K`` and ``val/cka``.
"""

from __future__ import annotations

import re

from raydistill.errors import ConfigError, did_you_mean

CKA, NEIGHBOURS = "cka", "neighbours"
VALIDATION = "val/"
_AT = "@"
_USUAL = 10


def neighbours_of(measure: str) -> int | None:
    """Return K of ``neighbours@K``, None of ``cka``.

    Raises:
        ConfigError: for any other name.
    """
    if measure == CKA:
        return None
    name, _, count = measure.partition(_AT)
    if name != NEIGHBOURS:
        example = f"{NEIGHBOURS}{_AT}{count or _USUAL}"
        raise ConfigError(f"unknown measure{did_you_mean(measure, [example, CKA])} (known: {NEIGHBOURS}@K, {CKA})")
    if not re.fullmatch("[1-9][0-9]*", count):
        raise ConfigError(f"K of {NEIGHBOURS}@K must be a whole number from 1 on, as in {NEIGHBOURS}{_AT}{_USUAL}")
    return int(count)


def measure_behind(metric: str) -> str | None:
    """Return the measure that a metric such as ``val/cka`` reports, None of any other metric.

    Raises:
        ConfigError: where the metric looks like a measure but is none.
    """
    measure = metric.removeprefix(VALIDATION)
    if measure == metric or not (_AT in measure or measure in (CKA, NEIGHBOURS)):
        return None
    neighbours_of(measure)
    return measure
