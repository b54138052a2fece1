"""What a table of a paper takes: the experiments behind it, expanded from its file. Nothing here trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from omegaconf import OmegaConf
from pydantic import Field, ValidationError, field_validator, model_validator

from raydistill.config import Experiment, parse_experiment
from raydistill.config_errors import explain
from raydistill.data.config import DataConfig
from raydistill.errors import CacheError, ConfigError, did_you_mean
from raydistill.reporting.layouts import Layout, load_layout
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
    trained; ``teachers_of`` names settings whose teachers these take. ``methods`` is the section of each method; of one
    called ``a+b`` it is that of both, with the weights of ``combined``. ``students`` are dotted keys that hold for one
    student; those of a method only where it is used. ``transfer`` are data sets on which features are judged where a
    layout asks for them, by its labels.
    """

    extends: str | None = None
    experiment: dict[str, Any]
    teacher: dict[str, Any] = Field(default_factory=dict)
    teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    teachers_of: str | None = None
    methods: dict[str, dict[str, dict[str, Any]]]
    combined: dict[str, dict[str, Any]] = Field(default_factory=dict)
    students: dict[str, dict[str, Any]] = Field(default_factory=dict)
    transfer: dict[str, DataConfig] = Field(default_factory=dict)

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
    """One size of a table, or a part of it: whose settings, which pairs of teacher and student, and how many seeds.

    A pair without a teacher is that of a student which is its own. ``methods`` are some of the table's. With
    ``together`` the networks of a pair are trained together, as peers.
    """

    settings: str
    pairs: tuple[tuple[str | None, str], ...] = Field(min_length=1)
    seeds: Count
    methods: tuple[str, ...] = ()
    together: bool = False


class Variant(Section):
    """A method of the settings, ``of``, with dotted keys of its experiments set to other values."""

    of: str
    set: dict[str, Any]


class Task(Section):
    """Another task that begins with a run's student: a script of ``experiments/downstream`` with its arguments."""

    script: Literal["detection", "segmentation"]
    data: str
    arguments: tuple[str, ...] = ()


class Plan(Section):
    """A table's file.

    ``skip`` names, for a student, the methods that the paper does not have for it; ``variants`` describes those of
    ``methods`` that the settings do not know. A scale has one part or a list of several. ``instead`` says, for a scale,
    which data set is judged in the place of one that the layout names, everywhere or for one measure. The finished runs
    are handed to the ``tasks`` of a scale. Where the table is ``counted`` nothing is trained.
    """

    name: str
    layout: str
    methods: tuple[str, ...] = Field(min_length=1)
    variants: dict[str, Variant] = Field(default_factory=dict)
    skip: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    scales: dict[ScaleName, tuple[Scale, ...]]
    instead: dict[ScaleName, dict[str, str]] = Field(default_factory=dict)
    tasks: dict[ScaleName, tuple[Task, ...]] = Field(default_factory=dict)
    counted: bool = False

    @field_validator("scales", mode="before")
    @classmethod
    def _one_part_needs_no_list(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: [part] if isinstance(part, Mapping) else part for name, part in value.items()}

    @model_validator(mode="after")
    def _methods_are_the_tables(self) -> Plan:
        named = {f"scales.{name}.methods": part.methods for name, parts in self.scales.items() for part in parts}
        for where, methods in {**named, "variants": tuple(self.variants)}.items():
            if further := sorted({*methods} - {*self.methods}):
                raise ValueError(f"{where}: {further[0]} is none of the table's")
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


def shown(plan: Plan, scale: ScaleName) -> Layout:
    """Return the table's layout, whose measures are those of the data sets that the scale has in place of others."""
    layout, instead = load_layout(plan.layout), plan.instead.get(scale, {})

    def renamed(metric: str | None) -> str | None:
        label, slash, name = (metric or "").rpartition("/")
        judged = instead.get(str(metric), instead.get(label, label))
        return f"{judged}/{name}" if slash else metric

    columns = [column.model_copy(update={"metric": renamed(column.metric)}) for column in layout.columns]
    return layout.model_copy(update={"columns": tuple(columns)})


def transfer(plan: Plan, scale: ScaleName) -> dict[str, DataConfig]:
    """Return the data sets on which features can be judged, by their labels."""
    return {label: data for _, settings in _parts(plan, scale) for label, data in settings.transfer.items()}


