"""What methods remember of one step in the next, counted: queues and banks of embeddings. Nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raydistill.config import Experiment
from raydistill.data.config import DataConfig
from raydistill.methods.base import Setting
from raydistill.methods.state import KeyQueue, MemoryBank
from raydistill.models.zoo import build_model
from raydistill.reporting.runs import RunRecord

MEMORY, SHARE = "memory_mb", "memory_share"
TRAINING_IMAGES = {"cifar100": 50_000, "image_folder": 1_281_167}
"""Of sets that are taken whole; folders of images are ImageNet."""
IMAGENET_CLASSES = 1000


def counted(experiments: Sequence[Experiment], reference: str) -> list[RunRecord]:
    """Return a record for each experiment, with its memory in MB and in percent of that of the method ``reference``."""
    sizes = {each.name: memory_mb(each) for each in experiments}
    of_reference = {each.data.name: sizes[each.name] for each in experiments if reference in each.methods}
    return [_record(each, sizes[each.name], of_reference.get(each.data.name)) for each in experiments]


def memory_mb(experiment: Experiment) -> float:
    """Return the size of all banks and queues of an experiment in MB, held-out images counted as if trained on."""
    with torch.device("meta"):  # shapes without numbers
        setting = _setting(experiment)
        parts = [method.parts(setting) for method in experiment.methods.values()]
    remembered = [_remembered(module) for part in parts for module in part.modules()]
    return sum(remembered) / 1e6


def _remembered(module: torch.nn.Module) -> int:
    if isinstance(module, MemoryBank):
        return module.rows.nbytes
    return module.keys.nbytes if isinstance(module, KeyQueue) else 0


def _setting(experiment: Experiment) -> Setting:
    assert experiment.teacher is not None
    data = experiment.data
    shape, classes = _images(data)
    student = build_model(experiment.student.model, classes, shape[0])
    teacher = build_model(experiment.teacher.model, classes, shape[0])
    images = TRAINING_IMAGES[data.name] if data.subset is None else data.subset
    labels: Tensor = torch.arange(images, device="cpu") % classes
    return Setting(
        student=student.shapes(shape),
        teachers=(teacher.shapes(shape),),
        student_network=student,
        num_classes=classes,
        num_samples=images,
        batch_size=experiment.train.batch_size,
        epochs=experiment.train.epochs,
        labels=labels,
        seed=experiment.seed,
    )


def _images(data: DataConfig) -> tuple[tuple[int, int, int], int]:
    if data.known.shape is not None and data.known.num_classes is not None:
        return data.known.shape, data.known.num_classes
    assert data.image_size is not None
    return (3, data.image_size, data.image_size), IMAGENET_CLASSES


def _record(experiment: Experiment, size: float, reference: float | None) -> RunRecord:
    share = {} if reference is None else {SHARE: 100 * size / reference}
    return untrained(experiment, {"student": {MEMORY: size, **share}})


def untrained(experiment: Experiment, card: Mapping[str, Mapping[str, Any]]) -> RunRecord:
    """Return the record of a student that nobody trains, with a report card of what is known of it all the same."""
    return RunRecord(
        path=experiment.folder,
        kind="train",
        name=experiment.name,
        seed=experiment.seed,
        student=experiment.student.model,
        methods=tuple(experiment.methods),
        top1=None,
        config=experiment.to_dict(),
        environment={},
        result={"epochs": experiment.train.epochs},
        card=card,
    )
