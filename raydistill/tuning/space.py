"""Search spaces over dotted keys of the experiment, checked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydistill.config import Experiment
from raydistill.errors import ConfigError, did_you_mean
from raydistill.methods.base import Method

KINDS: dict[str, str] = {
    "choice": "a list of values",
    "grid": "a list of values, each of which is tried",
    "uniform": "[low, high]",
    "loguniform": "[low, high], both above 0",
    "quniform": "[low, high, step]",
    "qloguniform": "[low, high, step], all above 0",
    "randint": "[low, high], high excluded",
    "int": "[low, high], both included",
    "logint": "[low, high], both included and above 0",
}
LISTS = ("choice", "grid")
WHOLE = ("randint", "int", "logint")
LOGARITHMIC = ("loguniform", "qloguniform", "logint")
SHARED = ("name", "output", "backup", "teacher", "ensemble", "cache", "scale", "evaluate", "track", "tune")
"""Sections that all trials of a sweep have in common, as they have one copy of images and teacher outputs."""
NEVER = {"seed": "cannot be swept: tune.repeats trains the best configurations with several seeds"}
SWEPT_OF_DATA = "data.augment."

OF_THE_START = ("rate", "pretrain_lr", "initial_variance")
"""Numbers of methods that count when a student begins, for sizes of heads and the like, and not after that."""

Values = dict[str, Any]
"""Dotted key -> value."""


@dataclass(frozen=True)
class Range:
    """What one key may be, and ``when``: values of other keys with which alone it counts."""

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]]

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All values of a list, the ends of anything else."""
        if self.kind in LISTS:
            return self.values
        return (self.values[0], self.values[1] - 1) if self.kind == "randint" else self.values[:2]

    def nearest(self, number: float) -> float:
        """Put a number onto the steps, if there are such, and between the ends."""
        if self.kind.startswith("q"):
            number = round(number / self.values[2]) * self.values[2]
        low, high = self.extremes
        inside: float = min(high, max(low, number))
        return inside

    @property
    def switches(self) -> bool:
        """Whether it takes a whole method in or out."""
        return _is_method(self.key) and any(isinstance(value, bool) for value in self.values)


