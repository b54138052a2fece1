"""An experiment: one YAML file plus ``key.path=value`` overrides, checked before anything else happens.

``load_experiment`` is the door: omegaconf merges, pydantic validates with unknown keys forbidden, and every mistake
becomes one line with the full dotted path, the given value, what is allowed and the nearest valid name. Nothing here
imports torch or Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    InstanceOf,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from raydistill.config_errors import explain
from raydistill.data.config import DataConfig
from raydistill.errors import ConfigError
from raydistill.evaluate_config import EvaluateConfig
from raydistill.files import possible_path
from raydistill.measures import VALIDATION, measure_behind, neighbours_of
from raydistill.methods.base import Method, Needs, needs_of_stages_too, union_of_needs
from raydistill.methods.registry import method_class
from raydistill.models.zoo import FUNCTION, check_name, split_tap
from raydistill.safe_yaml import merged_values, overridden, read_text
from raydistill.section import Count, Fraction, Positive, Section
from raydistill.tune_config import TuneConfig

PathText = Annotated[str, AfterValidator(possible_path)]
ModelName = Annotated[
    str, Field(description="a name of `raydistill list models`; package.module:function is code, and is run")
]


_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def _known_measure(name: str) -> str:
    try:
        neighbours_of(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return name


Measure = Annotated[
    str, AfterValidator(_known_measure), Field(description="neighbours@K, such as neighbours@10, or cka")
]


class OptimizerConfig(Section):
    """The update rule; the learning rate is meant for the global batch.

    ``lars`` is SGD with momentum and a learning rate of its own for each tensor, ``trust`` times the ratio of the norms
    of weight and gradient; biases and norms have neither that nor weight decay. For ``sgd`` and ``adamw``
    ``decay_norm_and_bias`` says whether weight decay acts on them too.
    """

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    lr: Positive = 0.05
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    decay_norm_and_bias: bool = True
    trust: Positive = 1e-3

    @model_validator(mode="after")
    def _nesterov_is_of_sgd(self) -> OptimizerConfig:
        if self.name == "lars" and self.nesterov:
            raise ValueError("nesterov belongs to 'sgd'; lars has plain momentum")
        return self


class ScheduleConfig(Section):
    """The learning rate over the run, after ``warmup`` epochs, or parts of one, of linear growth.

    It moves with each step of the optimiser. ``cosine`` ends at ``floor`` times the highest rate.
    """

    name: Literal["cosine", "multistep", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0.0)] = 0.0
    milestones: tuple[Count, ...] = ()
    gamma: Positive = 0.1
    floor: Fraction = 0.0

    @model_validator(mode="after")
    def _milestones_belong_to_multistep(self) -> ScheduleConfig:
        if (self.name == "multistep") != bool(self.milestones):
            raise ValueError("milestones are given exactly when name is 'multistep'")
        return self

    @model_validator(mode="after")
    def _floor_belongs_to_cosine(self) -> ScheduleConfig:
        if self.floor and self.name != "cosine":
            raise ValueError("floor is where 'cosine' ends; leave it out, or choose that name")
        return self


class EmaConfig(Section):
    """An exponential moving average of the student's weights, validated and exported in the student's place.

    With ``warmup`` its decay grows with the steps as (1 + t) / (10 + t), up to ``decay``.
    """

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    warmup: bool = True


class CheckpointConfig(Section):
    """When the state of a run is kept, and which states stay.

    Kept is the end of every so many ``epochs``, and of the last; within and between them, whatever comes after so many
    ``steps`` or ``minutes`` since the last one. The newest ``keep`` stay, and the one with the highest ``val/top1``
    if ``best``.
    """

    epochs: Count = 1
    steps: Count | None = None
    minutes: Positive | None = None
    keep: Count = 2
    best: bool = True

    @staticmethod
    def with_older_keys(values: Any) -> Any:
        """Return the values of ``train`` with ``checkpoint_every`` and ``keep_checkpoints`` where they belong now."""
        older = {"checkpoint_every": "epochs", "keep_checkpoints": "keep"}
        if not isinstance(values, Mapping) or not older.keys() & values.keys():
            return values
        given = {key: values[old] for old, key in older.items() if old in values}
        others = {key: value for key, value in values.items() if key not in older}
        section = others.get("checkpoint", {})
        return {**others, "checkpoint": {**section, **given} if isinstance(section, Mapping) else section}


class TrainConfig(Section):
    """Optimisation of one network.

    ``batch_size`` is global: of one step of the optimiser, over all workers and micro-batches. ``accumulate`` is the
    number of micro-batches whose gradients a step adds up. A method that relates the samples of a batch to each other
    relates those of a micro-batch, as does a batch-norm; what is a mean over rows stays the same. Stages before
    distillation take a worker's part of a batch at once.

    ``drop_last: false`` trains on what the whole batches of an epoch leave over too, as a smaller last batch. ``clip``
    bounds the norm of the whole gradient. ``fp16`` scales the loss, since small gradients would underflow; ``auto`` is
    bf16 where a short measurement finds the student faster with it on this machine, else fp32. ``compile`` gives the
    student to torch.compile, which takes a minute at the start; ``cuda_graphs`` moreover lets a GPU replay its kernels
    without the host, which small students gain from.

    ``agreement`` names what compares the student's embeddings of held-out images with the first teacher's after each
    epoch, which needs no labels: ``neighbours@K``, how many of the K nearest neighbours both have in common, in
    percent, and ``cka``, their centred kernel alignment from 0 to 1.
    """

    epochs: Count = 10
    batch_size: Annotated[int, Field(ge=2)] = 64
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    accumulate: Count = 1
    drop_last: bool = True
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    clip: Positive | None = None
    ema: EmaConfig | None = None
    channels_last: bool = True
    compile: bool | Literal["cuda_graphs"] = False
    checkpoint: CheckpointConfig = CheckpointConfig()
    agreement: tuple[Measure, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _older_keys(cls, values: Any) -> Any:
        return CheckpointConfig.with_older_keys(values)


class NetworkConfig(Section):
    """A network by name, with weights of one's own where ``weights`` is a path.

    ``taps`` maps ``embedding`` or ``features/<i>`` to the path
    of the module whose output it shall be, such as ``{embedding: blocks.11, features/3: layer4}``; of tokens the
    embedding takes the class token, or what ``@cls`` or ``@mean`` behind the path says.
    """

    model: ModelName
    weights: PathText | None = None
    taps: dict[str, str] = Field(default_factory=dict)

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            check_name(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("taps")
    @classmethod
    def _tappable(cls, value: dict[str, str]) -> dict[str, str]:
        try:
            for name, path in value.items():
                split_tap(name, path)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def brings_weights(self) -> bool:
        """Whether the network is not fresh: weights are named, or the user's own function may load them."""
        return self.weights is not None or FUNCTION in self.model


