"""Gaussian blur and sharpness, and how blur is drawn.

Pixels are float32 [B, C, H, W] in 0 to 255; any number of channels. Neighbours are added one by one in a fixed order:
convolution kernels choose their order by the shape of the batch.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from raydistill.counter_rng import unit_interval
from raydistill.data.change_rows import change_rows
from raydistill.data.colour import blend
from raydistill.lazy import F, Tensor, torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raydistill.data.augment_config import AugmentConfig, BlurConfig

_WIDTHS = 64  # of sigma's range; a table, so that no device computes an exponential of its own
_REACH = 3.0  # in deviations


def names(augment: AugmentConfig) -> list[str]:
    """Return the names of the random numbers that ``drawn`` takes."""
    return ["blur", "blur/sigma"] if augment.blur is not None else []


def drawn(augment: AugmentConfig, bits: Mapping[str, Tensor], changed: Tensor) -> dict[str, Tensor]:
    """Turn random bits int64 [B] into ``blur`` int64 [B], 0 or one of 64 widths, if it is switched on."""
    if augment.blur is None:
        return {}
    chosen = changed & (unit_interval(bits["blur"]) < augment.blur.probability)
    return {"blur": torch.where(chosen, ((bits["blur/sigma"] * _WIDTHS) >> 32) + 1, 0)}


def blurred(pixels: Tensor, draws: Mapping[str, Tensor], blur: BlurConfig) -> Tensor:
    """Apply the blur that ``drawn`` returned."""
    widths = draws["blur"]

    def change(part: Tensor, rows: Tensor) -> Tensor:
        return gaussian_blur(part, widths[rows] - 1, blur.sigma)

    return change_rows(pixels, (widths > 0).long(), [change])


def gaussian_blur(pixels: Tensor, width: Tensor, sigma: tuple[float, float]) -> Tensor:
    """Blur along both axes, borders mirrored, cut off at three times the largest deviation of the range.

    Args:
        pixels: float32 [B, C, H, W].
        width: int64 [B] in [0, 64): which part of the range a row's deviation is in the middle of, see ``sigma_of``.
        sigma: the range of deviations in pixels.
    """
    for axis in (2, 3):
        radius = min(math.ceil(_REACH * sigma[1]), pixels.shape[axis] - 1)
        weights = _kernels(sigma, radius, pixels.device)[width]
        pixels = _blur_axis(pixels, weights, axis, radius)
    return pixels.clamp_(0.0, 255.0)


def sigma_of(width: int, sigma: tuple[float, float]) -> float:
    """Return the deviation in pixels behind a width in [0, 64)."""
    return sigma[0] + (sigma[1] - sigma[0]) * (width + 0.5) / _WIDTHS


def sharpness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed image: factor 0 is smooth, 1 the image, 2 sharper; pixels at the border stay."""
    height, width = pixels.shape[2:]
    if min(height, width) < 3:
        return pixels
    smooth = pixels[:, :, 1:-1, 1:-1] * 4.0
    for row in range(3):
        for column in range(3):
            smooth = smooth + pixels[:, :, row : row + height - 2, column : column + width - 2]
    other = pixels.clone()
    other[:, :, 1:-1, 1:-1] = smooth * (1.0 / 13.0)
    return blend(pixels, other, factor)


def _blur_axis(pixels: Tensor, weights: Tensor, axis: int, radius: int) -> Tensor:
    """Weights [B, radius + 1] of the pixel itself and of its neighbours at each distance."""
    if not radius:
        return pixels
    length = pixels.shape[axis]
    padded = F.pad(pixels, (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0), mode="reflect")
    taps = weights[:, :, None, None, None].unbind(1)
    total = pixels * taps[0]
    for distance in range(1, radius + 1):
        before = padded.narrow(axis, radius - distance, length)
        total += (before + padded.narrow(axis, radius + distance, length)) * taps[distance]
    return total


@lru_cache(maxsize=64)
def _kernels(sigma: tuple[float, float], radius: int, device: torch.device) -> Tensor:
    rows = []
    for width in range(_WIDTHS):
        row = [math.exp(-0.5 * (distance / sigma_of(width, sigma)) ** 2) for distance in range(radius + 1)]
        total = row[0] + 2.0 * sum(row[1:])
        rows.append([value / total for value in row])
    return torch.tensor(rows, dtype=torch.float32, device=device)
