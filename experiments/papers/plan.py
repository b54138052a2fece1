"""What a table of a paper takes: the experiments behind it, expanded from its file. Nothing here trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from omegaconf import OmegaConf
from pydantic import Field, ValidationError, model_validator

from raydistill.config import Experiment, parse_experiment
from raydistill.config_errors import explain
from raydistill.errors import CacheError, ConfigError, did_you_mean
from raydistill.section import Count, Section
from raydistill.teachers.source import check_coverage

HERE = Path(__file__).parent
RUNS = "runs/papers"
ALONE = "student"
"""The method of the student without a teacher, in the files here."""

_Section = TypeVar("_Section", bound=Section)

ScaleName = Literal["paper", "mini"]


class Settings(Section):
    """How the students and teachers of several tables are trained; ``extends`` names settings that these change.

    ``experiment`` holds the sections of all experiments, ``teacher`` what is different where a teacher is trained.
    ``teachers`` describes those that have another name than their model, or weights of their own, which are then not
    trained. ``methods`` is the section of each method; of one called ``a+b`` it is that of both, with the weights of
    ``combined``. ``students`` are dotted keys that hold for one student; those of a method only where it is used.
    """

    extends: str | None = None
    experiment: dict[str, Any]
    teacher: dict[str, Any] = Field(default_factory=dict)
    teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    methods: dict[str, dict[str, dict[str, Any]]]
    combined: dict[str, dict[str, Any]] = Field(default_factory=dict)
    students: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def section(self, method: str) -> dict[str, dict[str, Any]]:
        """Return the section ``methods`` of an experiment."""
        if method in self.methods:
            return self.methods[method]
        parts = method.split("+")
        for part in parts:
            if part not in self.methods:
                known = ", ".join(self.methods)
                raise ConfigError(f"method {part}: unknown{did_you_mean(part, self.methods)} (known: {known})")
        joined = {label: values for part in parts for label, values in self.methods[part].items()}
        return {label: values | self.combined.get(label, {}) for label, values in joined.items()}


class Scale(Section):
    """One size of a table: whose settings, which pairs of teacher and student, and how many seeds."""

    settings: str
    pairs: tuple[tuple[str, str], ...] = Field(min_length=1)
    seeds: Count
    methods: tuple[str, ...] = ()


class Plan(Section):
    """A table's file. ``skip`` names, for a student, the methods that the paper does not have for it."""

    name: str
    layout: str
    methods: tuple[str, ...] = Field(min_length=1)
    skip: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    scales: dict[ScaleName, Scale]

    @model_validator(mode="after")
    def _scales_take_known_methods(self) -> Plan:
        for name, scale in self.scales.items():
            if further := sorted({*scale.methods} - {*self.methods}):
                raise ValueError(f"scales.{name}.methods: {further[0]} is none of the table's")
        return self


def table_names() -> list[str]:
    """Tables that have a file here."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def load_plan(name: str) -> Plan:
    """Read a table's file. Raises ``ConfigError`` where there is none, or it is wrong."""
    if name not in table_names():
        raise ConfigError(
            f"{name}: no such table{did_you_mean(name, table_names())} (known: {', '.join(table_names())})"
        )
    return _validated(Plan, {"name": name, **_read(HERE / f"{name}.yaml")}, name)


def load_settings(name: str) -> Settings:
    """Read settings, and those that they extend."""
    values = _read(HERE / "settings" / f"{name}.yaml")
    if values.get("extends"):
        values = _merged(load_settings(values["extends"]).model_dump(), values)
    return _validated(Settings, values, f"settings/{name}")


