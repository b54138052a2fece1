"""Encoded images to one tensor, with damaged ones told or skipped."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from raydistill.data.image_set import Skipped
from raydistill.errors import DataError
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

# What Pillow and its codecs raise for damaged input.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_CHUNK = 512
_Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Encoded:
    """One encoded image: the name errors give it, and the file or the bytes that hold it."""

    name: str
    source: Path | bytes | None


@dataclass(frozen=True)
class Decoded:
    """Pixels, uint8 [M, 3, H, W], the positions they had, int64 [M], and the images skipped."""

    images: Tensor
    positions: Tensor
    skipped: tuple[Skipped, ...]


def decode_all(encoded: Sequence[Encoded], ids: Tensor, config: DataConfig) -> Decoded:
    """Decode images, whose ids are int64 [N], to RGB in their order.

    They are scaled and cut to ``config.image_size`` where that is set.

    Raises:
        DataError: an image is damaged (or too many are, with ``on_error: skip``), or sizes differ without an
            ``image_size``.
    """
    kept: list[_Pixels] = []
    positions: list[int] = []
    skipped: list[Skipped] = []
    allowed = config.max_errors * len(encoded)
    for position, result in enumerate(_attempts(encoded, config.image_size)):
        if isinstance(result, str):
            skipped.append(Skipped(int(ids[position]), encoded[position].name, result))
            _check_damage(skipped, allowed, len(encoded), config)
        else:
            kept.append(result)
            positions.append(position)
            _check_size(encoded, positions, result, kept[0])
    if not kept:
        raise DataError(f"data set '{config.name}' at {config.root}: no image in it")
    images = torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2).contiguous()
    return Decoded(images, torch.tensor(positions), tuple(skipped))


def _attempts(encoded: Sequence[Encoded], size: int | None) -> Iterator[_Pixels | str]:
    """Pixels [H, W, 3] or the reason why there are none, for each image in turn.

    Work is handed out in chunks so that an error on an early image stops before all others are decoded.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(encoded), _CHUNK):
            yield from pool.map(lambda item: _attempt(item, size), encoded[start : start + _CHUNK])


def _attempt(encoded: Encoded, size: int | None) -> _Pixels | str:
    if encoded.source is None:
        return "no image"
    try:
        return _decode(encoded.source, size)
    except _DAMAGE as error:
        return " ".join(str(error).split()) or type(error).__name__


def _decode(source: Path | bytes, size: int | None) -> _Pixels:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and file.width * file.height > limit:
            raise Image.DecompressionBombError(f"{file.width} x {file.height} pixels are more than {limit}")
        if size is not None and file.format == "JPEG":
            file.draft("RGB", (2 * size, 2 * size))  # lets the decoder leave out detail that scaling would drop
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip them at 255
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        image = image.convert("RGB")
    return np.asarray(image if size is None else _scale(image, size))


def _scale(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to ``size`` and cut the centre, as evaluation on ImageNet does."""
    if image.size == (size, size):
        return image
    factor = size / min(image.size)
    scaled = image.resize(
        (max(size, round(image.width * factor)), max(size, round(image.height * factor))),
        Image.Resampling.BILINEAR,
    )
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    return scaled.crop((left, top, left + size, top + size))


def _check_damage(skipped: list[Skipped], allowed: float, total: int, config: DataConfig) -> None:
    if config.on_error == "stop":
        raise DataError(f"{skipped[-1]} (set data.on_error to skip to go on without damaged images)")
    if len(skipped) > allowed:
        raise DataError(
            f"{len(skipped)} of {total} images can't be decoded, above data.max_errors {config.max_errors}; "
            f"the last: {skipped[-1]}"
        )


def _check_size(encoded: Sequence[Encoded], positions: list[int], pixels: _Pixels, first: _Pixels) -> None:
    if pixels.shape != first.shape:
        one, other = (f"{shape[1]} x {shape[0]}" for shape in (first.shape, pixels.shape))
        raise DataError(
            f"images differ in size: {encoded[positions[0]].name} is {one}, "
            f"{encoded[positions[-1]].name} is {other}; set data.image_size"
        )
