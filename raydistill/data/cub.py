"""CUB200: photographs of 200 species of birds (Wah et al. 2011, Caltech-UCSD Birds-200-2011)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.data.image_set import ImageSet, Split
from raydistill.data.listed import folder_with, open_files, read_pairs
from raydistill.errors import DataError
from raydistill.lazy import torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

_CLASSES = 200
_SOURCE = "CUB_200_2011.tgz from Caltech's page 'Caltech-UCSD Birds-200-2011'"


def read(config: DataConfig, split: Split) -> ImageSet:
    """Read the whole images of the official split, all classes in both parts; boxes and attributes are not looked at.

    Raises:
        DataError: a list is missing, cannot be understood or does not speak of the same images as the others, or
            images are missing or damaged.
    """
    folder = folder_with(config, ["images.txt"], ["CUB_200_2011"], _SOURCE)
    lists = tuple(folder / name for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt"))
    paths = _by_number(lists[0], "an image's number and path")
    classes = _by_number(lists[1], f"an image's number and its class from 1 to {_CLASSES}", range(1, _CLASSES + 1))
    training = _by_number(lists[2], "an image's number and 1 for training or 0 for test", range(2))
    _check_same(lists[0], paths, lists[1], classes)
    _check_same(lists[0], paths, lists[2], training)
    chosen = [number for number in paths if (int(training[number]) == 1) == (split == "train")]
    return open_files(
        config,
        split,
        [paths[number] for number in chosen],
        [folder / "images" / paths[number] for number in chosen],
        labels=torch.tensor([int(classes[number]) - 1 for number in chosen], dtype=torch.int64),
        num_classes=_CLASSES,
    )


def _by_number(path: Path, expected: str, values: range | None = None) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, value in read_pairs(path, expected, values):
        if found.setdefault(number, value) != value:
            raise DataError(f"{path}: image {number} stands there twice, with {found[number]} and {value}")
    return found


def _check_same(path: Path, known: dict[str, str], other: Path, found: dict[str, str]) -> None:
    for numbers, lacking, where in ((known, found, other), (found, known, path)):
        missing = next((number for number in numbers if number not in lacking), None)
        if missing is not None:
            raise DataError(f"{other}: {len(found)} images, {path} has {len(known)}; {where} lacks image {missing}")