def teachers(plan: Plan, scale: ScaleName) -> list[Experiment]:
    """Return an experiment for each teacher that has to be trained."""
    size = _size(plan, scale)
    settings = load_settings(size.settings)
    found = []
    for name in dict.fromkeys(teacher for teacher, _ in size.pairs):
        described = _teacher(size.settings, settings, name)
        if "layout" not in described:
            values = {
                **_merged(settings.experiment, settings.teacher),
                "name": f"{size.settings}-teacher-{_word(name)}",
                "output": RUNS,
                "teacher": described,
                "student": {"model": described["model"]},
                "methods": {"ce": {}},
            }
            found.append(parse_experiment(values, origin=f"{plan.name}, teacher {name}"))
    return found


def students(
    plan: Plan, scale: ScaleName, seeds: int | None = None, methods: Sequence[str] | None = None
) -> list[Experiment]:
    """Return an experiment for each seed, pair and method, seed by seed.

    Tables of the same settings share runs. A teacher runs live where the cache cannot hold what the method sees.

    Raises:
        ConfigError: for methods that the table does not have, and for every mistake in the files.
    """
    size = _size(plan, scale)
    known = size.methods or plan.methods
    for method in methods or ():
        if method not in known:
            near = did_you_mean(method, known)
            raise ConfigError(f"--methods {method}: not in {plan.name}{near} (it has: {', '.join(known)})")
    settings = load_settings(size.settings)
    found = {
        experiment.name: experiment
        for teacher, student in size.pairs
        for method in methods or known
        if method not in plan.skip.get(student, ())
        for experiment in [_student(size.settings, settings, (teacher, student), method)]
    }
    return [
        experiment.model_copy(update={"name": f"{name}-seed{seed}", "seed": seed})
        for seed in range(seeds or size.seeds)
        for name, experiment in found.items()
    ]


def _student(where: str, settings: Settings, pair: tuple[str, str], method: str) -> Experiment:
    """Return the experiment of one method and pair, named for all of its seeds."""
    teacher, student = pair
    section = settings.section(method)
    networks = [student] if method == ALONE else [teacher, student]
    values: dict[str, Any] = {
        **settings.experiment,
        "name": "-".join(map(_word, [where, *networks, method])),
        "output": RUNS,
        "student": {"model": student},
        "methods": section,
    }
    if method != ALONE:
        values["teacher"] = _teacher(where, settings, teacher)
    own = {
        key: value
        for key, value in settings.students.get(student, {}).items()
        if not key.startswith("methods.") or key.split(".")[1] in section
    }
    experiment = parse_experiment(values, origin=f"settings/{where}, {method}")
    return _from_cache_where_possible(experiment.override(own) if own else experiment)


def _teacher(where: str, settings: Settings, name: str) -> dict[str, Any]:
    own = {"model": name, "weights": f"{RUNS}/{where}-teacher-{_word(name)}/model.safetensors"}
    return own | settings.teachers.get(name, {})


def _from_cache_where_possible(experiment: Experiment) -> Experiment:
    if experiment.teacher is None:
        return experiment
    views = tuple(range(experiment.cache.views + 1))
    try:
        check_coverage("the cache", views, experiment.cache.outputs, experiment.all_needs)
    except CacheError:
        return experiment.override({"teacher.source": "live"})
    return experiment


def _size(plan: Plan, scale: ScaleName) -> Scale:
    if scale not in plan.scales:
        raise ConfigError(f"{plan.name}: has no scale '{scale}' (it has: {', '.join(plan.scales)})")
    return plan.scales[scale]


def _word(name: str) -> str:
    return name.replace("/", "-").replace("+", "-")


def _merged(*parts: dict[str, Any]) -> dict[str, Any]:
    merged = OmegaConf.to_container(OmegaConf.merge(*parts))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text("utf-8")))


def _validated(model: type[_Section], values: dict[str, Any], origin: str) -> _Section:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {line}" for line in explain(error, model))) from None


def caches(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Return, for each teacher whose cache is read, one of the experiments that reads it."""
    first: dict[str, Experiment] = {}
    for experiment in experiments:
        if experiment.reads_cache and experiment.teacher is not None:
            first.setdefault(str(experiment.teacher.weights), experiment)
    return list(first.values())
