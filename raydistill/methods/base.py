"""The protocol of a distillation method.

A method is one pydantic class in one file: its fields are the hyper-parameters, ``needs`` says from them
alone what the method wants to see, ``parts`` builds what it has to train or to remember, ``loss`` computes
and changes nothing, and ``after_step`` is the only place where queues, banks, priors and averaged copies
change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from raydistill.errors import ConfigError
from raydistill.lazy import Tensor, nn

Outputs = Mapping[str, "Tensor"]
"""``logits`` [B, C], ``embedding`` [B, D], ``features/<stage>`` or ``preact/<stage>`` [B, C, H, W]."""

Shapes = Mapping[str, tuple[int, ...]]
"""Output name -> its shape without the batch."""

SearchSpace = Mapping[str, Mapping[str, Any]]
"""Hyper-parameter -> one kind of range with its values, as an entry of ``tune.space`` has it."""

Weight = Annotated[float, Field(ge=0.0)]
Temperature = Annotated[float, Field(gt=0.0)]
Momentum = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class Draw:
    """How a view of a step is drawn where the experiment's augmentation is not what the method wants.

    ``scale``: share of the image's area that a resized crop takes, in place of ``data.augment``'s crop; ``size``:
    side of the view relative to the image's; ``turns``: the view is view ``of`` turned by so many right angles.
    """

    scale: tuple[float, float] | None = None
    size: float = 1.0
    of: int | None = None
    turns: int = 0


@dataclass(frozen=True)
class Needs:
    """What a method wants to see, known before anything is built.

    ``student`` and ``teacher`` map the number of a view within a step to output names; ``images`` lists the
    views whose pixels the method feeds to networks of its own; ``columns`` is a subset of ``label`` and
    ``index``; ``draws`` names the views that are not drawn as the experiment's augmentation says.
    """

    student: Mapping[int, frozenset[str]] = field(default_factory=dict)
    teacher: Mapping[int, frozenset[str]] = field(default_factory=dict)
    images: frozenset[int] = frozenset()
    columns: frozenset[str] = frozenset()
    draws: Mapping[int, Draw] = field(default_factory=dict)

    @classmethod
    def of_both_sides(cls, output: str, *, columns: frozenset[str] = frozenset()) -> Needs:
        """One output of view 0, of the student and of the teacher."""
        named = {0: frozenset({output})}
        return cls(student=named, teacher=named, columns=columns)

    def __or__(self, other: Needs) -> Needs:
        """Union of two needs. Raises ``ConfigError`` where both say how a view is drawn, and differently."""
        for view in {*self.draws} & {*other.draws}:
            if self.draws[view] != other.draws[view]:
                raise ConfigError(f"methods: two of them want view {view} of a step, but drawn differently")
        return Needs(
            student=_union(self.student, other.student),
            teacher=_union(self.teacher, other.teacher),
            images=self.images | other.images,
            columns=self.columns | other.columns,
            draws={**self.draws, **other.draws},
        )

    @property
    def views(self) -> tuple[int, ...]:
        """Numbers of all views that a step has to draw, ascending."""
        return tuple(sorted({*self.student, *self.teacher, *self.images}))

    @property
    def views_are_drawn(self) -> bool:
        """Whether no view is drawn as the experiment's augmentation says."""
        return set(self.views) <= set(self.draws)

    @property
    def trains_classifier(self) -> bool:
        """Whether the student's logits are asked for; otherwise its classifier stays as initialised."""
        return any("logits" in names for names in self.student.values())


def union_of_needs(methods: Iterable[Method]) -> Needs:
    """Everything that the methods together want to see in distillation; one of weight 0 has only a stage before it."""
    return reduce(or_, (method.needs() for method in methods if method.weight), Needs())


def needs_of_stages_too(methods: Iterable[Method]) -> Needs:
    """Everything that the methods want to see at some time, in distillation or in a stage before it."""
    return reduce(or_, (method.needs() for method in methods), Needs())


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
    epochs: int
    labels: Tensor | None
    seed: int

    @property
    def teacher(self) -> Shapes:
        """Shapes of the first teacher."""
        return self.teachers[0]

    def for_teacher(self, number: int) -> Setting:
        """The same with one of the teachers alone."""
        return replace(self, teachers=(self.teachers[number],))


