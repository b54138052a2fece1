"""Data sets that need no file: scikit-learn's digits and made-up images for tests and benchmarks."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raydistill.counter_rng import integers, name_key, uniform
from raydistill.data.image_set import ImageSet, Split, assemble, choose_stratified
from raydistill.errors import DataError
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

_TEST_SHARE = 0.2
_SPLIT_SEED = 0  # part of the data set's definition, unlike the seed of the validation split
_GRID = 8
_NOISE = 1 << 16
_CHUNK = 4096


def read(config: DataConfig, split: Split) -> ImageSet:
    """Build the digits or the synthetic images."""
    return _digits(config, split) if config.name == "digits" else _synthetic(config, split)


def _digits(config: DataConfig, split: Split) -> ImageSet:
    table = torch.from_numpy(np.loadtxt(_digits_file(), delimiter=",", dtype=np.int64))
    images = (table[:, :64].reshape(-1, 1, 8, 8) * 255 / 16).round().to(torch.uint8)
    labels = table[:, 64]
    ids = torch.arange(len(labels))
    mask = choose_stratified(ids, labels, _TEST_SHARE, _SPLIT_SEED, "digits/test")
    kept = mask if split == "test" else ~mask
    return assemble(config, images[kept], labels[kept], num_classes=10, ids=ids[kept])


def _digits_file() -> Path:
    """Find scikit-learn's table of digits without importing scikit-learn, which would take seconds in every process."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("the digits come with scikit-learn, which is not installed; pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def _synthetic(config: DataConfig, split: Split) -> ImageSet:
    """Images of class ``id % classes``; test ids follow the training ids."""
    size, classes = config.synthetic_size, config.synthetic_classes
    ids = torch.arange(size) if split == "train" else torch.arange(size, size + max(classes, size // 5))
    images = torch.cat([_draw(config, chunk) for chunk in torch.split(ids, _CHUNK)])
    return assemble(config, images, ids % classes, num_classes=classes, ids=ids)


@lru_cache(maxsize=8)
def _table(name: str, size: int) -> Tensor:
    """Random float32 values [size]; shared, so never to be changed."""
    return uniform(name_key(name), torch.arange(size))


def _draw(config: DataConfig, ids: Tensor) -> Tensor:
    """Each class's pattern of squares, moved and dimmed by the id, under noise: uint8 [N, C, S, S].

    Noise is a stretch of one fixed table: a hash for each pixel would take seconds for the default size.
    """
    side, channels = config.synthetic_image_size, config.synthetic_channels
    cells = _table("synthetic/pattern", config.synthetic_classes * channels * _GRID * _GRID)
    patterns = cells.reshape(config.synthetic_classes, channels, _GRID, _GRID)
    noise = _table("synthetic/noise", _NOISE)
    reach = max(1, side // _GRID)
    row = torch.arange(side) + integers(reach, name_key("synthetic/row"), ids)[:, None]
    column = torch.arange(side) + integers(reach, name_key("synthetic/column"), ids)[:, None]
    row, column = row * _GRID // side % _GRID, column * _GRID // side % _GRID
    channel = torch.arange(channels)[None, :, None, None]
    label = (ids % config.synthetic_classes)[:, None, None, None]
    squares = patterns[label, channel, row[:, None, :, None], column[:, None, None, :]]
    start = integers(_NOISE, name_key("synthetic/start"), ids)
    pixel = torch.arange(channels * side * side)
    grain = noise[(start[:, None] + pixel) % _NOISE].reshape(squares.shape)
    contrast = (0.4 + 0.4 * uniform(name_key("synthetic/contrast"), ids))[:, None, None, None]
    return (255 * (0.5 + contrast * (squares - 0.5) + 0.4 * (grain - 0.5))).clamp(0, 255).to(torch.uint8)
