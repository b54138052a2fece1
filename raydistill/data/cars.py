"""Cars196: photographs of 196 models of cars (Krause et al. 2013, 3D Object Representations, section 3)."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raydistill.data.image_set import ImageSet, Split
from raydistill.data.listed import folder_with, open_files
from raydistill.errors import DataError
from raydistill.lazy import torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

_CLASSES = 196
_SOURCE = (
    "Stanford's Cars data set (its own page is not reachable any more; mirrors keep cars_train, cars_test, devkit and "
    "cars_test_annos_withlabels.mat, or car_ims and cars_annos.mat)"
)
_TOGETHER = "cars_annos.mat"
_TRAINING = "devkit/cars_train_annos.mat"
_TEST = ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")


def read(config: DataConfig, split: Split) -> ImageSet:
    """Read the whole images of the official split, all classes in both parts; boxes are not looked at.

    There are two layouts: a list for each part, or one with all images in a folder. An image's id follows from its path
    there, so that the two layouts have different ids.

    Raises:
        DataError: a list is missing or cannot be understood, or images are missing or damaged.
    """
    folder = folder_with(config, [_TRAINING, _TOGETHER], ["stanford_cars"], _SOURCE)
    if (folder / _TRAINING).is_file():
        path = folder / _TRAINING if split == "train" else _test_list(folder)
        cars = [(f"cars_{split}/{name}", label) for name, label in _annotations(path, "fname", "class")]
    else:
        path = folder / _TOGETHER
        rows = _annotations(path, "relative_im_path", "class", "test")
        cars = [(name, label) for name, label, of_test in rows if bool(of_test) == (split == "test")]
    wrong = next((f"{name} has class {label}" for name, label in cars if not _is_class(label)), None)
    if wrong is not None:
        raise DataError(f"{path}: {wrong}, expected 1 to {_CLASSES}")
    return open_files(
        config,
        split,
        [name for name, _ in cars],
        [folder / name for name, _ in cars],
        labels=torch.tensor([int(label) - 1 for _, label in cars], dtype=torch.int64),
        num_classes=_CLASSES,
    )


def _is_class(label: object) -> bool:
    return isinstance(label, int | np.integer) and 1 <= int(label) <= _CLASSES


def _test_list(folder: Path) -> Path:
    found = next((folder / name for name in _TEST if (folder / name).is_file()), None)
    if found is None:
        raise DataError(f"{folder}: no {' or '.join(_TEST)} there; the devkit's cars_test_annos.mat tells no classes")
    return found


def _annotations(path: Path, *fields: str) -> list[tuple[Any, ...]]:
    """Return these fields of each annotation in a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    damage = (OSError, ValueError, TypeError, LookupError, NotImplementedError, MatReadError, zlib.error)
    try:
        found = np.atleast_1d(loadmat(path, squeeze_me=True, variable_names=["annotations"])["annotations"])
        return [tuple(row) for row in found[list(fields)]]
    except damage as error:
        raise DataError(f"{path}: not a MATLAB file with annotations of {', '.join(fields)} ({error})") from error
