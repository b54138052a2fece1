"""Changes of the levels of each channel by itself: invert, solarize, posterize, auto-contrast, equalize.

Pixels are float32 [B, C, H, W] in 0 to 255; any number of channels. No result depends on other rows of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raydistill.counter_rng import unit_interval
from raydistill.data.change_rows import change_rows
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raydistill.data.augment_config import AugmentConfig

_THRESHOLD = 128.0
_LEVELS = 256


def names(augment: AugmentConfig) -> list[str]:
    """Return the names of the random numbers that ``drawn`` takes."""
    return ["solarize"] if augment.solarize else []


def drawn(augment: AugmentConfig, bits: Mapping[str, Tensor], changed: Tensor) -> dict[str, Tensor]:
    """Turn random bits int64 [B] into ``solarize`` bool [B], if it is switched on."""
    if not augment.solarize:
        return {}
    return {"solarize": changed & (unit_interval(bits["solarize"]) < augment.solarize)}


def solarized(pixels: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """Apply the random solarisation that ``drawn`` returned."""
    return change_rows(pixels, draws["solarize"].long(), [lambda part, _: solarize(part, _THRESHOLD)])


def invert(pixels: Tensor) -> Tensor:
    """Return the negative."""
    return 255.0 - pixels


def solarize(pixels: Tensor, threshold: float) -> Tensor:
    """Invert the levels from ``threshold`` up."""
    return torch.where(pixels >= threshold, invert(pixels), pixels)


def posterize(pixels: Tensor, bits: int) -> Tensor:
    """Keep the highest ``bits`` of the 8 of each level, rounded to a whole one before."""
    kept = (0xFF << (8 - bits)) & 0xFF
    return (pixels.round().to(torch.int64) & kept).to(torch.float32)


def auto_contrast(pixels: Tensor) -> Tensor:
    """Stretch each channel so that its levels reach from 0 to 255; an even channel stays."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    even = low == high
    stretched = (pixels - low) * (255.0 / torch.where(even, 1.0, high - low))
    return torch.where(even, pixels, stretched.clamp_(0.0, 255.0))


def equalize(pixels: Tensor) -> Tensor:
    """Spread the levels of each channel evenly, rounded to whole ones before, as PIL's ``ImageOps.equalize`` does.

    A channel whose levels are too few to be spread stays.
    """
    batch, channels, height, width = pixels.shape
    planes = batch * channels
    levels = pixels.round().to(torch.int64).reshape(planes, height * width)
    start = torch.arange(planes, device=pixels.device)[:, None] * _LEVELS
    histogram = torch.bincount((levels + start).flatten(), minlength=planes * _LEVELS).reshape(planes, _LEVELS)
    last = histogram.gather(1, levels.amax(1, keepdim=True))
    step = (height * width - last) // 255
    before = histogram.cumsum(1) - histogram
    table = ((before + step // 2) // step.clamp_min(1)).clamp_max(255)
    spread = table.gather(1, levels).to(torch.float32).reshape(pixels.shape)
    return torch.where((step == 0).reshape(batch, channels, 1, 1), pixels, spread)
