"""Search spaces over dotted keys of the experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raydistill.config import Experiment
from raydistill.errors import ConfigError, did_you_mean

KINDS: dict[str, str] = {
    "choice": "a list of values",
    "grid": "a list of values, each of which is tried",
    "uniform": "[low, high]",
    "loguniform": "[low, high], both above 0",
    "quniform": "[low, high, step]",
    "randint": "[low, high], high excluded",
}


def check_space(experiment: Experiment) -> None:
    """Try the ends of every range and every choice on the experiment, so that a sweep cannot fail half-way.

    Raises:
        ConfigError: with one line for each wrong entry.
    """
    if experiment.tune is None:
        raise ConfigError("tune: required by this command, but not given")
    problems: list[str] = []
    for key, spec in experiment.tune.space.items():
        try:
            for value in _extremes(key, spec):
                experiment.override({key: value})
        except ConfigError as error:
            problems.extend(f"tune.space.{key}: {line}" for line in str(error).splitlines())
    if experiment.tune.search == "tpe":
        grids = [key for key, spec in experiment.tune.space.items() if "grid" in spec]
        problems.extend(f"tune.space.{key}: a grid cannot be searched by tpe; use choice" for key in grids)
    if problems:
        raise ConfigError("\n".join(problems))


def _extremes(key: str, spec: Mapping[str, Any]) -> Sequence[Any]:
    kind, values = _entry(spec)
    if kind in ("choice", "grid"):
        return values
    wanted = 3 if kind == "quniform" else 2
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != len(values) or len(values) != wanted or not values[0] < values[1]:
        raise ConfigError(f"{kind} = {list(values)}: must be {KINDS[kind]}, with low below high")
    if kind == "loguniform" and values[0] <= 0:
        raise ConfigError(f"loguniform = {list(values)}: both ends must be above 0")
    return (values[0], values[1] - 1) if kind == "randint" else values[:2]


def _entry(spec: Mapping[str, Any]) -> tuple[str, Sequence[Any]]:
    if len(spec) != 1:
        raise ConfigError(f"{dict(spec)}: give one of {', '.join(KINDS)}")
    ((kind, values),) = spec.items()
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of range '{kind}'{did_you_mean(kind, KINDS)} (known: {', '.join(KINDS)})")
    if not isinstance(values, list | tuple) or not values:
        raise ConfigError(f"{kind} = {values!r}: must be {KINDS[kind]}")
    return kind, values


def domains(space: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return Ray Tune's domain for each key of a space that ``check_space`` let pass."""
    from ray import tune

    makers: dict[str, Callable[[Sequence[Any]], Any]] = {
        "choice": lambda values: tune.choice(list(values)),
        "grid": lambda values: tune.grid_search(list(values)),
        "uniform": lambda values: tune.uniform(*values),
        "loguniform": lambda values: tune.loguniform(*values),
        "quniform": lambda values: tune.quniform(*values),
        "randint": lambda values: tune.randint(*values),
    }
    return {key: makers[kind](values) for key, (kind, values) in ((key, _entry(spec)) for key, spec in space.items())}
