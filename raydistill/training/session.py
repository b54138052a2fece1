"""Everything that one training process works with, put together from an experiment and its material."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raydistill.config import Experiment, NetworkConfig
from raydistill.data.resident import ResidentSet
from raydistill.data.views import fresh_views, render, scheduled_views
from raydistill.methods.base import Draw, Needs, Setting, Stage, Step
from raydistill.methods.objective import Objective
from raydistill.models.loading import build_described
from raydistill.teachers.network import load_teacher
from raydistill.teachers.source import CachedTeacher, LiveTeacher
from raydistill.training.distiller import Distiller
from raydistill.training.material import Material
from raydistill.training.mutual import MutualDistiller
from raydistill.training.optimisation import build_optimizer, build_schedule

Wrap = Callable[[nn.Module], nn.Module]


@dataclass
class Session:
    """One process of a training run; ``epoch`` counts the finished ones.

    ``model`` is the ``distiller``, wrapped for distributed training where there are several workers. ``stages`` run
    before the first epoch: ``stage_records`` holds a record for each of their finished epochs, ``stage_optimizer`` the
    state of the optimiser of the one that is under way. ``teacher_data`` holds the images of ``data`` as live teachers
    see them, where that is not what the student sees.
    """

    experiment: Experiment
    data: ResidentSet
    validation: ResidentSet
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

    @property
    def device(self) -> torch.device:
        """Where the student is trained."""
        return self.data.images.device

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.data.steps_per_epoch(self.experiment.train.batch_size)

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Positions of this worker's part of each batch of an epoch, int64 [B]."""
        return self.data.batches(
            epoch,
            seed=self.experiment.seed,
            batch_size=self.experiment.train.batch_size,
            rank=self.rank,
            world_size=self.world_size,
        )

    @property
    def teacher_forwards(self) -> int:
        """Images that went through teachers so far."""
        return sum(teacher.forwards for teacher in self.teachers)

    @property
    def progress(self) -> float:
        """Share of all steps of the run that are done, 0 to 1."""
        return self.schedule.last_epoch / (self.experiment.train.epochs * self.steps_per_epoch)

    def draw(self, positions: Tensor, epoch: int, needs: Needs | None = None) -> Step:
        """Return the step of a batch, with images and teacher outputs but without the student's.

        Where the cache holds replayable views, student and teacher see the same pixels of a cached view; otherwise
        every epoch shows new ones, and a cached teacher answers with its evaluation view. A teacher with images of its
        own sees them cropped and flipped as the student's.

        Args:
            positions: int64 [B], of the samples in the training set.
            epoch: counted from 0.
            needs: what to draw; the objective's where not given.
        """
        needs = needs or self.distiller.objective.needs
        ids = self.data.ids[positions]
        view_ids = {view: self._view_ids(ids, view, epoch, needs) for view in needs.views}
        views = shown = self._views(self.data, positions, view_ids, needs, needs.views)
        if self.teacher_data is not None:
            shown = self._views(self.teacher_data, positions, view_ids, needs, needs.teacher)
        outputs = tuple(teacher.outputs(positions, view_ids, shown, needs) for teacher in self.teachers)
        columns = {"index": positions}
        if self.data.labels is not None:
            columns["label"] = self.data.labels[positions]
        return Step(views=views, student={}, teachers=outputs, columns=columns, epoch=epoch, progress=self.progress)

    @property
    def _cached_views(self) -> int:
        cached = any(isinstance(teacher, CachedTeacher) for teacher in self.teachers)
        return self.experiment.cache.views if cached else 0

    def _view_ids(self, ids: Tensor, view: int, epoch: int, needs: Needs) -> Tensor:
        if self._cached_views and view not in needs.draws:
            return scheduled_views(ids, epoch, self._cached_views, self.experiment.seed, offset=view)
        return fresh_views(ids, epoch, view, len(needs.views))

    def _views(
        self, data: ResidentSet, positions: Tensor, view_ids: Mapping[int, Tensor], needs: Needs, wanted: Iterable[int]
    ) -> dict[int, Tensor]:
        """Return the wanted views of one side's images, and those that they are turned from."""
        wanted = {*wanted}
        sources = {needs.draws[view].of for view in wanted if view in needs.draws}
        views: dict[int, Tensor] = {}
        for view in needs.views:
            if view not in wanted | sources:
                continue
            drawn = needs.draws.get(view)
            if drawn is not None and drawn.of is not None:
                views[view] = views[drawn.of].rot90(drawn.turns, dims=(2, 3))
            else:
                views[view] = self._render(data, positions, view_ids[view], drawn)
        return views

    def _render(self, data: ResidentSet, positions: Tensor, view_ids: Tensor, drawn: Draw | None) -> Tensor:
        images, augment, size = data.images[positions], self.experiment.data.augment, None
        if drawn is not None:
            augment = augment.model_copy(update={"crop": 0, "resized_crop": drawn.scale})
            size = round(images.shape[2] * drawn.size), round(images.shape[3] * drawn.size)
        cached = self._cached_views and drawn is None
        return render(
            images,
            data.ids[positions],
            view_ids,
            augment=augment,
            seed=self.experiment.cache.seed if cached else self.experiment.seed,
            mean=data.mean,
            std=data.std,
            size=size,
        ).to(memory_format=torch.channels_last)