class StudentConfig(NetworkConfig):
    """The small network, which is trained.

    Its head is whatever has parameters between embedding and logits; of most networks the last linear layer.
    ``head: fresh`` takes all but the head from ``weights`` and draws the head anew, for other classes than those that
    the weights were trained on, or because nothing trained it there.

    ``trains: head`` trains the head alone, on frozen features: the rest of the network keeps its weights, and is in
    evaluation mode throughout, so that the running statistics of its batch-norms stay as well.
    """

    head: Literal["keep", "fresh"] = "keep"
    trains: Literal["all", "head"] = "all"

    @model_validator(mode="after")
    def _features_come_from_somewhere(self) -> StudentConfig:
        if self.head == "fresh" and self.weights is None:
            raise ValueError("head: 'fresh' takes the rest of the network from 'weights', but that is not given")
        if self.trains == "head" and not self.brings_weights:
            raise ValueError(
                "trains: 'head' leaves the features as they are, but no 'weights' are given to have them from"
            )
        return self


class TeacherConfig(NetworkConfig):
    """The large network. ``source`` says whether its outputs come from the cache or from a live forward pass.

    ``layout`` says how a public checkpoint names its tensors; its head then takes the classifier's place.
    ``train`` is used by ``raydistill teacher`` alone and defaults to the experiment's own ``train``.
    """

    layout: Literal["torchvision", "simclr", "moco_v2", "swav", "dino", "crd"] | None = None

    source: Literal["cache", "live"] = "cache"
    batch_size: Count = 128
    train: TrainConfig | None = None

    @model_validator(mode="after")
    def _layout_of_a_file(self) -> TeacherConfig:
        if self.layout is not None and self.weights is None:
            raise ValueError("layout: tells how the file of 'weights' is laid out, but that is not given")
        return self


