"""NYU-Depth V2 (Silberman et al. 2012) as its authors publish it: nyu_depth_v2_labeled.mat and splits.mat.

The first file is HDF5, whose axes are those of MATLAB the other way round: ``images`` uint8 [N, 3, W, H], ``depths``
float [N, W, H] in metres, ``labels`` [N, W, H], where 0 is unlabelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydistill.errors import ConfigError, DataError

SIDES = ("depth", "rgb")
DEEPEST = 10.0
"""Metres that become 255; the camera sees no farther."""

_WANTED = ("images", "depths", "labels")
_WHERE = "https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html"

Numbers = list[int]


def read_splits(path: Path) -> tuple[Numbers, Numbers]:
    """Return the positions of training and test images, from 0; images of one scene are all on one side.

    Raises:
        DataError: where the file is missing or holds no splits.
    """
    found = _matlab(path)
    try:
        train, test = (np.asarray(found[name]).astype(int).ravel() - 1 for name in ("trainNdxs", "testNdxs"))
    except KeyError as error:
        raise DataError(f"{path}: no {error} in it; it should be splits.mat of {_WHERE}") from None
    return train.tolist(), test.tolist()


def read_mapping(path: Path) -> Tensor:
    """Return for each label from 0 its class from 0, -1 for none, from a file such as ``classMapping40.mat``.

    Raises:
        DataError: where the file is missing or holds no mapping.
    """
    found = _matlab(path)
    if "mapClass" not in found:
        raise DataError(f"{path}: no 'mapClass' in it, which gives each of the labels its class")
    classes = torch.from_numpy(np.asarray(found["mapClass"]).astype(np.int64).ravel())
    return torch.cat([torch.tensor([-1]), classes - 1])


def scenes(path: Path, positions: Numbers, side: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Give one side of some images, uint8 [C, H, W], with the labels of their pixels, int64 [H, W], 0 for none.

    Depth is one channel, 0 to 255 for 0 to 10 metres.

    Raises:
        DataError: where the file is missing, is another, or has no such image.
    """
    h5py = _h5py()
    if not path.is_file():
        raise DataError(f"{path}: no such file; nyu_depth_v2_labeled.mat is at {_WHERE}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not the HDF5 that nyu_depth_v2_labeled.mat is ({error})") from None
    with file:
        if missing := [name for name in _WANTED if name not in file]:
            raise DataError(f"{path}: no {', '.join(missing)} in it; it should be nyu_depth_v2_labeled.mat")
        count = len(file["images"])
        if wrong := [position for position in positions if not 0 <= position < count]:
            raise DataError(f"{path}: it has {count} images, but image {wrong[0] + 1} is asked for")
        for position in positions:
            labels = torch.from_numpy(file["labels"][position].T.astype(np.int64))
            yield _pixels(file, position, side), labels


def _pixels(file: Any, position: int, side: str) -> Tensor:
    if side == "rgb":
        return torch.from_numpy(file["images"][position]).transpose(1, 2).contiguous()
    depth = torch.from_numpy(file["depths"][position].T.astype(np.float32))
    return (depth.clamp(0, DEEPEST) * (255 / DEEPEST)).round().to(torch.uint8)[None]


def _matlab(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return dict(loadmat(path))
    except (ValueError, OSError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read as a MATLAB file ({' '.join(str(error).split())})") from None


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigError("NYU-Depth V2 needs h5py: pip install 'raydistill[downstream]'") from error
    return h5py