def teachers(plan: Plan, scale: ScaleName) -> list[Experiment]:
    """Return an experiment for each teacher that has to be trained."""
    if plan.counted:
        return []
    found = {}
    for part, settings in _parts(plan, scale):
        where = settings.teachers_of or part.settings
        trained = load_settings(where)
        for name in filter(None, (teacher for teacher, _ in part.pairs)):
            described = _teacher(part.settings, settings, name)
            if "layout" not in described:
                values = {
                    **_merged(trained.experiment, trained.teacher),
                    "name": f"{where}-teacher-{_word(name)}",
                    "output": RUNS,
                    "teacher": described,
                    "student": {"model": described["model"]},
                    "methods": {"ce": {}},
                }
                experiment = parse_experiment(values, origin=f"{plan.name}, teacher {name}")
                found.setdefault(experiment.name, experiment)
    return list(found.values())


def students(
    plan: Plan, scale: ScaleName, seeds: int | None = None, methods: Sequence[str] | None = None
) -> list[Experiment]:
    """Return an experiment for each seed, pair and method: part by part, and there seed by seed.

    Tables of the same settings share runs. A teacher runs live where the cache cannot hold what the method sees.

    Raises:
        ConfigError: for methods that the table does not have, and for every mistake in the files.
    """
    parts = list(_parts(plan, scale))
    known = list(dict.fromkeys(method for part, _ in parts for method in part.methods or plan.methods))
    for method in methods or ():
        if method not in known:
            near = did_you_mean(method, known)
            raise ConfigError(f"--methods {method}: not in {plan.name}{near} (it has: {', '.join(known)})")
    found: dict[str, Experiment] = {}
    for part, settings in parts:
        chosen = [method for method in part.methods or plan.methods if not methods or method in methods]
        of_part = [
            _student(plan, part, settings, pair, method)
            for pair in part.pairs
            for method in chosen
            if method not in plan.skip.get(pair[1], ())
        ]
        for seed in range(seeds or part.seeds):
            for each in of_part:
                name = f"{each.name}-seed{seed}"
                found.setdefault(name, each.model_copy(update={"name": name, "seed": seed}))
    return list(found.values())


def _student(plan: Plan, part: Scale, settings: Settings, pair: tuple[str | None, str], method: str) -> Experiment:
    """Return the experiment of one method and pair, named for all of its seeds."""
    teacher, student = pair if method != ALONE else (None, pair[1])
    variant = plan.variants.get(method, Variant(of=method, set={}))
    section = settings.section(variant.of)
    words = filter(None, [part.settings, teacher, student, method, teacher and part.together and "together"])
    values: dict[str, Any] = {
        **settings.experiment,
        "name": "-".join(map(_word, words)),
        "output": RUNS,
        "student": {"model": student},
        "methods": section,
    }
    if teacher is not None and part.together:
        values["peers"] = [{"model": teacher}]
    elif teacher is not None:
        values["teacher"] = _teacher(part.settings, settings, teacher)
    own = {
        key: value
        for key, value in settings.students.get(student, {}).items()
        if not key.startswith("methods.") or key.split(".")[1] in section
    } | variant.set
    experiment = parse_experiment(values, origin=f"settings/{part.settings}, {method}")
    return _from_cache_where_possible(experiment.override(own) if own else experiment)


def _teacher(where: str, settings: Settings, name: str) -> dict[str, Any]:
    folder = f"{RUNS}/{settings.teachers_of or where}-teacher-{_word(name)}"
    return {"model": name, "weights": f"{folder}/model.safetensors"} | settings.teachers.get(name, {})


def _from_cache_where_possible(experiment: Experiment) -> Experiment:
    if experiment.teacher is None:
        return experiment
    views = tuple(range(experiment.cache.views + 1))
    try:
        check_coverage("the cache", views, experiment.cache.outputs, experiment.all_needs)
    except CacheError:
        return experiment.override({"teacher.source": "live"})
    return experiment


def _parts(plan: Plan, scale: ScaleName) -> Iterator[tuple[Scale, Settings]]:
    if scale not in plan.scales:
        raise ConfigError(f"{plan.name}: has no scale '{scale}' (it has: {', '.join(plan.scales)})")
    for part in plan.scales[scale]:
        yield part, load_settings(part.settings)


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
    """Return, for each cache that is read, one of the experiments that read it."""
    first: dict[str, Experiment] = {}
    for experiment in experiments:
        if experiment.reads_cache and experiment.teacher is not None:
            holds = (experiment.teacher, experiment.data, experiment.cache)
            first.setdefault(" ".join(part.model_dump_json() for part in holds), experiment)
    return list(first.values())
