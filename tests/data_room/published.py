"""Tiny copies of published data sets in the layouts that their archives unpack to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from raydistill.data.voc import CLASSES
from tests.data_room.files import write_image

BIRDS = (("001.Albatross/Albatross_0001.jpg", 1, 1), ("001.Albatross/Albatross_0002.jpg", 1, 0))
BIRDS += (("200.Yellowthroat/Yellowthroat_0001.jpg", 200, 0), ("200.Yellowthroat/Yellowthroat_0002.jpg", 200, 1))
"""Path, class and whether it is a training image."""

CARS = (("000001.jpg", 196), ("000002.jpg", 1), ("000003.jpg", 7))


def write_birds(root: Path) -> None:
    """CUB_200_2011 with images of which each is plain and of its own brightness and size."""
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for number, row in enumerate(BIRDS, start=1):
        write_image(root / "images" / row[0], size=(8 + number, 8), value=40 * number)
        for lines, value in zip(lists.values(), row, strict=True):
            lines.append(f"{number} {value}\n")
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("".join(lines))


def write_annotations(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A MATLAB file with a struct array ``annotations``."""
    rows = list(rows)
    found = np.zeros((1, len(rows)), dtype=[(name, "O") for name in rows[0]])
    for number, row in enumerate(rows):
        found[0, number] = tuple(row.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": found})


def write_cars(root: Path) -> None:
    """Stanford's Cars with a list for each part; boxes come first there."""
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        cars = CARS if split == "train" else CARS[:1]
        write_annotations(root / path, ({"bbox_x1": 3, "class": label, "fname": name} for name, label in cars))
        for number, (name, _) in enumerate(cars):
            write_image(root / f"cars_{split}" / name, size=(8, 9 + number), value=50 * number)


def write_cars_together(root: Path) -> None:
    """The same in one folder with one list; the second image is for testing."""
    write_annotations(
        root / "cars_annos.mat",
        (
            {"relative_im_path": f"car_ims/{name}", "bbox_x1": 3, "class": label, "test": int(number == 1)}
            for number, (name, label) in enumerate(CARS)
        ),
    )
    for number, (name, _) in enumerate(CARS):
        write_image(root / "car_ims" / name, size=(8, 9 + number), value=50 * number)


def write_voc(root: Path, targets: Mapping[str, Sequence[Sequence[int]]], values: Mapping[str, Sequence[int]]) -> None:
    """VOC2007 with [N, 20] ``targets`` of ``trainval`` and ``test``, and plain images of a brightness for each."""
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    for part, rows in targets.items():
        names = [f"{number:06d}" for number in range(5 if part == "test" else 1000, 9999)][: len(rows)]
        for column, name in enumerate(CLASSES):
            lines = (f"{image} {row[column]:2d}\n" for image, row in zip(names, rows, strict=True))
            (lists / f"{name}_{part}.txt").write_text("".join(lines))
        for image, value in zip(names, values[part], strict=True):
            write_image(root / "JPEGImages" / f"{image}.jpg", size=(12, 9), value=value)


def halves(each: int = 8) -> tuple[dict[str, list[list[int]]], dict[str, list[int]]]:
    """Targets and brightness that agree wholly: dark images show the first ten classes, bright ones the others.

    One image of each kind in both parts is difficult in a class that its brightness speaks for.
    """
    rows = [[1 if (column < 10) == (number < each) else -1 for column in range(20)] for number in range(2 * each)]
    rows[0][3] = rows[each][13] = 0
    brightness = [20 + number for number in range(each)] + [230 - number for number in range(each)]
    targets = {part: [list(row) for row in rows] for part in ("trainval", "test")}
    return targets, {"trainval": brightness, "test": [value + 3 for value in brightness]}
