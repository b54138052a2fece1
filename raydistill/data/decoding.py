"""One encoded image to pixels, and the threads that do so for many; Pillow lets them run at the same time."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raydistill.threads import threads_given

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""[H, W, 3]"""

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Those that are asked for by name, whatever a file is called: for some others Pillow runs programs of the machine."""
_MOST_THREADS = 8


def attempt(data: bytes, size: int | None) -> Pixels | str:
    """Decode an image to RGB, scaled and cut to ``size`` where that is set; or say why it can't be decoded."""
    try:
        return _decode(data, size)
    except UnidentifiedImageError:  # its text is an address in memory
        return "empty or not of a known format"
    except Exception as error:  # codecs raise whatever the bytes of damaged input happen to mean
        return reason_of(error)


def reason_of(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__


@cache
def threads() -> ThreadPoolExecutor:
    """Return this process's threads for reading and decoding: as many as torch was given when they are first used."""
    return ThreadPoolExecutor(min(_MOST_THREADS, threads_given()), thread_name_prefix="decode")


def _decode(data: bytes, size: int | None) -> Pixels:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
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
