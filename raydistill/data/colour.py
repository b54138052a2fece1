"""Brightness, contrast, saturation, hue and grayscale, and how they are drawn.

Pixels are float32 [B, C, H, W] in 0 to 255 and factors float32 [B]. Two channels are chrominance, where grey and black
are 128; saturation, hue and grayscale take three channels.

Everything is written as single operations whose rounding depends on neither the batch nor the neighbours: sums over
pixels are sums of integers, and nothing is a fused product.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations
from typing import TYPE_CHECKING

from raydistill.counter_rng import unit_interval
from raydistill.data.change_rows import change_rows
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from raydistill.data.augment_config import AugmentConfig

# Luma of ITU-R BT.601; what is missing to 1 is green's.
_RED, _BLUE = 0.299, 0.114
_NEUTRAL = 128.0
_PARTS = ("brightness", "contrast", "saturation", "hue")


def names(augment: AugmentConfig) -> list[str]:
    """Return the names of the random numbers that ``drawn`` takes."""
    found = ["grayscale"] if augment.grayscale else []
    if augment.color_jitter is not None:
        found += ["jitter", "jitter/order", *(f"jitter/{part}" for part in _parts(augment))]
    return found


def drawn(augment: AugmentConfig, bits: Mapping[str, Tensor], changed: Tensor) -> dict[str, Tensor]:
    """Turn random bits int64 [B] into what happens to each row.

    Returns:
        With grayscale, ``grayscale`` bool [B]. With colour jitter, ``jitter`` int64 [B, K], numbers of the K parts that
        are switched on in the order in which they apply, from 1, all 0 where nothing does; and for each part
        ``jitter/<part>`` float32 [B]: the factor, for hue the turn as a share of the circle.
    """
    found: dict[str, Tensor] = {}
    if augment.grayscale:
        found["grayscale"] = changed & (unit_interval(bits["grayscale"]) < augment.grayscale)
    jitter = augment.color_jitter
    if jitter is not None:
        parts = _parts(augment)
        orders = _orders(len(parts), changed.device)
        chosen = changed & (unit_interval(bits["jitter"]) < jitter.probability)
        order = orders[(bits["jitter/order"] * len(orders)) >> 32]
        found["jitter"] = torch.where(chosen[:, None], order, 0)
        for part in parts:
            strength = float(getattr(jitter, part))
            low, high = (-strength, strength) if part == "hue" else (max(0.0, 1.0 - strength), 1.0 + strength)
            found[f"jitter/{part}"] = unit_interval(bits[f"jitter/{part}"]) * (high - low) + low
    return found


def jittered(pixels: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """Apply the colour jitter that ``drawn`` returned."""
    operations = [_operation(part, draws[f"jitter/{part}"]) for part in _PARTS if f"jitter/{part}" in draws]
    for choice in draws["jitter"].unbind(1):
        pixels = change_rows(pixels, choice, operations)
    return pixels


def greyed(pixels: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """Apply the random grayscale that ``drawn`` returned."""
    return change_rows(pixels, draws["grayscale"].long(), [lambda part, _: grayscale(part)])


def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: factor 0 is black, 1 the image."""
    return blend(pixels, _black(pixels), factor)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma: factor 0 is an even grey, 1 the image."""
    return blend(pixels, _mean_grey(pixels), factor)


def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend three channels with their luma: factor 0 is grey, 1 the image."""
    return blend(pixels, luma(pixels), factor)


def hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of three channels by a share of the circle, in HSV; value and saturation stay."""
    red, green, blue = pixels.unbind(1)
    value, chroma = pixels.amax(1), pixels.amax(1) - pixels.amin(1)
    scale = torch.where(chroma > 0, chroma, 1.0)
    # In sixths of the circle, 0 is red; whichever channel is largest tells the sixth.
    angle = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, (blue - red) / scale + 2.0, (red - green) / scale + 4.0),
    )
    angle = _wrapped(_wrapped(angle + (turn * 6.0)[:, None, None]))
    channels = []
    for offset in (5.0, 3.0, 1.0):
        place = _wrapped(angle + offset)
        channels.append(value - chroma * torch.minimum(place, 4.0 - place).clamp(0.0, 1.0))
    return torch.stack(channels, dim=1).clamp_(0.0, 255.0)


def grayscale(pixels: Tensor) -> Tensor:
    """Repeat the luma of three channels in each of them."""
    return luma(pixels).expand_as(pixels)


def luma(pixels: Tensor) -> Tensor:
    """Return the luma [B, 1, H, W] of three channels, exactly the level of each where the three are equal."""
    red, green, blue = pixels[:, 0:1], pixels[:, 1:2], pixels[:, 2:3]
    return green + (red - green) * _RED + (blue - green) * _BLUE


def blend(pixels: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    """Return ``factor`` of the pixels and the rest of ``other``, cut to 0 to 255; exactly the pixels for factor 1."""
    factor = factor[:, None, None, None]
    return (pixels * factor + other * (1.0 - factor)).clamp_(0.0, 255.0)


def _parts(augment: AugmentConfig) -> list[str]:
    return [part for part in _PARTS if getattr(augment.color_jitter, part)]


@lru_cache(maxsize=64)
def _orders(count: int, device: torch.device) -> Tensor:
    return torch.tensor(list(permutations(range(1, count + 1))), device=device)


def _operation(part: str, strength: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    change = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}[part]
    return lambda pixels, rows: change(pixels, strength[rows])


def _black(pixels: Tensor) -> float:
    return _NEUTRAL if pixels.shape[1] == 2 else 0.0


def _mean_grey(pixels: Tensor) -> Tensor | float:
    """Mean luma [B, 1, 1, 1], in 256ths of a level so that the sum is one of integers; of chrominance the neutral."""
    if pixels.shape[1] == 2:
        return _NEUTRAL
    grey = luma(pixels) if pixels.shape[1] == 3 else pixels
    total = (grey * 256.0).round().to(torch.int64).sum((1, 2, 3), keepdim=True)
    return (total.to(torch.float64) / (256 * grey[0].numel())).to(torch.float32)


def _wrapped(angle: Tensor) -> Tensor:
    """Bring angles in [-6, 12) to [0, 6)."""
    angle = torch.where(angle < 0, angle + 6.0, angle)
    return torch.where(angle >= 6.0, angle - 6.0, angle)
