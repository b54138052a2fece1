"""Samples of anybody's data set as bytes and labels, or one line about why they cannot be taken as they are.

The platform keeps images as bytes and draws augmentations itself, so that teacher and student see the same pixels. A
sample is therefore taken only if its bytes are certain: nothing is rounded, and the same index gives the same twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from raydistill.errors import DataError, first_line

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""[H, W, C], of one channel or three."""

_CHANNELS = (1, 3)
_CHECKED = 16
_TOLERANCE = 1e-3
"""Of a level of 255, so far as float32 is off by itself."""
_MODES = ("L", "RGB")


@dataclass(frozen=True)
class Sample:
    """One image, uint8 [H, W, C], and its class, if it has one."""

    pixels: Pixels
    label: int | None


class Arrays:
    """Images [N, ...], and labels [N] if there are any, as a data set."""

    def __init__(self, images: Any, labels: Any | None) -> None:
        """Keep both, which are arrays or tensors."""
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        """Image, or image and label."""
        return self._images[index] if self._labels is None else (self._images[index], self._labels[index])


def data_set_of(given: Any, what: str) -> Any:
    """Return something with a length and items by number: ``given`` itself, or its arrays as such.

    Args:
        given: a map-style data set, an array or tensor of images, or a pair of those and their labels.
        what: what errors call it.

    Raises:
        DataError: it is none of these, is empty, or has other numbers of images and labels.
    """
    if _is_array(given):
        given = Arrays(given, None)
    elif isinstance(given, tuple) and len(given) == 2 and all(map(_is_array, given)):
        if len(given[0]) != len(given[1]):
            raise DataError(f"{what}: {len(given[0])} images, but {len(given[1])} labels")
        given = Arrays(*given)
    if not (hasattr(given, "__getitem__") and hasattr(given, "__len__")) or isinstance(given, str | bytes | dict):
        raise DataError(
            f"{what}: {type(given).__name__} has no length and items by number; give a map-style data set, or a pair "
            "of arrays (images, labels)"
        )
    if not len(given):
        raise DataError(f"{what}: no image in it")
    return given


def samples(given: Any, what: str) -> Iterator[Sample]:
    """Yield all samples of a data set in their order; some of them are read twice.

    Raises:
        DataError: a sample cannot be taken, or is another one the second time; or not all have labels, or channels.
    """
    data = data_set_of(given, what)
    twice = set(np.linspace(0, len(data) - 1, min(len(data), _CHECKED), dtype=int).tolist())
    first: Sample | None = None
    for index in range(len(data)):
        where = f"{what}[{index}]"
        sample = sample_of(_item(data, index, where), where)
        if index in twice and not np.array_equal(sample.pixels, sample_of(_item(data, index, where), where).pixels):
            raise DataError(
                f"{where}: gives other pixels the second time; take random changes out of the data set and name them "
                "in augment, such as augment={'crop': 4, 'flip': 0.5}, so that teacher and student see the same views"
            )
        first = first or sample
        if (sample.label is None) != (first.label is None):
            raise DataError(f"{where}: images with labels and without in one data set")
        if sample.pixels.shape[2] != first.pixels.shape[2]:
            raise DataError(
                f"{where}: {sample.pixels.shape[2]} channels, but {first.pixels.shape[2]} in the images before; "
                "convert all to grey or all to colour"
            )
        yield sample


def sample_of(item: Any, where: str) -> Sample:
    """Take an image, or a pair of image and label, apart. Raises ``DataError``, whose line begins with ``where``."""
    if not isinstance(item, tuple | list):
        return Sample(pixels_of(item, where), None)
    if len(item) not in (1, 2):
        raise DataError(f"{where}: {len(item)} parts; an item is an image, or a pair of image and label")
    return Sample(pixels_of(item[0], where), _label(item[1], where) if len(item) == 2 else None)


def pixels_of(image: Any, where: str) -> Pixels:
    """Return an image as bytes, uint8 [H, W, C], without any rounding.

    Args:
        image: a PIL image of mode L or RGB; or an array or tensor [H, W], [H, W, C] or [C, H, W], uint8, or float with
            the levels k / 255.
        where: what errors call it.

    Raises:
        DataError: it is something else, or its levels are not those of 8 bits.
    """
    if isinstance(image, Image.Image):
        if image.mode not in _MODES:
            raise DataError(f"{where}: an image of mode {image.mode}; convert('RGB') or convert('L') it")
        return _with_channels(np.asarray(image), where, last=True)
    if isinstance(image, Tensor):
        return _with_channels(_bytes(image.detach().cpu().numpy(), where), where, last=False)
    if isinstance(image, np.ndarray):
        return _with_channels(_bytes(image, where), where, last=True)
    raise DataError(f"{where}: {type(image).__name__} is no image; a PIL image, an array or a tensor is expected")


def _bytes(values: np.ndarray[Any, Any], where: str) -> Pixels:
    if values.dtype == np.uint8:
        return values
    if values.dtype not in (np.float32, np.float64):
        raise DataError(f"{where}: numbers of type {values.dtype}; give uint8, or float32 in [0, 1]")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0.0 and high <= 1.0):  # NaN is neither
        raise DataError(
            f"{where}: values from {low:.4g} to {high:.4g}, not in [0, 1]; if they are normalised already, take that "
            "out of the data set and give mean= and std="
        )
    levels = values.astype(np.float64) * 255
    rounded: np.ndarray[Any, Any] = np.rint(levels)
    if values.size and (off := np.abs(levels - rounded)).max() > _TOLERANCE:
        value = float(values.reshape(-1)[off.argmax()])
        raise DataError(
            f"{where}: {value:.6g} is no level of 8 bits (k / 255), and images are kept as bytes; give uint8 images, "
            "rounded as you see fit"
        )
    found: Pixels = rounded.astype(np.uint8)
    return found


def _with_channels(values: Pixels, where: str, *, last: bool) -> Pixels:
    """Bring channels to the end; where both ends could be those, tensors have them first and arrays ``last``."""
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim == 3 and values.size:
        ends = (values.shape[2], values.shape[0]) if last else (values.shape[0], values.shape[2])
        for number, size in enumerate(ends):
            if size in _CHANNELS:
                return values if last == (number == 0) else values.transpose(1, 2, 0)
    raise DataError(
        f"{where}: {list(values.shape)}, but an image has one channel or three: [H, W], [H, W, C] or [C, H, W]"
    )


def _label(label: Any, where: str) -> int | None:
    if label is None:
        return None
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if not isinstance(label, int | np.integer):
        shown = f"{label!r}" if isinstance(label, float | str) else type(label).__name__
        raise DataError(f"{where}: label {shown}; a label is the whole number of a class")
    if label < 0:
        raise DataError(f"{where}: label {label} is below 0; classes are counted from 0")
    return int(label)


def _item(data: Any, index: int, where: str) -> Any:
    try:
        return data[index]
    except Exception as error:  # whatever the user's code raises
        raise DataError(f"{where}: {type(error).__name__}: {first_line(error)}") from error


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor)
