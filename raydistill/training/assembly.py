"""Builds a session: student, methods, teachers, what feeds them, optimiser and the rest, as the experiment says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from raydistill.config import Experiment
from raydistill.data.batching import Batching
from raydistill.data.mixing import Partners
from raydistill.data.resident import ResidentSet
from raydistill.errors import ConfigError
from raydistill.methods.base import Setting, Stage
from raydistill.methods.objective import Objective
from raydistill.models.batch_norm import synchronise_batch_norms
from raydistill.models.head import build_with_fresh_head, head_names
from raydistill.models.loading import build_described
from raydistill.network_config import NetworkConfig, StudentConfig
from raydistill.teachers.network import load_teacher
from raydistill.teachers.rows import HeldRows, StoredRows
from raydistill.teachers.source import CachedTeacher, LiveTeacher
from raydistill.training.agreement import Agreement
from raydistill.training.average import AveragedStudent
from raydistill.training.compiling import compile_student
from raydistill.training.distiller import Distiller
from raydistill.training.energy import Energy, energy_on
from raydistill.training.feeding import STUDENT, TEACHER, Feeder, Supply
from raydistill.training.material import Material
from raydistill.training.mutual import MutualDistiller
from raydistill.training.optimisation import build_optimizer, build_scaler, build_schedule
from raydistill.training.phases import Phases
from raydistill.training.placement import Placement, read_from
from raydistill.training.precision import Probe, probe_precision
from raydistill.training.requests import Plan
from raydistill.training.session import Session, batching_of, memory_format

Wrap = Callable[[nn.Module], nn.Module]


def assemble(
    experiment: Experiment,
    material: Material,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    readers: int = 1,
    wrap: Wrap = lambda module: module,
) -> Session:
    """Build the student, the objective and the optimiser. All random initial values follow from the seed.

    ``readers`` is the number of tasks that read ahead for this process, where anything lies on the disk.

    Raises:
        ConfigError, CacheError, WeightsError: where the parts do not fit each other.
    """
    torch.manual_seed(experiment.seed)
    data, validation = ResidentSet(material.train, device), ResidentSet(material.validation, device)
    student = build_student(experiment.student, material).to(device)
    peers = [build_network(peer, material).to(device) for peer in experiment.peers]
    placement = read_from(experiment.cache.read, material, device)
    teachers = build_teachers(experiment, material, device, placement)
    teacher_data = ResidentSet(material.teacher_train, device) if material.teacher_train is not None else None
    image_shape = material.train.shape
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
    distiller.to(memory_format=memory_format(experiment))
    distiller.phases = Phases(device)
    stages = distiller.objective.stages(student)
    if experiment.student.trains == "head":
        _require_features_stay(stages, student)
        distiller.train_head_alone(head_names(student, image_shape))
    batching = batching_of(experiment, len(data), world_size)
    probe = measure_precision(experiment, student, image_shape, batching, device)
    if experiment.scale.sync_batch_norm and world_size > 1:
        synchronise_batch_norms(distiller)
    train = experiment.train
    average = AveragedStudent(student, train.ema) if train.ema is not None else None
    if train.compile:
        compile_student(student, device, graphs=train.compile == "cuda_graphs")
    optimizer = build_optimizer(train.optimizer, distiller.parameters())
    return Session(
        experiment=experiment,
        data=data,
        validation=validation,
        feeder=build_feeder(experiment, data, teacher_data, teachers, readers=readers),
        teachers=teachers,
        distiller=distiller,
        model=wrap(distiller),
        optimizer=optimizer,
        schedule=build_schedule(train, optimizer, steps_per_epoch=batching.steps),
        rank=rank,
        world_size=world_size,
        stages=stages,
        teacher_data=teacher_data,
        placement=placement,
        agreement=build_agreement(experiment, material, validation, teachers),
        average=average,
        scaler=build_scaler(optimizer, device) if train.precision == "fp16" else None,
        probe=probe,
        energy=energy_on(device) if rank == 0 else Energy(),
    )


def _require_features_stay(stages: Mapping[str, Stage], student: nn.Module) -> None:
    """Refuse stages before distillation that train the student, where nothing but its head is to be trained."""
    for label, stage in stages.items():
        if any(module is student for module in stage.trains):
            raise ConfigError(
                f"student.trains = 'head': methods.{label} trains the whole student in a stage before distillation; "
                "leave out one of the two"
            )


def measure_precision(
    experiment: Experiment, student: nn.Module, image_shape: tuple[int, ...], batching: Batching, device: torch.device
) -> Probe | None:
    """Measure the student on noise, as many images as a worker's largest micro-batch; None where nobody asks."""
    if experiment.train.precision != "auto":
        return None
    noise = torch.randn(batching.shares(0)[0][0], *image_shape, generator=torch.Generator().manual_seed(0))
    return probe_precision(student, noise.to(device, memory_format=memory_format(experiment)))


