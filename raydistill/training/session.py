"""Everything that one training process works with, put together from an experiment and its material."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raydistill.config import Experiment
from raydistill.data.resident import ResidentSet
from raydistill.data.views import fresh_views, render, scheduled_views
from raydistill.methods.base import Draw, Needs, Setting, Step
from raydistill.methods.objective import Objective
from raydistill.models.weights import load_weights
from raydistill.models.zoo import build_model
from raydistill.teachers.network import load_teacher
from raydistill.teachers.source import CachedTeacher, LiveTeacher
from raydistill.training.distiller import Distiller
from raydistill.training.material import Material
from raydistill.training.optimisation import build_optimizer, build_schedule

Wrap = Callable[[nn.Module], nn.Module]


@dataclass
class Session:
    """One process of a training run; ``epoch`` counts the finished ones.

    ``model`` is the ``distiller``, wrapped for distributed training where there are several workers.
    """

    experiment: Experiment
    data: ResidentSet
    validation: ResidentSet
    teacher: CachedTeacher | LiveTeacher | None
    distiller: Distiller
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the student is trained."""
        return self.data.images.device

    @property
    def progress(self) -> float:
        """Share of all steps of the run that are done, 0 to 1."""
        train = self.experiment.train
        return self.schedule.last_epoch / (train.epochs * self.data.steps_per_epoch(train.batch_size))

    def draw(self, positions: Tensor, epoch: int, needs: Needs | None = None) -> Step:
        """Return the step of a batch, with images and teacher outputs but without the student's.

        Where the cache holds replayable views, student and teacher see the same pixels of a cached view; otherwise
        every epoch shows new ones, and a cached teacher answers with its evaluation view.

        Args:
            positions: int64 [B], of the samples in the training set.
            epoch: counted from 0.
            needs: what to draw; the objective's where not given.
        """
        needs = needs or self.distiller.objective.needs
        ids = self.data.ids[positions]
        view_ids = {view: self._view_ids(ids, view, epoch, needs) for view in needs.views}
        views: dict[int, Tensor] = {}
        for view in needs.views:
            drawn = needs.draws.get(view)
            if drawn is not None and drawn.of is not None:
                views[view] = views[drawn.of].rot90(drawn.turns, dims=(2, 3))
            else:
                views[view] = self._render(positions, ids, view_ids[view], drawn)
        outputs = self.teacher.outputs(positions, view_ids, views) if self.teacher else {}
        columns = {"index": positions}
        if self.data.labels is not None:
            columns["label"] = self.data.labels[positions]
        return Step(views=views, student={}, teachers=(outputs,), columns=columns, epoch=epoch, progress=self.progress)

    @property
    def _cached_views(self) -> int:
        cache = self.experiment.cache
        return cache.views if isinstance(self.teacher, CachedTeacher) else 0

    def _view_ids(self, ids: Tensor, view: int, epoch: int, needs: Needs) -> Tensor:
        if self._cached_views and view not in needs.draws:
            return scheduled_views(ids, epoch, self._cached_views, self.experiment.seed, offset=view)
        return fresh_views(ids, epoch, view, len(needs.views))

    def _render(self, positions: Tensor, ids: Tensor, view_ids: Tensor, drawn: Draw | None) -> Tensor:
        images, augment, size = self.data.images[positions], self.experiment.data.augment, None
        if drawn is not None:
            augment = augment.model_copy(update={"crop": 0, "resized_crop": drawn.scale})
            size = round(images.shape[2] * drawn.size), round(images.shape[3] * drawn.size)
        cached = self._cached_views and drawn is None
        return render(
            images,
            ids,
            view_ids,
            augment=augment,
            seed=self.experiment.cache.seed if cached else self.experiment.seed,
            mean=self.data.mean,
            std=self.data.std,
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
    student = build_student(experiment, material).to(device)
    teacher = build_teacher(experiment, material, device)
    image_shape = tuple(data.images.shape[1:])
    setting = Setting(
        student=student.shapes(image_shape),
        teachers=(teacher.shapes,) if teacher else (),
        student_network=student,
        num_classes=material.train.num_classes,
        num_samples=len(material.train),
        batch_size=experiment.train.batch_size,
        epochs=experiment.train.epochs,
        labels=data.labels,
        seed=experiment.seed,
    )
    distiller = Distiller(student, Objective(experiment.methods, setting)).to(device)
    distiller.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(experiment.train.optimizer, distiller.parameters())
    steps = data.steps_per_epoch(experiment.train.batch_size)
    return Session(
        experiment=experiment,
        data=data,
        validation=ResidentSet(material.validation, device),
        teacher=teacher,
        distiller=distiller,
        model=wrap(distiller),
        optimizer=optimizer,
        schedule=build_schedule(experiment.train, optimizer, steps_per_epoch=steps),
        rank=rank,
        world_size=world_size,
    )


def build_student(experiment: Experiment, material: Material) -> Any:
    """Return the student, with the weights of the experiment where it names some."""
    student = build_model(
        experiment.student.model, material.train.num_classes, in_channels=material.train.images.shape[1]
    )
    if experiment.student.weights is not None:
        load_weights(student, experiment.student.weights)
    return student


def build_teacher(
    experiment: Experiment, material: Material, device: torch.device
) -> CachedTeacher | LiveTeacher | None:
    """Return the source of the teacher's outputs, or None where no method asks for any."""
    needs = experiment.needs
    if not needs.teacher or experiment.teacher is None:
        return None
    if experiment.teacher.source == "cache":
        return CachedTeacher(material.table, material.table_views, needs, device)
    channels = material.train.images.shape[1]
    network = load_teacher(experiment.teacher, num_classes=material.train.num_classes, in_channels=channels)
    return LiveTeacher(
        network.to(device).to(memory_format=torch.channels_last),
        needs,
        image_shape=tuple(material.train.images.shape[1:]),
    )
