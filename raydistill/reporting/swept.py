"""Where the values of a swept key lie on an axis: numbers, logarithms of numbers, or names in their order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raydistill.reporting.sweeps import Sweep

WIDE = 50
"""From this ratio of its largest to its smallest value on, a key of a ready-made space is shown on a log axis."""


@dataclass(frozen=True)
class SweptKey:
    """A swept key and its values in the trials that ended.

    Attributes:
        key: dotted key of the experiment.
        places: for each trial a number, or a position in ``names``; missing where the key was not set.
        names: the values that occur, in the order of the axis; empty where the places are numbers.
        logarithmic: the places belong on a logarithmic axis.
    """

    key: str
    places: pd.Series
    names: tuple[str, ...] = ()
    logarithmic: bool = False

    def label(self, place: float) -> str:
        """Return how the value at a place reads."""
        return self.names[int(place)] if self.names else short_number(place)


def short_number(value: float) -> str:
    """Return four digits of a number, or all of those before its point."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.10g}"


def swept_keys(sweep: Sweep) -> list[SweptKey]:
    """Return the swept keys that at least one trial that ended has a value of."""
    keys = [_swept(key, sweep.ended[key], sweep.space[key]) for key in sweep.keys]
    return [key for key in keys if key.places.notna().any()]


def _swept(key: str, values: pd.Series, given: Mapping[str, Any]) -> SweptKey:
    kind = next((kind for kind in given if kind != "when"), "")
    choices = given.get(kind)
    numbers = pd.to_numeric(values, errors="coerce").astype(float).replace([math.inf, -math.inf], math.nan)
    is_named = pd.api.types.is_bool_dtype(values) or not numbers[values.notna()].notna().all()
    if kind in ("choice", "grid") or (not kind and is_named):
        return _named(key, values, choices if isinstance(choices, list | tuple) else (), conditional="when" in given)
    present = numbers.dropna()
    above_zero = len(present) > 0 and bool((present > 0).all())
    is_wide = not kind and above_zero and present.max() / present.min() >= WIDE
    return SweptKey(key, numbers, logarithmic=above_zero and ("log" in kind or is_wide))


def _named(key: str, values: pd.Series, choices: Sequence[Any], *, conditional: bool) -> SweptKey:
    # An empty cell is the choice "null" where that is one, and otherwise a key whose condition does not hold.
    labels = values.map(_name, na_action="ignore")
    if None in choices and not conditional:
        labels = labels.where(labels.notna(), "null")
    found = set(labels.dropna())
    names = [name for name in dict.fromkeys([*map(_name, choices), *labels.dropna()]) if name in found]
    # The baseline's value, which need not be among the choices, belongs between its neighbours.
    numbers = [_number(name) for name in names]
    if all(math.isfinite(number) for number in numbers):
        names = [name for _, name in sorted(zip(numbers, names, strict=True))]
    places = labels.map({name: float(place) for place, name in enumerate(names)}).astype(float)
    return SweptKey(key, places, names=tuple(names))


def _name(value: object) -> str:
    """Return one name for what YAML and pandas read in their own ways, such as true and True, or 4 and 4.0."""
    text = "null" if value is None else " ".join(str(value).split())
    if text in ("True", "False"):
        return text.lower()
    number = _number(text)
    return f"{number:.10g}" if math.isfinite(number) else text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
