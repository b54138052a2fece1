"""Named data sets as tensors: the training file, its split, and the test file."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from raydistill.data.image_set import ImageSet, Split, choose_stratified, choose_subset
from raydistill.data.modalities import drop_unpaired, in_modality
from raydistill.data.names import DATA_SETS
from raydistill.errors import DataError
from raydistill.lazy import Tensor

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

__all__ = ["DATA_SETS", "ImageSet", "Splits", "load_sides", "load_test", "load_train", "split_train", "training_ids"]


@dataclass(frozen=True)
class Splits:
    """The two parts of the training images: what is learned from, and what choices are made on."""

    train: ImageSet
    validation: ImageSet


def load_train(config: DataConfig) -> ImageSet:
    """All training images after ``config.subset``, validation included, as the student sees them.

    Of ``config.of_teacher`` they are what a teacher cache covers.

    Raises:
        DataError: the files are missing, damaged, or fewer than the subset.
    """
    return in_modality(_read_train(config), config)


def load_sides(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """All training images as the student and as the teacher sees them; one set where there are no modalities.

    An image that could be read on one side alone is not among the student's.

    Raises:
        DataError: as ``load_train``, or the sides differ in size.
    """
    sides = config.modalities
    if sides is None or sides.teacher_root is None:
        images = _read_train(config)
        student = in_modality(images, config)
        return student, student if sides is None else in_modality(images, config.of_teacher)
    student, teacher = load_train(config), load_train(config.of_teacher)
    return drop_unpaired(student, teacher), teacher


def split_train(images: ImageSet, config: DataConfig) -> Splits:
    """Carve the validation images out, the same share of every class, decided by ids and split_seed.

    Raises:
        DataError: one of the two parts would be empty, or there is nothing to mix a training image with.
    """
    mask = _held_out(images, config.validation, config.split_seed)
    kept = int(mask.sum())
    if not 0 < kept < len(images):
        raise DataError(
            f"data.validation: a share of {config.validation} of {len(images)} images leaves "
            f"{len(images) - kept} for training and {kept} for validation; choose another share"
        )
    if config.augment.mixing is not None and len(images) - kept < 2:
        raise DataError(f"data.augment.{config.augment.mixing}: needs 2 training images or more, but there is 1")
    return Splits(images.take((~mask).nonzero().squeeze(1)), images.take(mask.nonzero().squeeze(1)))


def training_ids(images: ImageSet, *, validation: float, split_seed: int) -> Tensor:
    """Ids, ascending, int64 [M], of what ``split_train`` leaves for training, of either side's images."""
    return images.ids[~_held_out(images, validation, split_seed)].sort().values


def _held_out(images: ImageSet, validation: float, split_seed: int) -> Tensor:
    """Which images are kept for validation: bool [N]."""
    return choose_stratified(images.ids, images.labels, validation, split_seed, "validation")


def load_test(config: DataConfig) -> ImageSet:
    """The test images, whole, as the student sees them.

    Raises:
        DataError: the files are missing or damaged, or their classes are not those of the training images.
    """
    return in_modality(_read(config, "test"), config)


def _read_train(config: DataConfig) -> ImageSet:
    images = _read(config, "train")
    if config.subset is None or config.known.decodes:  # sets that decode choose before they do
        return images
    return images.take(choose_subset(images.ids, config))


def _read(config: DataConfig, split: Split) -> ImageSet:
    reader = importlib.import_module(config.known.reader)
    if config.modalities is not None:  # its mean and std are not those of what the files hold
        config = config.model_copy(update={"mean": None, "std": None})
    return cast("ImageSet", reader.read(config, split))
