"""Pictures of several garments each, in VOC2007's layout: images that show several classes, out of Fashion-MNIST.

Four garments make a picture of 56 x 56 pixels, two by two. VOC's first ten names stand for the ten kinds of garments;
of the other ten no picture shows any. Training pictures are made of training images, test pictures of test images.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train
from raydistill.data.image_set import DecodedImages, ImageSet
from raydistill.data.voc import CLASSES
from raydistill.files import make_folders, write_atomically

PICTURES = {"trainval": 1500, "test": 500}
TILES = 2


def draw_garments(root: Path, source: DataConfig) -> None:
    """Write the pictures below ``root``, unless they are there; the last list that is written tells."""
    if _list(root, CLASSES[-1], "test").is_file():
        return
    make_folders(root / "JPEGImages")
    make_folders(root / "ImageSets" / "Main")
    whole = source.model_copy(update={"subset": None})
    for part, images in (("trainval", load_train(whole)), ("test", load_test(whole))):
        _write(root, part, images)


def _write(root: Path, part: str, images: ImageSet) -> None:
    assert isinstance(images, DecodedImages) and images.labels is not None
    count, first = PICTURES[part], 0 if part == "trainval" else PICTURES["trainval"]
    generator = torch.Generator().manual_seed(first)
    chosen = torch.randperm(len(images), generator=generator)[: count * TILES**2].view(count, TILES**2)
    names = [f"{first + number:06d}" for number in range(1, count + 1)]
    for name, rows in zip(names, chosen, strict=True):
        picture = make_grid(images.images[rows], nrow=TILES, padding=0)[:1]
        to_pil_image(picture).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    shown = _shown(images.labels[chosen], images.num_classes)
    for number, label in enumerate(CLASSES):
        targets = shown[:, number].tolist() if number < images.num_classes else [-1] * count
        lines = [f"{name} {target:2d}\n" for name, target in zip(names, targets, strict=True)]
        write_atomically(_list(root, label, part), "".join(lines))


def _shown(labels: Tensor, classes: int) -> Tensor:
    """1 where one of a picture's ``labels`` [N, tiles] is the class, else -1: [N, classes]."""
    return 2 * torch.nn.functional.one_hot(labels, classes).amax(dim=1) - 1


def _list(root: Path, label: str, part: str) -> Path:
    return root / "ImageSets" / "Main" / f"{label}_{part}.txt"