def parse_space(experiment: Experiment) -> tuple[Range, ...]:
    """Return the ranges of an experiment's space, those that others depend on first, with ``auto`` spelt out.

    Raises:
        ConfigError: with one line for each entry that cannot be read.
    """
    if experiment.tune is None:
        raise ConfigError(
            "tune: required by this command, but not given; `raydistill init FILE --tune` writes an example"
        )
    problems: list[str] = []
    ranges: dict[str, Range] = {}
    for key, entry in experiment.tune.space.items():
        try:
            for single, spec in _spelt_out(experiment, key, entry).items():
                ranges[single] = _range(single, spec)
        except ConfigError as error:
            problems.append(f"tune.space.{key}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return _in_order(ranges)


def check_space(experiment: Experiment) -> None:
    """Try the ends of every range and every choice on the experiment, so that a sweep cannot fail half-way.

    Raises:
        ConfigError: with one line for each wrong entry.
    """
    ranges = parse_space(experiment)
    assert experiment.tune is not None
    problems = [line for entry in ranges for line in _problems(experiment, entry)]
    if experiment.tune.scheduler.name == "pbt" and not problems:
        problems = _problems_of_pbt(experiment, ranges)
    if experiment.tune.search != "random":
        grids = [entry.key for entry in ranges if entry.kind == "grid"]
        problems.extend(
            f"tune.space.{key}: a grid cannot be searched by {experiment.tune.search}; use choice" for key in grids
        )
    if problems:
        raise ConfigError("\n".join(problems))
    covering(experiment)


def applies(entry: Range, values: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether a range counts for the values that were chosen before it; what was not chosen is as in the experiment."""
    label = _label(entry.key)
    if entry.key != f"methods.{label}" and values.get(f"methods.{label}", True) in (False, None):
        return False
    return all(
        (values[key] if key in values else value_at(experiment, key)) in allowed for key, allowed in entry.when.items()
    )


def configured(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Return the experiment with a trial's values; a method that is switched off is left out, with all its keys.

    Raises:
        ConfigError: where the values do not go together.
    """
    return experiment.override(_switched(values))


def covering(experiment: Experiment) -> Experiment:
    """Return an experiment that needs of teacher and images whatever any trial may need; it is not to be trained.

    Raises:
        ConfigError: where two trials cannot share their material.
    """
    methods: dict[str, Method] = dict(experiment.methods)
    for entry in parse_space(experiment):
        if _label(entry.key) is not None:  # of a method that only the space names, too
            for number, value in enumerate(entry.extremes):
                variant = configured(experiment, {**_allowing(entry), entry.key: value})
                methods |= {f"{label} {entry.key} {number}": method for label, method in variant.methods.items()}
    covered = experiment.model_copy(update={"methods": methods})
    try:
        covered.all_needs  # noqa: B018  asks whether they go together
    except ConfigError as error:
        raise ConfigError(f"tune.space: the trials cannot share what they train on: {error}") from None
    return covered


def value_at(experiment: Experiment, key: str) -> Any:
    """Return what the experiment has at a dotted key; None where that is nothing."""
    found: Any = experiment.to_dict()
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _switched(values: Mapping[str, Any]) -> Values:
    """Spell out switches: False takes a method out, and True leaves it as it stands."""
    spelt: Values = {}
    for key, value in values.items():
        if not (_is_method(key) and isinstance(value, bool)):
            spelt[key] = value
        elif not value:
            spelt[key] = None
    return spelt


def _is_method(key: str) -> bool:
    return key.startswith("methods.") and key.count(".") == 1


def _label(key: str) -> str | None:
    parts = key.split(".")
    return parts[1] if parts[0] == "methods" and len(parts) > 1 else None


def _spelt_out(experiment: Experiment, key: str, entry: Mapping[str, Any] | str) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(entry, str):
        return {key: entry}
    label = _label(key)
    if not _is_method(key) or label not in experiment.methods:
        raise ConfigError(f"'auto' stands for the ranges of a method in use: {_listed(experiment.methods)}")
    return {f"{key}.{name}": spec for name, spec in type(experiment.methods[label]).search_space.items()}


def _listed(labels: Iterable[str]) -> str:
    return ", ".join(f"methods.{label}" for label in labels)


def _range(key: str, spec: Mapping[str, Any]) -> Range:
    if key in NEVER:
        raise ConfigError(NEVER[key])
    if key.split(".", maxsplit=1)[0] in SHARED or (
        key.split(".", maxsplit=1)[0] == "data" and not key.startswith(SWEPT_OF_DATA)
    ):
        raise ConfigError("cannot be swept: all trials share images, teacher and cache; make a sweep for each value")
    given = {kind: values for kind, values in spec.items() if kind != "when" and values is not None}
    if len(given) != 1:
        spare = next(iter(given), None)
        hint = f"; {spare}: null on the command line takes away what the file has" if spare in KINDS else ""
        raise ConfigError(f"{dict(spec)}: give one of {', '.join(KINDS)}{hint}")
    ((kind, values),) = given.items()
    if kind not in KINDS and isinstance(values, Mapping):
        raise ConfigError(
            f"no range but a mapping; write a key with its dots: 'tune.space={{{_dotted(key, spec)}: ...}}'"
        )
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of range '{kind}'{did_you_mean(kind, KINDS)} (known: {', '.join(KINDS)})")
    if not isinstance(values, list | tuple) or not values:
        raise ConfigError(f"{kind} = {values!r}: must be {KINDS[kind]}")
    if kind not in LISTS:
        _check_numbers(kind, values)
    return Range(key, kind, tuple(values), _conditions(spec.get("when", {})))


def _dotted(key: str, spec: Mapping[str, Any]) -> str:
    """Return the key that was meant where its dots were read as levels."""
    inner, below = next((inner, below) for inner, below in spec.items() if isinstance(below, Mapping))
    deeper = any(isinstance(value, Mapping) for value in below.values())
    return _dotted(f"{key}.{inner}", below) if deeper else f"{key}.{inner}"


def _check_numbers(kind: str, values: Sequence[Any]) -> None:
    wanted = 3 if kind.startswith("q") else 2
    allowed = int if kind in WHOLE else int | float
    fits = [isinstance(value, allowed) and not isinstance(value, bool) for value in values]
    if not all(fits) or len(values) != wanted or not values[0] < values[1]:
        whole = "whole numbers " if kind in WHOLE else ""
        raise ConfigError(f"{kind} = {list(values)}: must be {whole}{KINDS[kind]}, with low below high")
    if kind in LOGARITHMIC and values[0] <= 0:
        raise ConfigError(f"{kind} = {list(values)}: both ends must be above 0")
    if wanted == 3 and values[2] <= 0:
        raise ConfigError(f"{kind} = {list(values)}: the step must be above 0")


def _conditions(when: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, Mapping):
        raise ConfigError(f"when = {when!r}: must map keys to a value or a list of values")
    return {str(key): tuple(value) if isinstance(value, list | tuple) else (value,) for key, value in when.items()}


def _in_order(ranges: Mapping[str, Range]) -> tuple[Range, ...]:
    """Sort so that a range comes after those that it depends on."""
    sorted_: dict[str, Range] = {}
    while waiting := [entry for key, entry in ranges.items() if key not in sorted_]:
        ready = [entry for entry in waiting if _depends_on(entry, ranges) <= sorted_.keys()]
        if not ready:
            raise ConfigError(f"tune.space.{waiting[0].key}: its 'when' depends on itself")
        sorted_ |= {entry.key: entry for entry in ready}
    return tuple(sorted_.values())


def _depends_on(entry: Range, ranges: Mapping[str, Range]) -> set[str]:
    switch = f"methods.{_label(entry.key)}"
    return {key for key in (*entry.when, switch) if key in ranges and key != entry.key} | (
        {entry.key} if entry.key in entry.when else set()
    )


def _allowing(entry: Range) -> Values:
    """Values with which the range counts."""
    return {key: allowed[0] for key, allowed in entry.when.items()}


def _problems(experiment: Experiment, entry: Range) -> list[str]:
    """Say what is wrong with the ends of one range."""
    try:
        _check_switch(experiment, entry)
        for value in entry.extremes:
            configured(experiment, {**_allowing(entry), entry.key: value})
    except ConfigError as error:
        return [f"tune.space.{entry.key}: {line}" for line in str(error).splitlines()]
    return []


def _problems_of_pbt(experiment: Experiment, ranges: Iterable[Range]) -> list[str]:
    """Say what pbt cannot change while a student trains: all but numbers with a fraction may decide a shape."""
    assert experiment.tune is not None
    problems = []
    if experiment.scale.workers > 1:
        problems.append("scale.workers: pbt hands states on between trials of one worker each; set scale.workers=1")
    if experiment.tune.scheduler.grace >= experiment.train.epochs:
        problems.append("tune.scheduler.grace: pbt changes values after so many epochs; it must be below train.epochs")
    for entry in ranges:
        if entry.when:
            problems.append(f"tune.space.{entry.key}: pbt changes all values together; leave out 'when'")
            continue
        parsed = [value_at(configured(experiment, {entry.key: value}), entry.key) for value in entry.extremes]
        at_the_start = entry.key.startswith("student.") or _of_the_start(entry.key)
        if at_the_start or not all(isinstance(value, float) for value in parsed):
            problems.append(
                f"tune.space.{entry.key}: pbt changes values while a student trains, and this one is settled before; "
                "leave it out, or use another scheduler"
            )
        elif not isinstance(value_at(experiment, entry.key), float):
            problems.append(f"tune.space.{entry.key}: pbt multiplies values; give trial 0 a number here")
    return problems


def _of_the_start(key: str) -> bool:
    return _label(key) is not None and key.rpartition(".")[2] in OF_THE_START


def _check_switch(experiment: Experiment, entry: Range) -> None:
    if entry.switches and _label(entry.key) not in experiment.methods:
        raise ConfigError(f"no such method to switch on or off (there are {_listed(experiment.methods)})")
    if entry.key.startswith(SWEPT_OF_DATA) and experiment.cache.views and experiment.reads_cache:
        raise ConfigError(
            "the cached views were made with one data.augment; set cache.views=0 or teacher.source=live, or omit it"
        )


Sampler = Callable[[Range], Any]
"""Draws a value of a range."""


def draw(experiment: Experiment, ranges: Iterable[Range], fixed: Mapping[str, Any], sample: Sampler) -> Values:
    """Draw a value of every range that counts, except of those that are ``fixed``, which only count if they may."""
    values: Values = {}
    for entry in ranges:
        if applies(entry, values, experiment):
            values[entry.key] = fixed[entry.key] if entry.key in fixed else sample(entry)
    return values
