"""Everything that one training process works with, put together from an experiment and its material."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from raydistill.config import Experiment
from raydistill.data.batching import Batching
from raydistill.data.mixing import blend
from raydistill.data.resident import ResidentSet
from raydistill.data.views import render
from raydistill.methods.base import Draw, Needs, Outputs, Stage, Step
from raydistill.teachers.source import CachedTeacher, LiveTeacher
from raydistill.training.agreement import Agreement
from raydistill.training.average import AveragedStudent
from raydistill.training.distiller import Distiller
from raydistill.training.energy import Energy
from raydistill.training.feeding import STUDENT, TEACHER, Batch, Feeder
from raydistill.training.phases import TEACHER as TEACHER_PHASE
from raydistill.training.phases import Phases
from raydistill.training.placement import Placement
from raydistill.training.precision import Probe
from raydistill.training.requests import Request


@dataclass
class Session:
    """One process of a training run; ``epoch`` counts the finished ones.

    ``model`` is the ``distiller``, wrapped for distributed training where there are several workers. ``stages`` run
    before the first epoch: ``stage_records`` holds a record for each of their finished epochs, ``stage_optimizer`` the
    state of the optimiser of the one that is under way. ``teacher_data`` holds the images of ``data`` as live teachers
    see them, where that is not what the student sees. ``placement`` says where the stored rows lie, if there are any.
    ``agreement`` compares the student with the teacher on held-out images, where the experiment asks for that.
    ``average`` follows the student, ``scaler`` multiplies losses against underflow, ``probe`` says which precision was
    measured to be faster, each where the experiment asks for it.
    ``under_way`` says how far an epoch is that a checkpoint cuts, and is taken by the first epoch after a start from
    it; ``seconds_before`` is the time that the run had taken until then, ``started`` this process's clock at the start.
    ``energy`` adds up what the first process's machine tells.
    """

    experiment: Experiment
    data: ResidentSet
    validation: ResidentSet
    feeder: Feeder
    teachers: tuple[CachedTeacher | LiveTeacher, ...]
    distiller: Distiller
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    stages: Mapping[str, Stage] = field(default_factory=dict)
    stage_records: list[dict[str, Any]] = field(default_factory=list)
    stage_optimizer: dict[str, Any] | None = None
    teacher_data: ResidentSet | None = None
    placement: Placement | None = None
    agreement: Agreement | None = None
    average: AveragedStudent | None = None
    scaler: torch.amp.GradScaler | None = None
    probe: Probe | None = None
    under_way: Mapping[str, Any] | None = None
    energy: Energy = field(default_factory=Energy)
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def student(self) -> nn.Module:
        """The network that is validated and exported: the student, or its average where there is one."""
        return self.distiller.student if self.average is None else self.average.network

    @property
    def phases(self) -> Phases:
        """Where the time goes."""
        return self.distiller.phases

    @property
    def precision(self) -> str:
        """Of the forward pass: fp32, bf16 or fp16."""
        return self.experiment.train.precision if self.probe is None else self.probe.chosen

    @property
    def device(self) -> torch.device:
        """Where the student is trained."""
        return self.data.device

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.batching.steps

    @cached_property
    def batching(self) -> Batching:
        """How an epoch is cut into batches."""
        return batching_of(self.experiment, len(self.data), self.world_size)

    @property
    def steps_done(self) -> int:
        """Steps of all epochs, those of stages before distillation among them, up to where a checkpoint is."""
        of_this_epoch = int(self.under_way["step"]) if self.under_way is not None else 0
        return (len(self.stage_records) + self.epoch) * self.steps_per_epoch + of_this_epoch

    @property
    def seconds(self) -> float:
        """Time of training so far, without that between a checkpoint and the start from it."""
        return self.seconds_before + time.monotonic() - self.started

    def take_under_way(self) -> Mapping[str, Any] | None:
        """Return how far the epoch is that a checkpoint cut, once: to the epoch that begins there."""
        taken, self.under_way = self.under_way, None
        return taken

    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        """Positions of this worker's part of each batch of an epoch from step ``start`` on, int64 [B]."""
        return self.data.batches(
            epoch,
            self.batching,
            seed=self.experiment.seed,
            rank=self.rank,
            start=start,
            device=self.feeder.place,
        )

    def place_of(self, epoch: int, step: int) -> str:
        """Say which batch one is, for whoever waits for it; both are counted from 0."""
        worker = f"worker {self.rank}, " if self.world_size > 1 else ""
        return f"{worker}epoch {epoch + 1}: the batch of step {step + 1}, of {self.feeder.sources},"

    def positions_of(self, epoch: int, step: int, rank: int) -> Tensor:
        """Positions of a worker's part of one batch, int64 [B]."""
        batches = self.data.batches(
            epoch, self.batching, seed=self.experiment.seed, rank=rank, start=step, device=self.feeder.place
        )
        return next(batches)

    def ids_of(self, positions: Tensor) -> list[int]:
        """Ids of the samples at these positions."""
        ids: list[int] = self.data.ids[positions.to(self.data.device)].tolist()
        return ids

    def steps(self, epoch: int, needs: Needs | None = None, *, start: int = 0) -> Iterator[Step]:
        """The steps of an epoch from ``start`` on, each as ``draw`` returns it; what lies far is read ahead.

        ``needs`` are the objective's where not given; reading then goes on into the next epoch of the run.
        """
        continues = needs is None and epoch + 1 < self.experiment.train.epochs
        following = (lambda: list(self.batches(epoch + 1))) if continues else None
        needs = needs or self.distiller.objective.needs
        batching = self.batching
        batches = self.feeder.feed(list(self.batches(epoch, start)), epoch, needs, following)
        for number, batch in enumerate(batches, start):
            self.energy.look()
            yield replace(self._step(batch, epoch), shares=batching.shares(number))

    @property
    def sources(self) -> tuple[CachedTeacher | LiveTeacher, ...]:
        """Of teachers' outputs: those of the steps, and a teacher that only validation runs."""
        validating = None if self.agreement is None else self.agreement.teacher
        return self.teachers if self.teachers or validating is None else (validating,)

    @property
    def teacher_forwards(self) -> int:
        """Images that went through teachers so far."""
        return sum(teacher.forwards for teacher in self.sources)

    @property
    def teacher_forwards_saved(self) -> int:
        """Images that caches answered for in the epochs that are done, over all workers."""
        cached = sum(isinstance(teacher, CachedTeacher) for teacher in self.teachers)
        needs = [self.stages[record["stage"]].needs for record in self.stage_records]
        views = sum(len(of_stage.teacher) for of_stage in needs)
        views += self.epoch * len(self.distiller.objective.needs.teacher)
        return cached * views * self.batching.images_per_epoch

    @property
    def teacher_work(self) -> dict[str, int]:
        """What teachers computed so far and what caches spared them, as epochs and results name it."""
        if not self.sources:
            return {}
        return {
            "teacher_forwards": self.teacher_forwards,
            "teacher_forwards_saved": self.teacher_forwards_saved,
        }

    @property
    def progress(self) -> float:
        """Share of all steps of the run that are done, 0 to 1."""
        return self.schedule.last_epoch / (self.experiment.train.epochs * self.steps_per_epoch)

    def draw(self, positions: Tensor, epoch: int, needs: Needs | None = None) -> Step:
        """Return the step of a batch, with images and teacher outputs but without the student's.

        Where the cache holds replayable views, student and teacher see the same pixels of a cached view; otherwise
        every epoch shows new ones, and a cached teacher answers with its evaluation view. A teacher with images of its
        own sees them cropped, flipped and mixed as the student's.

        Args:
            positions: int64 [B], of the samples in the training set.
            epoch: counted from 0.
            needs: what to draw; the objective's where not given.
        """
        needs = needs or self.distiller.objective.needs
        return self._step(self.feeder.bring(positions, epoch, needs), epoch)

    def _step(self, batch: Batch, epoch: int) -> Step:
        request = batch.request
        needs, positions = request.needs, request.positions
        views = shown = self._views(batch, self.data, STUDENT, needs.views)
        if self.teacher_data is not None:
            shown = self._views(batch, self.teacher_data, TEACHER, needs.teacher)
        outputs = tuple(
            batch.stored(number) if isinstance(teacher, CachedTeacher) else self._live(teacher, request, shown)
            for number, teacher in enumerate(self.teachers)
        )
        columns = {"index": positions}
        if self.data.labels is not None:
            columns["label"] = self.data.labels[positions]
            if mixture := request.mixtures.get(0):
                columns |= {"partner_label": self.data.labels[mixture.positions], "mix": mixture.share}
        return Step(views=views, student={}, teachers=outputs, columns=columns, epoch=epoch, progress=self.progress)

    def _live(self, teacher: LiveTeacher, request: Request, shown: Mapping[int, Tensor]) -> Mapping[int, Outputs]:
        with self.phases(TEACHER_PHASE):
            return teacher.outputs(request.positions, request.view_ids, shown, request.needs)

    def _views(self, batch: Batch, data: ResidentSet, side: str, wanted: Iterable[int]) -> dict[int, Tensor]:
        """Return the wanted views of one side's images, and those that they are turned from."""
        needs, wanted = batch.request.needs, {*wanted}
        sources = {needs.draws[view].of for view in wanted if view in needs.draws}
        views: dict[int, Tensor] = {}
        for view in needs.views:
            if view not in wanted | sources:
                continue
            drawn = needs.draws.get(view)
            if drawn is not None and drawn.of is not None:
                views[view] = views[drawn.of].rot90(drawn.turns, dims=(2, 3))
            else:
                views[view] = self._seen(batch, data, side, view)
        return views

    def _seen(self, batch: Batch, data: ResidentSet, side: str, view: int) -> Tensor:
        """Return one view of one side's images, mixed with their partners' where that was drawn."""
        request = batch.request
        view_ids, drawn = request.view_ids[view], request.needs.draws.get(view)
        own = self._render(data, batch.pixels(side), request.positions, view_ids, drawn)
        if mixture := request.mixtures.get(view):
            others = self._render(data, batch.partners(side, view), mixture.positions, view_ids, drawn)
            own = blend(own, others, mixture)
        return own.to(memory_format=memory_format(self.experiment))

    def _render(
        self, data: ResidentSet, images: Tensor, positions: Tensor, view_ids: Tensor, drawn: Draw | None
    ) -> Tensor:
        augment, seed, size = self.experiment.data.augment, self.feeder.plan.augment_seed, None
        if drawn is not None:
            augment, seed = augment.model_copy(update={"crop": 0, "resized_crop": drawn.scale}), self.experiment.seed
            size = round(images.shape[2] * drawn.size), round(images.shape[3] * drawn.size)
        return render(
            images, data.ids[positions], view_ids, augment=augment, seed=seed, mean=data.mean, std=data.std, size=size
        )


def batching_of(experiment: Experiment, images: int, workers: int) -> Batching:
    """Return how an epoch of so many images is cut. Raises ``ConfigError`` where it cannot be."""
    train = experiment.train
    return Batching(images, train.batch_size, workers, train.accumulate, train.drop_last)


def memory_format(experiment: Experiment) -> torch.memory_format:
    """Return how images, maps and weights of four dimensions lie in memory."""
    return torch.channels_last if experiment.train.channels_last else torch.contiguous_format