@dataclass(frozen=True)
class Step:
    """What one optimisation step hands to a method; teacher outputs are detached, live or cached alike.

    ``views``: view number -> images [B, C, H, W], normalised. ``columns``: ``label`` int64 [B] and ``index``
    int64 [B], the position of each sample in the training set; where view 0 may be mixed with other images, also
    ``partner_label`` int64 [B], the other's label, and ``mix`` float32 [B], the sample's own share. ``epoch`` counts
    from 0; ``progress`` is the finished share of all steps, from 0 to 1, for schedules of a method's own. ``shares``
    says for each micro-batch of the step how many rows each worker holds; to a method it is nothing.
    """

    views: Mapping[int, Tensor]
    student: Mapping[int, Outputs]
    teachers: tuple[Mapping[int, Outputs], ...]
    columns: Mapping[str, Tensor]
    epoch: int = 0
    progress: float = 0.0
    shares: tuple[tuple[int, ...], ...] = ()

    @property
    def teacher(self) -> Mapping[int, Outputs]:
        """Outputs of the first teacher by view."""
        return self.teachers[0]

    def for_teacher(self, number: int) -> Step:
        """The same with one of the teachers alone."""
        return replace(self, teachers=(self.teachers[number],))


@dataclass(frozen=True)
class Loss:
    """``total`` is differentiated, ``terms`` are reported, ``carry`` goes to ``after_step``."""

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    carry: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """Training that runs before distillation (AB, FT, FSP): how long, what it trains, and on which loss.

    ``loss`` is called once a step, with steps that hold what ``needs`` names, a part of the method's own ``needs()``.
    ``trains``: the student or modules of the method's parts; for the stage's time they are in training mode and take
    gradients, whether or not distillation trains them, and all else is in evaluation mode. With nothing to train
    ``loss`` only looks on. ``lr``: of SGD with momentum 0.9, kept constant; the experiment's where None.

    ``finish`` is called on every rank after the last epoch, before the checkpoint. A resumed run begins with the
    epoch that was cut off, so a stage that collects what only ``finish`` puts into the parts takes one epoch.
    """

    epochs: int
    trains: tuple[nn.Module, ...]
    loss: Callable[[Step], Loss]
    needs: Needs
    lr: float | None = None
    finish: Callable[[], None] | None = None


class Method(BaseModel):
    """Base of all methods. Subclasses set ``name``, ``paper`` and ``equation`` and add hyper-parameters.

    ``search_space`` is the method's ready-made part of a sweep: what to try of its own hyper-parameters while the
    others keep their defaults, with 5000 images to train on or more; ``search_source`` says where the ranges are from.

    Of several teachers a method sees one at a time: it has parts for each, and its losses are summed. One with
    ``joins_teachers`` sees all of them in ``step.teachers``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str]
    joins_teachers: ClassVar[bool] = False
    search_space: ClassVar[SearchSpace] = {}
    search_source: ClassVar[str] = ""

    weight: Weight = 1.0

    def needs(self) -> Needs:
        """What the method wants to see."""
        raise NotImplementedError

    def needs_every_logit(self) -> str | None:
        """Say why the teacher's largest logits and a fill for the rest (``cache.top_k``) will not do; None if they do.

        Asked only of methods that want the teacher's logits.
        """
        return "it takes every logit of the teacher"

    def refuses_mixing(self) -> str | None:
        """Say why views mixed with other images (``data.augment.mixup``, ``cutmix``) will not do; None if they do.

        They do where a method compares both sides on the same pixels. Views that a method draws itself are not mixed.
        """
        needs = self.needs()
        if "label" in needs.columns:
            return "it needs the one class of each image, and a mixed one has two"
        if "index" in needs.columns:
            return "it remembers every image by itself, and a mixed one is of two"
        if len(needs.views) > 1 and not needs.views_are_drawn:
            return "it compares several views of an image, which would not be mixed with the same partner"
        return None

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
