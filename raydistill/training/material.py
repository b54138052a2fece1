"""What a training process needs beside the experiment: images, and the teacher's rows for them.

It is prepared once, in the process that was started by the user, so that everything which does not fit is said before
any worker starts. As plain arrays it goes into Ray's object store, where all workers and trials of a node map one copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.config import Experiment
from raydistill.data.datasets import ImageSet, load_sides, load_train, split_train
from raydistill.data.modalities import with_ids
from raydistill.data.shared import tensor_of
from raydistill.errors import DataError, WeightsError
from raydistill.teachers.cache.read import find_cache
from raydistill.teachers.source import wanted_outputs


@dataclass(frozen=True)
class Material:
    """Training and validation images; ``tables`` holds each teacher's cached outputs [views, N, ...] for the training.

    ``table_views`` names the cached views in the tables' order; both are empty where the teacher runs live.
    ``teacher_train`` holds the training images as live teachers see them, where that is not what the student sees.
    """

    train: ImageSet
    validation: ImageSet
    tables: tuple[Mapping[str, np.ndarray[Any, Any]], ...] = ()
    table_views: tuple[tuple[int, ...], ...] = ()
    teacher_train: ImageSet | None = None


def prepare(experiment: Experiment) -> Material:
    """Load the images, carve the validation split and read the teacher's rows.

    Raises:
        DataError, CacheError, WeightsError: for whatever is missing or does not fit.
    """
    needs = experiment.all_needs
    teachers = experiment.teachers if needs.teacher else ()
    if teachers:
        images, teacher_images = load_sides(experiment.data)
    else:
        images = teacher_images = load_train(experiment.data)
    splits = split_train(images, experiment.data)
    if "label" in needs.columns and images.labels is None:
        labelled = next(label for label, method in experiment.methods.items() if "label" in method.needs().columns)
        raise DataError(f"methods.{labelled} needs labels, but data set '{experiment.data.name}' has none")
    _require_files(experiment)
    tables: list[Mapping[str, np.ndarray[Any, Any]]] = []
    views: list[tuple[int, ...]] = []
    teacher_train = None
    for number, teacher in enumerate(teachers):
        if teacher.source == "live":
            if teacher_images is not images and teacher_train is None:
                teacher_train = with_ids(teacher_images, splits.train.ids)
            tables.append({})
            views.append(())
            continue
        cache = find_cache(experiment.for_teacher(number), teacher_images)
        tables.append(cache.table(splits.train.ids, cache.views, wanted_outputs(needs, cache)))
        views.append(tuple(cache.views))
    return Material(splits.train, splits.validation, tuple(tables), tuple(views), teacher_train)


def _require_files(experiment: Experiment) -> None:
    """Say at once which weights are missing, rather than in a worker."""
    given = {"student.weights": experiment.student.weights}
    given |= {f"peers.{number}.weights": peer.weights for number, peer in enumerate(experiment.peers)}
    for number, teacher in enumerate(experiment.teachers if experiment.all_needs.teacher else ()):
        if teacher.source == "live":
            given["teacher.weights" if not number else f"ensemble.{number - 1}.weights"] = teacher.weights
    for key, path in given.items():
        if path is not None and not Path(path).is_file():
            raise WeightsError(f"{key} = {path}: no such file")


def to_arrays(material: Material) -> dict[str, Any]:
    """Take a material apart into arrays, which Ray maps without a copy, and plain values."""

    def images(part: ImageSet) -> dict[str, Any]:
        return {
            "images": part.images.numpy(),
            "labels": None if part.labels is None else part.labels.numpy(),
            "ids": part.ids.numpy(),
            "num_classes": part.num_classes,
            "mean": part.mean,
            "std": part.std,
            "skipped": part.skipped,
        }

    return {
        "train": images(material.train),
        "validation": images(material.validation),
        "tables": [dict(table) for table in material.tables],
        "table_views": material.table_views,
        "teacher_train": None if material.teacher_train is None else images(material.teacher_train),
    }


def from_arrays(arrays: Mapping[str, Any]) -> Material:
    """Undo ``to_arrays``; the tensors share the arrays' memory and must not be written to."""

    def images(part: Mapping[str, Any]) -> ImageSet:
        tensors = {name: None if part[name] is None else tensor_of(part[name]) for name in ("images", "labels", "ids")}
        return ImageSet(**{**part, **tensors})

    return Material(
        images(arrays["train"]),
        images(arrays["validation"]),
        tuple(arrays["tables"]),
        tuple(tuple(views) for views in arrays["table_views"]),
        None if arrays["teacher_train"] is None else images(arrays["teacher_train"]),
    )
