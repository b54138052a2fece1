"""The protocol of a distillation method.

A method is one pydantic class in one file: its fields are the hyper-parameters, ``needs`` says from them
alone what the method wants to see, ``parts`` builds what it has to train or to remember, ``loss`` computes
and changes nothing, and ``after_step`` is the only place where queues, banks, priors and averaged copies
change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from raydistill.lazy import Tensor, nn

Outputs = Mapping[str, "Tensor"]
"""``logits`` [B, C], ``embedding`` [B, D], ``features/<stage>`` or ``preact/<stage>`` [B, C, H, W]."""

Shapes = Mapping[str, tuple[int, ...]]
"""Output name -> its shape without the batch."""

Weight = Annotated[float, Field(ge=0.0)]
Temperature = Annotated[float, Field(gt=0.0)]
Momentum = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class Needs:
    """What a method wants to see, known before anything is built.

    ``student`` and ``teacher`` map the number of a view within a step to output names; ``images`` lists the
    views whose pixels the method feeds to networks of its own; ``columns`` is a subset of ``label`` and
    ``index``.
    """

    student: Mapping[int, frozenset[str]] = field(default_factory=dict)
    teacher: Mapping[int, frozenset[str]] = field(default_factory=dict)
    images: frozenset[int] = frozenset()
    columns: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        """Union of two needs."""
        return Needs(
            student=_union(self.student, other.student),
            teacher=_union(self.teacher, other.teacher),
            images=self.images | other.images,
            columns=self.columns | other.columns,
        )

    @property
    def views(self) -> tuple[int, ...]:
        """Numbers of all views that a step has to draw, ascending."""
        return tuple(sorted({*self.student, *self.teacher, *self.images}))

    @property
    def trains_classifier(self) -> bool:
        """Whether the student's logits are asked for; otherwise its classifier stays as initialised."""
        return any("logits" in names for names in self.student.values())


def _union(left: Mapping[int, frozenset[str]], right: Mapping[int, frozenset[str]]) -> dict[int, frozenset[str]]:
    nothing: frozenset[str] = frozenset()
    return {view: left.get(view, nothing) | right.get(view, nothing) for view in {**left, **right}}


@dataclass(frozen=True)
class Setting:
    """What is known when parts are built: both sides' shapes, the training set, the student."""

    student: Shapes
    teachers: tuple[Shapes, ...]
    student_network: nn.Module
    num_classes: int
    num_samples: int
    batch_size: int
    labels: Tensor | None
    seed: int

    @property
    def teacher(self) -> Shapes:
        """Shapes of the first teacher."""
        return self.teachers[0]


@dataclass(frozen=True)
class Step:
    """What one optimisation step hands to a method; teacher outputs are detached, live or cached alike.

    ``views``: view number -> images [B, C, H, W], normalised. ``columns``: ``label`` int64 [B] and ``index``
    int64 [B], the position of each sample in the training set. ``epoch`` counts from 0.
    """

    views: Mapping[int, Tensor]
    student: Mapping[int, Outputs]
    teachers: tuple[Mapping[int, Outputs], ...]
    columns: Mapping[str, Tensor]
    epoch: int = 0

    @property
    def teacher(self) -> Mapping[int, Outputs]:
        """Outputs of the first teacher by view."""
        return self.teachers[0]


@dataclass(frozen=True)
class Loss:
    """``total`` is differentiated, ``terms`` are reported, ``carry`` goes to ``after_step``."""

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    carry: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """Training that runs before distillation (AB, FT, FSP): how long, what it trains, and on which loss."""

    epochs: int
    trains: tuple[nn.Module, ...]
    loss: Callable[[Step], Loss]


class Method(BaseModel):
    """Base of all methods. Subclasses set ``name``, ``paper`` and ``equation`` and add hyper-parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str]

    weight: Weight = 1.0

    def needs(self) -> Needs:
        """What the method wants to see."""
        raise NotImplementedError

    def check(self, setting: Setting) -> None:
        """Raise ``ConfigError`` where networks or data make the method impossible, before parts are built."""

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """Modules that the method trains or remembers with; the checkpoint holds them beside the student."""
        return nn.ModuleDict()

    def loss(self, step: Step, parts: Any) -> Loss:
        """Compute the method's unweighted loss. Changes no state: twice gives twice the same."""
        raise NotImplementedError

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Update queues, banks, priors and averaged copies from what ``loss`` carried."""

    def pretraining(self, parts: Any, student: nn.Module) -> Stage | None:
        """A stage to run before distillation, if the method has one."""
        return None
