"""An experiment: one YAML file plus ``key.path=value`` overrides, checked before anything else happens.

``load_experiment`` is the door: omegaconf merges, pydantic validates with unknown keys forbidden, and every mistake
becomes one line with the full dotted path, the given value, what is allowed and the nearest valid name. Nothing here
imports torch or Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    InstanceOf,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from raydistill.cache_config import CacheConfig
from raydistill.config_errors import explain
from raydistill.data.config import DataConfig
from raydistill.errors import ConfigError, did_you_mean
from raydistill.evaluate_config import EvaluateConfig
from raydistill.measures import VALIDATION, measure_behind
from raydistill.methods.base import Method, Needs, needs_of_stages_too, union_of_needs
from raydistill.methods.registry import method_class
from raydistill.network_config import NetworkConfig, StudentConfig, TeacherConfig
from raydistill.safe_yaml import merged_values, overridden, read_text
from raydistill.scale_config import ScaleConfig
from raydistill.section import PathText, Section
from raydistill.track_config import TrackConfig
from raydistill.train_config import TrainConfig
from raydistill.tune_config import TuneConfig

_NO_TEXT = re.compile("[\0\ud800-\udfff]")
METRICS = ("val/top1", "val/neighbours@10", "val/cka", "val/rank", "train/loss")
"""What a sweep may choose by, as examples: ``metrics.csv`` of a run has one column each."""
_REPORTED = re.compile(r"val/(.+/)?top1|val/rank(_share)?|train/.+")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class Experiment(Section):
    """Everything that decides a run; made by ``load_experiment`` or ``parse_experiment``."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    output: PathText = "runs"
    backup: Annotated[
        PathText | None,
        Field(description="where a copy of the run is kept while it grows, such as s3://bucket/runs"),
    ] = None
    data: DataConfig
    teacher: TeacherConfig | None = None
    ensemble: Annotated[tuple[TeacherConfig, ...], Field(description="further teachers beside `teacher`")] = ()
    student: StudentConfig
    peers: Annotated[
        tuple[NetworkConfig, ...],
        Field(description="networks trained together with the student; each learns from all others, without a teacher"),
    ] = ()
    methods: Annotated[dict[str, SerializeAsAny[InstanceOf[Method]]], Field(min_length=1)]
    train: TrainConfig = TrainConfig()
    cache: CacheConfig = CacheConfig()
    scale: ScaleConfig = ScaleConfig()
    tune: TuneConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    track: TrackConfig = TrackConfig()

    @property
    def weights(self) -> dict[str, float]:
        """Label of each method -> its factor in the loss."""
        return {label: method.weight for label, method in self.methods.items()}

    @property
    def needs(self) -> Needs:
        """Union of what the methods want to see in distillation."""
        return union_of_needs(self.methods.values())

    @property
    def all_needs(self) -> Needs:
        """The same with what they want to see in stages before it: what teacher and cache must give."""
        return needs_of_stages_too(self.methods.values())

    @property
    def teachers(self) -> tuple[TeacherConfig, ...]:
        """The teacher and those beside it."""
        return () if self.teacher is None else (self.teacher, *self.ensemble)

    @property
    def reads_cache(self) -> bool:
        """Whether a method sees outputs of a teacher that come from its cache."""
        return bool(self.all_needs.teacher) and any(teacher.source == "cache" for teacher in self.teachers)

    @property
    def agreement(self) -> tuple[str, ...]:
        """What compares the student with the teacher after each epoch: ``train.agreement``, and ``tune.metric``."""
        sought = measure_behind(self.tune.metric) if self.tune is not None else None
        return tuple(dict.fromkeys([*self.train.agreement, *([sought] if sought else [])]))

    def as_trial(self) -> Experiment:
        """Return the experiment of one run without the section ``tune``, which still measures what the sweep asks."""
        train = self.train.model_copy(update={"agreement": self.agreement})
        return self.model_copy(update={"train": train, "tune": None})

    def for_teacher(self, number: int) -> Experiment:
        """Return the same experiment with one of the teachers alone, as each has a cache of its own."""
        return self.model_copy(update={"teacher": self.teachers[number], "ensemble": ()})

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output) / self.name

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        if self.peers and (self.teacher or self.ensemble):
            raise ValueError("peers: the networks teach each other; leave out the sections 'teacher' and 'ensemble'")
        wanting = [label for label, method in self.methods.items() if method.needs().teacher]
        if wanting and self.teacher is None and not self.peers:
            raise ValueError(f"methods.{wanting[0]} needs a teacher, but the experiment has no section 'teacher'")
        if self.ensemble and self.teacher is None:
            raise ValueError("ensemble: further teachers beside `teacher`, which is not given")
        if not any(method.weight for method in self.methods.values()):
            raise ValueError("methods: at least one needs a weight above 0")
        if conflict := self._conflicting_views() or self._unmixable():
            raise ValueError(conflict)
        if problem := self._untrainable() or self._unsharable() or self._incomparable():
            raise ValueError(problem)
        return self

    def _untrainable(self) -> str | None:
        """Say what stands against training the student's head alone."""
        if self.student.trains == "all":
            return None
        if not self.needs.trains_classifier:
            return "student.trains = 'head': no method trains the classifier; add one such as ce, or set it to all"
        return "student.trains = 'head': peers are trained whole; leave out one of the two" if self.peers else None

    def _unsharable(self) -> str | None:
        """Say why the global batch cannot be cut into the parts that workers and micro-batches take."""
        batch, workers, parts = self.train.batch_size, self.scale.workers, self.train.accumulate
        if batch < workers:
            return f"train.batch_size = {batch} is global and less than an image for each of scale.workers = {workers}"
        if parts > 1 and batch < 2 * workers * parts:
            return (
                f"train.accumulate = {parts}: train.batch_size = {batch} is global and leaves less than two images "
                f"for each micro-batch of scale.workers = {workers}; lower one of these, or raise the batch size"
            )
        return None

    def _incomparable(self) -> str | None:
        """Say why the student cannot be compared with a teacher as ``train.agreement`` or ``tune.metric`` asks."""
        if self.tune is not None:
            try:
                sought = measure_behind(self.tune.metric)
            except ConfigError as error:
                return f"tune.metric = {self.tune.metric!r}: {error}"
            if sought is None and not _REPORTED.fullmatch(self.tune.metric):
                near = did_you_mean(self.tune.metric, METRICS)
                return f"tune.metric = {self.tune.metric!r}: no run reports it{near} (known: {', '.join(METRICS)})"
            if sought and self.tune.mode == "min":
                return f"tune.mode = 'min': {self.tune.metric} is better where it is higher; set max"
        if self.agreement and self.teacher is None:
            key = "train.agreement" if self.train.agreement else "tune.metric"
            return (
                f"{key}: {VALIDATION}{self.agreement[0]} compares the student with a teacher, but the experiment has "
                "no section 'teacher'"
            )
        return None

    def _conflicting_views(self) -> str | None:
        try:
            needs_of_stages_too(self.methods.values())
        except ConfigError as error:
            return str(error)
        return None

    def _unmixable(self) -> str | None:
        """Say what stands against the mixing that ``data.augment`` asks for."""
        if self.data.augment.mixing is None:
            return None
        field = f"data.augment.{self.data.augment.mixing}"
        for label, method in self.methods.items():
            if reason := method.refuses_mixing():
                return f"methods.{label} cannot take the images that {field} mixes: {reason}; leave out one of the two"
        needs = self.all_needs
        if needs.views_are_drawn:
            return f"{field}: would mix nothing, as the methods draw all their views themselves; leave it out"
        asked = any(view not in needs.draws for view in needs.teacher)
        if asked and not self.cache.views and any(teacher.source == "cache" for teacher in self.teachers):
            return (
                f"{field}: with cache.views = 0 the cache knows images as they are, not mixed ones; "
                "set cache.views or teacher.source=live"
            )
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``parse_experiment`` turns into an equal experiment."""
        values = self.model_dump(mode="json")
        for label, method in self.methods.items():
            if method.name != label:
                values["methods"][label] = {"name": method.name, **values["methods"][label]}
        return values

    def to_yaml(self) -> str:
        """The resolved experiment as YAML."""
        from omegaconf import OmegaConf

        return str(OmegaConf.to_yaml(OmegaConf.create(self.to_dict())))

    def override(self, values: Mapping[str, Any]) -> Experiment:
        """Return this experiment with dotted keys set to other values. Raises ``ConfigError`` as the parser does."""
        from omegaconf import OmegaConf

        merged = OmegaConf.create(self.to_dict())
        for key, value in values.items():
            OmegaConf.update(merged, key, value, merge=False, force_add=True)
        return parse_experiment(OmegaConf.to_container(merged, resolve=True))


def load_experiment(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read an experiment file and merge ``key.path=value`` overrides into it.

    Raises:
        ConfigError: with one line for each mistake.
    """
    dotted = _checked(overrides)
    try:
        values = merged_values(read_text(_existing(path)), dotted)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse_experiment(values, origin=str(path))


