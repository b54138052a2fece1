"""RandAugment: a number of operations of one strength, drawn with replacement (Cubuk et al. 2020, arXiv:1909.13719).

Of the 14 operations of the paper and ``invert``. ``magnitude`` m from 0 to 30 means, as in torchvision: a shear of
0.3 m / 30, a translation by 150 / 331 of the side times m / 30 cut to whole pixels, a rotation by m degrees, a factor
of 1 +- 0.9 m / 30 for brightness, colour, contrast and sharpness, 8 - round(4 m / 30) bits, a solarisation from
255 (1 - m / 30) up. Directions are random. ``color`` leaves images alone that don't have three channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from raydistill.data import colour, filters, tones
from raydistill.data.change_rows import change_rows
from raydistill.data.warps import warp
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.augment_config import AugmentConfig

_LARGEST = 30
# Called with pixels [b, C, H, W], bool [b] of the rows that go the other way, and the magnitude as a share of 30.
_Change = Callable[[Tensor, Tensor, float], Tensor]


def names(augment: AugmentConfig) -> list[str]:
    """Return the names of the random numbers that ``drawn`` takes."""
    count = augment.randaugment.operations if augment.randaugment is not None else 0
    return [f"randaugment/{what}/{number}" for what in ("operation", "direction") for number in range(count)]


def drawn(augment: AugmentConfig, bits: Mapping[str, Tensor], changed: Tensor) -> dict[str, Tensor]:
    """Turn random bits int64 [B] into what happens to each row.

    Returns:
        If it is switched on, ``randaugment`` int64 [B, N], numbers of operations in ``OPERATIONS`` from 1 in the order
        in which they apply, all 0 where nothing does; and ``randaugment/negative`` bool [B, N], their directions.
    """
    if augment.randaugment is None:
        return {}
    count = range(augment.randaugment.operations)
    chosen = torch.stack([bits[f"randaugment/operation/{number}"] for number in count], dim=1)
    sides = torch.stack([bits[f"randaugment/direction/{number}"] for number in count], dim=1)
    numbers = ((chosen * len(OPERATIONS)) >> 32) + 1
    return {"randaugment": torch.where(changed[:, None], numbers, 0), "randaugment/negative": (sides >> 31) == 1}


def augmented(pixels: Tensor, draws: Mapping[str, Tensor], magnitude: int) -> Tensor:
    """Apply the operations that ``drawn`` returned."""
    for choice, negative in zip(draws["randaugment"].unbind(1), draws["randaugment/negative"].unbind(1), strict=True):
        operations = [
            partial(_with_rows, change=change, negative=negative, share=magnitude / _LARGEST)
            for change in OPERATIONS.values()
        ]
        pixels = change_rows(pixels, choice, operations)
    return pixels


def _with_rows(pixels: Tensor, rows: Tensor, *, change: _Change, negative: Tensor, share: float) -> Tensor:
    return change(pixels, negative[rows], share)


def _enhanced(change: Callable[[Tensor, Tensor], Tensor]) -> _Change:
    def enhance(pixels: Tensor, negative: Tensor, share: float) -> Tensor:
        return change(pixels, torch.where(negative, 1.0 - 0.9 * share, 1.0 + 0.9 * share))

    return enhance


def _moved(motion: str, largest: Callable[[Tensor], float], *, whole: bool = False) -> _Change:
    def move(pixels: Tensor, negative: Tensor, share: float) -> Tensor:
        amount = largest(pixels) * share
        return warp(pixels, negative, motion, float(int(amount)) if whole else amount)

    return move


def _color(pixels: Tensor, factor: Tensor) -> Tensor:
    return colour.saturation(pixels, factor) if pixels.shape[1] == 3 else pixels


OPERATIONS: Mapping[str, _Change] = {
    "identity": lambda pixels, _, share: pixels,
    "auto_contrast": lambda pixels, _, share: tones.auto_contrast(pixels),
    "equalize": lambda pixels, _, share: tones.equalize(pixels),
    "invert": lambda pixels, _, share: tones.invert(pixels),
    "posterize": lambda pixels, _, share: tones.posterize(pixels, 8 - round(4 * share)),
    "solarize": lambda pixels, _, share: tones.solarize(pixels, 255.0 * (1.0 - share)),
    "brightness": _enhanced(colour.brightness),
    "color": _enhanced(_color),
    "contrast": _enhanced(colour.contrast),
    "sharpness": _enhanced(filters.sharpness),
    "rotate": _moved("rotate", lambda pixels: 30.0),
    "shear_x": _moved("shear_x", lambda pixels: 0.3),
    "shear_y": _moved("shear_y", lambda pixels: 0.3),
    "translate_x": _moved("translate_x", lambda pixels: 150 / 331 * pixels.shape[3], whole=True),
    "translate_y": _moved("translate_y", lambda pixels: 150 / 331 * pixels.shape[2], whole=True),
}
"""By name, in the order of their numbers. Cached views hang on it: another entry or order would show other pixels."""
