"""The section ``train`` of an experiment: epochs, optimiser, schedule, averages, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from raydistill.errors import ConfigError
from raydistill.measures import neighbours_of
from raydistill.section import Count, Fraction, Positive, Section


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