class CacheConfig(Section):
    """What is kept of the teacher: ``views`` replayable augmentations beside the evaluation view, and which outputs.

    ``root`` is a folder or the URL of one, as ``s3://bucket/folder``; credentials come from the environment (AWS_...).
    ``seed`` decides the pixels of those views; it is not the experiment's seed, so that all seeds share one cache.
    ``int8`` keeps a scale for each row: no number is off by more than 1/254 of the row's largest. ``top_k`` keeps the
    largest logits alone, for methods that can live with it; ``raydistill cache plan`` says which cannot. ``actors`` is
    a number, or the least and the most between which the pool grows with its work and Ray's cluster; several of them
    share a GPU where ``gpus_per_actor`` is below 1. What is not given is chosen from what Ray has.

    ``read`` says where training keeps the rows: on its device (``resident``), once for each node (``shared``) or on the
    disk, read ahead of the steps (``stream``); ``auto`` takes the first that has room. Results are the same.
    """

    root: PathText = "cache"
    outputs: Annotated[tuple[str, ...], Field(min_length=1)] = ("logits", "embedding")
    views: Annotated[int, Field(ge=0, le=1000)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dtype: Literal["float16", "float32", "int8"] = "float16"
    compression: Literal["none", "zstd"] = "none"
    top_k: Count | None = None
    shard_rows: Count = 8192
    actors: Count | tuple[Count, Count] | None = None
    cpus_per_actor: Count | None = None
    gpus_per_actor: Positive | None = None
    read: Literal["auto", "resident", "shared", "stream"] = "auto"

    @model_validator(mode="after")
    def _possible_actors(self) -> CacheConfig:
        if isinstance(self.actors, tuple) and self.actors[0] > self.actors[1]:
            raise ValueError(f"actors: the least, {self.actors[0]}, is more than the most, {self.actors[1]}")
        if self.gpus_per_actor is not None and self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ValueError(f"gpus_per_actor: a part of one GPU or whole ones, not {self.gpus_per_actor:g}")
        return self

    @model_validator(mode="after")
    def _top_k_of_logits(self) -> CacheConfig:
        if self.top_k is not None and "logits" not in self.outputs:
            raise ValueError("top_k shortens the logits, which 'outputs' does not include; add them or leave it out")
        return self


class ScaleConfig(Section):
    """Where the work runs.

    ``sync_batch_norm`` lets the student's batch-norms, and those of the methods' heads, take their statistics from the
    batches of all workers, so that these together compute what one would with the whole batch.

    With ``min_workers`` the number of workers is elastic: as many as the cluster has room for, from that to
    ``workers``. A run then goes on with fewer when nodes are lost, and from its last checkpoint with more when there
    are new ones; the global batch stays the same.
    """

    workers: Count = 1
    min_workers: Count | None = None
    sync_batch_norm: bool = False
    use_gpu: bool | Literal["auto"] = "auto"
    cpus_per_worker: Count | None = None
    max_failures: Annotated[int, Field(ge=0)] = 2

    @property
    def least_workers(self) -> int:
        """The number with which a run starts or goes on, if there is no room for more."""
        return self.workers if self.min_workers is None else self.min_workers

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> ScaleConfig:
        if self.least_workers > self.workers:
            raise ValueError(f"min_workers = {self.min_workers}: is more than workers = {self.workers}")
        return self


class WandbConfig(Section):
    """A run of Weights & Biases; needs the package ``wandb``, and its API key as ``wandb login`` keeps it.

    ``project`` and ``entity`` say where it goes. ``group`` puts runs together; of the trials of a sweep it is the
    sweep's name where not given. ``offline`` keeps all in the run's ``logs/wandb``, for ``wandb sync``; where ``mode``
    is not given, wandb's own settings decide, such as WANDB_MODE.
    """

    project: str = "raydistill"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] | None = None


class MlflowConfig(Section):
    """A run of MLflow; needs the package ``mlflow`` or ``mlflow-skinny``. The trials of a sweep are nested in its own.

    ``uri`` is that of the server or the data base, such as ``sqlite:///mlflow.db``; where it is not given, MLflow's own
    settings decide, such as MLFLOW_TRACKING_URI. ``experiment`` is made where there is none of that name; ``tags`` go
    to every run.
    """

    uri: str | None = None
    experiment: str = "raydistill"
    tags: dict[str, str] = Field(default_factory=dict)


class TrackConfig(Section):
    """Services that keep runs beside their folders; they get configuration, metrics, result and the smaller files."""

    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of those that are given."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


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