def assemble(
    experiment: Experiment,
    material: Material,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    wrap: Wrap = lambda module: module,
) -> Session:
    """Build the student, the objective and the optimiser. All random initial values follow from the seed.

    Raises:
        ConfigError, CacheError, WeightsError: where the parts do not fit each other.
    """
    torch.manual_seed(experiment.seed)
    data = ResidentSet(material.train, device)
    student = build_network(experiment.student, material).to(device)
    peers = [build_network(peer, material).to(device) for peer in experiment.peers]
    teachers = build_teachers(experiment, material, device)
    image_shape = tuple(data.images.shape[1:])
    setting = Setting(
        student=student.shapes(image_shape),
        teachers=tuple(teacher.shapes for teacher in teachers),
        student_network=student,
        num_classes=material.train.num_classes,
        num_samples=len(material.train),
        batch_size=experiment.train.batch_size,
        epochs=experiment.train.epochs,
        labels=data.labels,
        seed=experiment.seed,
    )
    distiller = (
        MutualDistiller([student, *peers], experiment.methods, setting, image_shape)
        if peers
        else Distiller(student, Objective(experiment.methods, setting))
    ).to(device)
    distiller.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(experiment.train.optimizer, distiller.parameters())
    steps = data.steps_per_epoch(experiment.train.batch_size)
    return Session(
        experiment=experiment,
        data=data,
        validation=ResidentSet(material.validation, device),
        teachers=teachers,
        distiller=distiller,
        model=wrap(distiller),
        optimizer=optimizer,
        schedule=build_schedule(experiment.train, optimizer, steps_per_epoch=steps),
        rank=rank,
        world_size=world_size,
        stages=distiller.objective.stages(student),
        teacher_data=ResidentSet(material.teacher_train, device) if material.teacher_train is not None else None,
    )


def build_network(config: NetworkConfig, material: Material) -> Any:
    """Return the student or a peer of it, with the weights of the experiment where it names some."""
    return build_described(config, material.train.num_classes, material.train.images.shape[1])


def build_teachers(
    experiment: Experiment, material: Material, device: torch.device
) -> tuple[CachedTeacher | LiveTeacher, ...]:
    """Return the source of each teacher's outputs, or none where no method asks for any."""
    if not experiment.all_needs.teacher:
        return ()
    return tuple(_build_teacher(experiment, number, material, device) for number in range(len(experiment.teachers)))


def _build_teacher(
    experiment: Experiment, number: int, material: Material, device: torch.device
) -> CachedTeacher | LiveTeacher:
    config, needs = experiment.teachers[number], experiment.all_needs
    if config.source == "cache":
        return CachedTeacher(material.tables[number], material.table_views[number], needs, device)
    shape = (material.train if material.teacher_train is None else material.teacher_train).shape
    network = load_teacher(config, num_classes=material.train.num_classes, in_channels=shape[0])
    return LiveTeacher(
        network.to(device).to(memory_format=torch.channels_last),
        needs,
        image_shape=shape,
    )
