"""What a training process needs beside the experiment: images, and the teacher's rows for them.

It is prepared once, in the process that was started by the user, so that everything which does not fit is said before
any worker starts. As plain arrays it goes into Ray's object store, where all workers and trials of a node map one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raydistill.config import Experiment
from raydistill.data.datasets import ImageSet, load_sides, load_train, split_train
from raydistill.data.image_set import DecodedImages
from raydistill.data.modalities import with_ids
from raydistill.data.shared import from_parts, to_parts
from raydistill.errors import DataError
from raydistill.required import require_weights
from raydistill.teachers.cache.read import TeacherCache, find_cache
from raydistill.teachers.rows import StoredRows, table_bytes
from raydistill.teachers.source import wanted_outputs
from raydistill.training.agreement import cached_rows, check_agreement, compared
from raydistill.training.placement import streams, usual_store_bytes

Table = Mapping[str, np.ndarray[Any, Any]] | StoredRows


@dataclass(frozen=True)
class Material:
    """Training and validation images; ``tables`` holds each teacher's cached outputs [views, N, ...] for the training.

    ``table_views`` names the cached views in the tables' order; both are empty where the teacher runs live. Where the
    rows stay on the disk, ``StoredRows`` stand in the tables' place. ``table_bytes`` is what the tables take or would
    take in memory, ``store_bytes`` what a node's object store holds.
    ``teacher_train`` holds the training images as live teachers see them, where that is not what the student sees.
    Where the student is compared with the first teacher on held-out images, ``held_out_rows`` are its cached embeddings
    [N, D] of these, or ``teacher_held_out`` these as it sees them live, where that is not what the student sees.
    """

    train: ImageSet
    validation: ImageSet
    tables: tuple[Table, ...] = ()
    table_views: tuple[tuple[int, ...], ...] = ()
    teacher_train: ImageSet | None = None
    table_bytes: int = 0
    store_bytes: int = 0
    held_out_rows: np.ndarray[Any, Any] | None = None
    teacher_held_out: ImageSet | None = None

    @property
    def streams(self) -> bool:
        """Whether rows stay on the disk."""
        return any(isinstance(table, StoredRows) for table in self.tables)

    @property
    def reads_ahead(self) -> bool:
        """Whether steps need anything from the disk: rows, or encoded images."""
        sides = (self.train, self.teacher_train)
        return self.streams or any(side is not None and not isinstance(side, DecodedImages) for side in sides)


def prepare(experiment: Experiment, store_bytes: Callable[[], int] = usual_store_bytes) -> Material:
    """Load the images, carve the validation split and read the teacher's rows, or settle that they stay on the disk.

    ``store_bytes`` is asked how much a node's object store holds, once that must be known.

    Raises:
        ConfigError, DataError, CacheError, WeightsError: for whatever is missing or does not fit.
    """
    needs = experiment.all_needs
    teachers = experiment.teachers if needs.teacher else ()
    if teachers or experiment.agreement:
        images, teacher_images = load_sides(experiment.data)
    else:
        images = teacher_images = load_train(experiment.data)
    splits = split_train(images, experiment.data)
    if "label" in needs.columns and images.labels is None:
        labelled = next(label for label, method in experiment.methods.items() if "label" in method.needs().columns)
        instead = "none" if images.targets is None else "several classes an image, and so none"
        raise DataError(f"methods.{labelled} needs labels, but data set '{experiment.data.name}' has {instead}")
    check_agreement(experiment, len(splits.validation))
    require_weights(experiment)
    caches: dict[int, TeacherCache] = {}
    teacher_train = None
    for number, teacher in enumerate(teachers):
        if teacher.source == "live":
            if teacher_images is not images and teacher_train is None:
                teacher_train = with_ids(teacher_images, splits.train.ids)
        else:
            caches[number] = find_cache(experiment.for_teacher(number), teacher_images)
    material = Material(splits.train, splits.validation, teacher_train=teacher_train)
    if experiment.agreement:
        seen_alike = teacher_images is images
        material = _with_held_out(material, experiment, caches.get(0), teacher_images, seen_alike=seen_alike)
    if not caches:
        return replace(material, tables=({},) * len(teachers), table_views=((),) * len(teachers))
    return _with_rows(material, experiment, caches, store_bytes())


def _with_held_out(
    material: Material, experiment: Experiment, cache: TeacherCache | None, images: ImageSet, *, seen_alike: bool
) -> Material:
    """Add the first teacher's side of the comparison on held-out images.

    ``cache`` is its own, if that is open already; ``images`` are all training images as it sees them.
    """
    held_out = material.validation
    if experiment.teachers[0].source == "cache":
        cache = find_cache(experiment.for_teacher(0), images) if cache is None else cache
        return replace(material, held_out_rows=cached_rows(cache, held_out))
    if seen_alike:
        return material
    return replace(material, teacher_held_out=with_ids(images, held_out.ids[compared(len(held_out))]))


def _with_rows(
    material: Material, experiment: Experiment, caches: Mapping[int, TeacherCache], store_bytes: int
) -> Material:
    """Add the rows of cached teachers, by their numbers."""
    names = {number: wanted_outputs(experiment.all_needs, cache) for number, cache in caches.items()}
    ids = material.train.ids
    size = sum(table_bytes(cache, len(ids), names[number]) for number, cache in caches.items())
    stays = streams(experiment.cache.read, size, _image_bytes(material), store_bytes)
    tables: list[Table] = [{} for _ in experiment.teachers]
    views: list[tuple[int, ...]] = [() for _ in experiment.teachers]
    for number, cache in caches.items():
        views[number] = tuple(cache.views)
        if stays:
            tables[number] = StoredRows.of(cache, ids, names[number])
        else:
            tables[number] = cache.table(ids, cache.views, names[number])
    return replace(material, tables=tuple(tables), table_views=tuple(views), table_bytes=size, store_bytes=store_bytes)


def _image_bytes(material: Material) -> int:
    """What the decoded images take of the object store."""
    parts = (material.train, material.validation, material.teacher_train)
    return sum(part.images.nbytes for part in parts if isinstance(part, DecodedImages))


def to_arrays(material: Material) -> dict[str, Any]:
    """Take a material apart into arrays, which Ray maps without a copy, and plain values."""
    return {
        "train": to_parts(material.train),
        "validation": to_parts(material.validation),
        "tables": list(material.tables),
        "table_views": material.table_views,
        "table_bytes": material.table_bytes,
        "store_bytes": material.store_bytes,
        "reads_ahead": material.reads_ahead,
        "teacher_train": None if material.teacher_train is None else to_parts(material.teacher_train),
        "held_out_rows": material.held_out_rows,
        "teacher_held_out": None if material.teacher_held_out is None else to_parts(material.teacher_held_out),
    }


def from_arrays(arrays: Mapping[str, Any]) -> Material:
    """Undo ``to_arrays``; the tensors share the arrays' memory and must not be written to."""
    return Material(
        from_parts(arrays["train"]),
        from_parts(arrays["validation"]),
        tuple(arrays["tables"]),
        tuple(tuple(views) for views in arrays["table_views"]),
        None if arrays["teacher_train"] is None else from_parts(arrays["teacher_train"]),
        arrays["table_bytes"],
        arrays["store_bytes"],
        arrays["held_out_rows"],
        None if arrays["teacher_held_out"] is None else from_parts(arrays["teacher_held_out"]),
    )