def with_overrides(values: Mapping[str, Any], overrides: Iterable[str], *, origin: str) -> dict[str, Any]:
    """Merge ``key.path=value`` overrides into a mapping of sections; nothing is validated yet.

    Raises:
        ConfigError: where an override cannot be read; the message begins with ``origin``.
    """
    dotted = _checked(overrides)
    try:
        return overridden(values, dotted)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None


def parse_experiment(values: Mapping[str, Any], origin: str = "experiment") -> Experiment:
    """Validate plain values. Raises ``ConfigError`` whose message begins every line with ``origin``."""
    values = {str(key): value for key, value in values.items()}
    if unwritable := next(_unwritable(values), None):
        raise ConfigError(f"{origin}: {unwritable}: holds letters that cannot be shown or written")
    problems: list[str] = []
    methods = _parse_methods(values.get("methods"), problems)
    try:
        experiment = Experiment.model_validate({**values, "methods": methods or _placeholder(problems)})
    except ValidationError as error:
        problems = explain(error, Experiment) + problems
    if problems:
        raise ConfigError("\n".join(f"{origin}: {' '.join(problem.split())}" for problem in problems))
    return experiment


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _unwritable(value: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted keys of texts that are none, such as halves of a surrogate pair, which YAML can express."""
    if isinstance(value, str) and _NO_TEXT.search(value):
        yield path
    elif isinstance(value, Mapping):
        for key, part in value.items():
            inner = f"{path}.{key}".lstrip(".")
            if isinstance(key, str) and not key.isprintable():
                yield ascii(inner)
            yield from _unwritable(part, inner)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _unwritable(part, f"{path}.{number}")


def _parse_methods(section: Any, problems: list[str]) -> dict[str, Method]:
    """Build every method of the section; what goes wrong is appended to ``problems``."""
    if not isinstance(section, Mapping):
        problems.append(f"methods = {section!r}: must map labels to hyper-parameters, such as 'kd: {{weight: 0.9}}'")
        return {}
    methods: dict[str, Method] = {}
    for label, given in section.items():
        if given is None:  # `methods.kd=null` on the command line takes a method out
            continue
        values = dict(given) if isinstance(given, Mapping) else {"": given}
        name = str(values.pop("name", label))
        if not _LABEL.fullmatch(str(label)):
            problems.append(f"methods.{label!r}: a label has at most 100 letters, digits, '_' and '-'")
            continue
        try:
            kind = method_class(name)
            methods[label] = kind.model_validate(values)
        except ConfigError as error:
            problems.append(f"methods.{label}: {error}")
        except ValidationError as error:
            problems.extend(explain(error, kind, f"methods.{label}"))
    return methods


def _placeholder(problems: list[str]) -> Mapping[str, Method]:
    """Stand in for methods that did not parse, so that all other mistakes are still found."""
    if not problems:
        problems.append("methods = {}: name at least one method; see `raydistill list methods`")
    return {"ce": method_class("ce")()}


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such experiment file; `raydistill init {path}` writes one")
    return Path(path)


def _checked(overrides: Iterable[str]) -> list[str]:
    """Return the overrides, each of which must have a key."""
    overrides = list(overrides)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"'{override}': an override reads key.path=value, such as train.epochs=5")
    return overrides