def build_student(config: StudentConfig, material: Material) -> Any:
    """Return the student, with the weights of the experiment where it names some, and a fresh head where it asks so."""
    if config.head == "fresh":
        return build_with_fresh_head(config, material.train.num_classes, material.train.shape)
    return build_network(config, material)


def build_network(config: NetworkConfig, material: Material) -> Any:
    """Return a network, with the weights of the experiment where it names some."""
    return build_described(config, material.train.num_classes, material.train.shape[0])


def build_feeder(
    experiment: Experiment,
    data: ResidentSet,
    teacher_data: ResidentSet | None,
    teachers: Sequence[CachedTeacher | LiveTeacher],
    *,
    readers: int = 1,
) -> Feeder:
    """Sort what steps take into what lies near and far; ``readers`` tasks at a time read what lies far."""
    sides = {STUDENT: data} | ({TEACHER: teacher_data} if teacher_data is not None else {})
    cached = {number: teacher for number, teacher in enumerate(teachers) if isinstance(teacher, CachedTeacher)}
    near = Supply(
        {side: images for side, images in sides.items() if images.resident},
        {number: teacher for number, teacher in cached.items() if not teacher.stored},
    )
    far = Supply(
        {side: images.source for side, images in sides.items() if not images.resident},
        {number: teacher for number, teacher in cached.items() if teacher.stored},
    )
    views = experiment.cache.views if cached else 0
    plan = Plan(
        ids=data.ids,
        seed=experiment.seed,
        augment_seed=experiment.cache.seed if views else experiment.seed,
        cached_views=views,
        augment=experiment.data.augment,
        size=data.shape[1:],
        partners=Partners.within(data.ids, data.ids) if experiment.data.augment.mixing else None,
    )
    return Feeder(near, far, plan, data.device, readers=readers)


def build_teachers(
    experiment: Experiment, material: Material, device: torch.device, placement: Placement | None = None
) -> tuple[CachedTeacher | LiveTeacher, ...]:
    """Return the source of each teacher's outputs, or none where no method asks for any."""
    if not experiment.all_needs.teacher:
        return ()
    place = placement.place(device) if placement is not None else device
    return tuple(
        _build_teacher(experiment, number, material, device, place) for number in range(len(experiment.teachers))
    )


def build_agreement(
    experiment: Experiment,
    material: Material,
    validation: ResidentSet,
    teachers: Sequence[CachedTeacher | LiveTeacher],
) -> Agreement | None:
    """Return what compares the student with the first teacher on held-out images; None where nobody asks.

    A live teacher is the one of the steps, and one of its own where no method asks for any.
    """
    measures, device = experiment.agreement, validation.device
    if not measures:
        return None
    if material.held_out_rows is not None:
        return Agreement(measures, validation, rows=material.held_out_rows)
    images = None if material.teacher_held_out is None else ResidentSet(material.teacher_held_out, device)
    shown = validation.shape if images is None else images.shape
    teacher = teachers[0] if teachers else _run_live(experiment, 0, material.train.num_classes, shown, device)
    assert isinstance(teacher, LiveTeacher)
    return Agreement(measures, validation, teacher=teacher, teacher_images=images)


def _build_teacher(
    experiment: Experiment, number: int, material: Material, device: torch.device, place: torch.device
) -> CachedTeacher | LiveTeacher:
    needs = experiment.all_needs
    if experiment.teachers[number].source == "cache":
        table = material.tables[number]
        if isinstance(table, StoredRows):
            return CachedTeacher(table, needs)
        return CachedTeacher(HeldRows(table, material.table_views[number], place), needs)
    shape = (material.train if material.teacher_train is None else material.teacher_train).shape
    return _run_live(experiment, number, material.train.num_classes, shape, device)


def _run_live(
    experiment: Experiment, number: int, num_classes: int, shape: tuple[int, int, int], device: torch.device
) -> LiveTeacher:
    network = load_teacher(experiment.teachers[number], num_classes=num_classes, in_channels=shape[0])
    return LiveTeacher(
        network.to(device).to(memory_format=torch.channels_last),
        experiment.all_needs,
        image_shape=shape,
    )
