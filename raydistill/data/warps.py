"""Shear, rotation and translation of whole batches by one angle or distance and a direction for each row.

As a batch shares the size of the motion, where each pixel comes from is a small table made once on the CPU in float64,
the same for every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from raydistill.lazy import F, Tensor, torch

_Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def warp(pixels: Tensor, negative: Tensor, motion: str, amount: float) -> Tensor:
    """Move an image; bilinear, black where nothing was.

    Args:
        pixels: float32 [B, C, H, W] in 0 to 255.
        negative: bool [B]: rows that go the other way.
        motion: ``rotate`` (counter-clockwise about the centre, ``amount`` in degrees), ``shear_x`` or ``shear_y``
            (along that axis from the top left corner, pixels for each pixel), ``translate_x`` or ``translate_y``
            (pixels to the right or down).
        amount: how far, at least 0.

    Returns:
        Float32 [B, C, H, W].
    """
    batch, channels, height, width = pixels.shape
    black = 128.0 if channels == 2 else 0.0
    # A frame of black, to which all that lies outside is clamped.
    framed = F.pad(pixels, (1, 1, 1, 1), value=black).reshape(batch, channels, -1)
    corners, weights = _sources(motion, amount, height, width, pixels.device)
    sign = negative.long()
    total = torch.zeros(batch, channels, height * width, dtype=torch.float32, device=pixels.device)
    for corner in range(4):
        index = corners[corner][sign][:, None].expand(batch, channels, height * width)
        total += framed.gather(2, index) * weights[corner][sign][:, None]
    return total.clamp_(0.0, 255.0).reshape(pixels.shape)


@lru_cache(maxsize=64)
def _sources(motion: str, amount: float, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions in the framed image int64 [4, 2, H * W] of four neighbours, for both directions, and their weights."""
    rows = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float64)[None].expand(height, width)
    corners, weights = [], []
    for signed in (amount, -amount):
        row, column = _MOTIONS[motion](signed, height, width)(rows, columns)
        top, rest_down = _split(row, height)
        left, rest_right = _split(column, width)
        across = width + 2
        first = top * across + left
        corners.append(torch.stack([first, first + 1, first + across, first + across + 1]).flatten(1))
        parts = [(1 - rest_down) * (1 - rest_right), (1 - rest_down) * rest_right]
        parts += [rest_down * (1 - rest_right), rest_down * rest_right]
        weights.append(torch.stack(parts).flatten(1).to(torch.float32))
    return torch.stack(corners, dim=1).to(device), torch.stack(weights, dim=1).to(device)


def _split(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The first of the two pixels around each position, counted in the framed image, and the share of the second."""
    # Sines leave whole positions off by a last bit, which would pull in a neighbour; a millionth of a pixel is nothing.
    framed = (position * 1e6).round().div(1e6).clamp(-1.0, float(size)) + 1.0
    low = framed.floor().clamp_max(float(size))
    return low.to(torch.int64), framed - low


def _rotate(degrees: float, height: int, width: int) -> _Map:
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    middle, centre = (height - 1) / 2, (width - 1) / 2

    def where(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        down, right = row - middle, column - centre
        return middle + cosine * down + sine * right, centre + cosine * right - sine * down

    return where


_MOTIONS: dict[str, Callable[[float, int, int], _Map]] = {
    "rotate": _rotate,
    # About the top left corner of the first pixel, half a pixel from its centre.
    "shear_x": lambda share, _h, _w: lambda row, column: (row, column - share * (row + 0.5)),
    "shear_y": lambda share, _h, _w: lambda row, column: (row - share * (column + 0.5), column),
    "translate_x": lambda pixels, _h, _w: lambda row, column: (row, column - pixels),
    "translate_y": lambda pixels, _h, _w: lambda row, column: (row - pixels, column),
}
