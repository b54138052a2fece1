"""Images with boxes: PASCAL VOC, COCO, and drawn ones.

Each set gives float images [C, H, W] in [0, 1] and what is on them: ``boxes`` [N, 4] as left, top, right and bottom in
pixels, ``labels`` [N] from 1, and ``ignored`` [N], of which nothing is asked.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from drawing import SHAPES, drawn
from PIL import Image
from students import COLOURS
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torchvision.datasets import CocoDetection, VOCDetection
from torchvision.transforms.functional import pil_to_tensor

from raydistill.data.voc import CLASSES as VOC_CLASSES
from raydistill.errors import DataError

Item = tuple[Tensor, dict[str, Tensor]]

_VOC_TRAINING = {"voc": ("2007", "2012"), "voc07": ("2007",)}


class Voc(Dataset[Item]):
    """One part of one year. Difficult objects are ignored where a detector is judged, and trained on, as is usual."""

    num_classes = len(VOC_CLASSES)

    def __init__(self, root: Path, year: str, part: str, channels: int, *, download: bool) -> None:
        """Find the files. Raises ``DataError`` where they are missing."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._images = VOCDetection(str(root), year=year, image_set=part, download=download)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{root}: no VOCdevkit/VOC{year} with {part} ({_line(error)}); point --root at the folder that holds "
                "VOCdevkit, or give --download"
            ) from None
        self._channels = channels
        self._training = part == "trainval"

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Item:
        image, annotation = self._images[index]
        objects = annotation["annotation"]["object"]
        corners = [[float(each["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for each in objects]
        first = torch.tensor([1.0, 1.0, 0.0, 0.0])  # VOC's first pixel is number 1
        boxes = torch.tensor(corners).reshape(-1, 4) - first
        labels = [VOC_CLASSES.index(each["name"]) + 1 for each in objects]
        difficult = [not self._training and each["difficult"] == "1" for each in objects]
        return _pixels(image, self._channels), _target(boxes, labels, difficult)


class Coco(Dataset[Item]):
    """One part of COCO 2017; crowds are ignored, and images without a box are not trained on."""

    def __init__(self, root: Path, part: str, channels: int, *, training: bool) -> None:
        """Read the annotations. Raises ``DataError`` where there are none."""
        images, annotations = root / part, root / "annotations" / f"instances_{part}.json"
        if not images.is_dir() or not annotations.is_file():
            raise DataError(
                f"{root}: no COCO: {images} and {annotations} are needed; see https://cocodataset.org/#download"
            )
        with contextlib.redirect_stdout(io.StringIO()):
            self._images = CocoDetection(str(images), str(annotations))
        categories = sorted(self._images.coco.getCatIds())
        self._labels = {category: number for number, category in enumerate(categories, start=1)}
        self.num_classes = len(categories)
        self._channels = channels
        self._shown = [index for index in range(len(self._images)) if not training or self._has_boxes(index)]

    def __len__(self) -> int:
        return len(self._shown)

    def __getitem__(self, index: int) -> Item:
        image, annotations = self._images[self._shown[index]]
        annotations = [each for each in annotations if _has_area(each)]
        boxes = torch.tensor([each["bbox"] for each in annotations]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = [self._labels[each["category_id"]] for each in annotations]
        return _pixels(image, self._channels), _target(boxes, labels, [bool(each["iscrowd"]) for each in annotations])

    def _has_boxes(self, index: int) -> bool:
        found = self._images.coco.imgToAnns[self._images.ids[index]]
        return any(_has_area(each) and not each["iscrowd"] for each in found)


class Drawn(Dataset[Item]):
    """One to three shapes on noise, each of a grey or colour of its own; they do not overlap."""

    num_classes = len(SHAPES)

    def __init__(self, count: int, channels: int, seed: int, side: int = 64) -> None:
        """Draw them."""
        generator = torch.Generator().manual_seed(seed)
        scenes = [drawn(generator, channels, side) for _ in range(count)]
        self._items = [
            (scene.image, _target(scene.boxes, scene.labels, [False] * len(scene.labels))) for scene in scenes
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        return self._items[index]


def training_and_test(
    data: str, root: Path | None, channels: int, *, download: bool, seed: int
) -> tuple[Dataset[Item], Dataset[Item], int]:
    """Return what to train on, what to judge by, and the number of classes.

    Raises:
        DataError: where files are missing.
    """
    if data == "synthetic":
        return Drawn(96, channels, seed=1000 + seed), Drawn(32, channels, seed=0), Drawn.num_classes
    if root is None:
        raise DataError(f"--root: --data {data} needs the folder that holds it")
    if years := _VOC_TRAINING.get(data):
        parts = [Voc(root, year, "trainval", channels, download=download) for year in years]
        return ConcatDataset(parts), Voc(root, "2007", "test", channels, download=download), Voc.num_classes
    if download:
        raise DataError("--download: torchvision fetches VOC alone; COCO's files: https://cocodataset.org/#download")
    test = Coco(root, "val2017", channels, training=False)
    return Coco(root, "train2017", channels, training=True), test, test.num_classes


def _pixels(image: Image.Image, channels: int) -> Tensor:
    pixels: Tensor = pil_to_tensor(image.convert(COLOURS[channels])).float() / 255
    return pixels


def _target(boxes: Tensor, labels: Sequence[int], ignored: Sequence[bool]) -> dict[str, Tensor]:
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "ignored": torch.tensor(ignored).bool()}


def _has_area(annotation: dict[str, Any]) -> bool:
    return bool(annotation["bbox"][2] > 0 and annotation["bbox"][3] > 0)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
