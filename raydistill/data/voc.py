"""VOC07: photographs of 20 kinds of things, often of several at once (Everingham et al. 2010, the VOC challenge)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.data.image_set import ImageSet, Split
from raydistill.data.listed import folder_with, open_files, read_pairs
from raydistill.errors import DataError
from raydistill.lazy import torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_LISTS = {"train": "trainval", "test": "test"}
_SOURCE = "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar of the PASCAL Visual Object Classes Challenge 2007"


def read(config: DataConfig, split: Split) -> ImageSet:
    """Read the images of the classification task, ``trainval`` to train on; they have targets in the place of labels.

    A target is 1 where an image shows the class, -1 where it does not, and 0 where all that it shows of it is marked
    difficult, which the challenge's evaluation leaves out.

    Raises:
        DataError: a list is missing, cannot be understood or has other images than that of another class, or images are
            missing or damaged.
    """
    lists, ending = Path("ImageSets", "Main"), f"{_LISTS[split]}.txt"
    first = lists / f"{CLASSES[0]}_{ending}"
    folder = folder_with(config, [first.as_posix()], ["VOCdevkit/VOC2007", "VOC2007"], _SOURCE)
    images = [name for name, _ in _shown(folder / first)]
    columns = []
    for name in CLASSES:
        path = folder / lists / f"{name}_{ending}"
        shown = _shown(path)
        if [image for image, _ in shown] != images:
            raise DataError(f"{path}: {len(shown)} images, not the {len(images)} of {first.name} in their order")
        columns.append([int(value) for _, value in shown])
    return open_files(
        config,
        split,
        [f"JPEGImages/{name}.jpg" for name in images],
        [folder / "JPEGImages" / f"{name}.jpg" for name in images],
        targets=torch.tensor(columns, dtype=torch.int8).T.contiguous(),
        num_classes=len(CLASSES),
    )


def _shown(path: Path) -> list[tuple[str, str]]:
    return list(read_pairs(path, "an image's name and 1, 0 or -1", range(-1, 2)))
