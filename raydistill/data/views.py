"""Augmentation as a pure function of seed, sample id and view id.

Every random number comes from ``counter_rng``, so a view has the same pixels in any batch, on any worker,
after any restart, and a cached teacher can be shown exactly what the student sees. View 0 is the image
itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from raydistill.counter_rng import hash_bits, integers, name_key, unit_interval
from raydistill.data import colour, filters, randaugment, tones
from raydistill.errors import ConfigError
from raydistill.lazy import F, Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.augment_config import AugmentConfig

_ATTEMPTS = 10
_RECOLOURING = (randaugment, colour, filters, tones)
_LOG_RATIO = math.log(4 / 3)  # of width to height, both ways


def render(
    images: Tensor,
    ids: Tensor,
    views: Tensor,
    *,
    augment: AugmentConfig,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Draw the asked view of each image, normalised.

    Args:
        images: uint8 [B, C, H, W].
        ids: int64 [B], of the samples.
        views: integers [B]; rows with 0 are only normalised.
        augment: the operations.
        seed: of the experiment's augmentation.
        mean: of each channel in [0, 1].
        std: of each channel in [0, 1].
        size: (height, width) that resized crops are scaled to, if not the image's own.

    Returns:
        Float32 [B, C, H, W]. A row depends on its own pixels, id and view alone.

    Raises:
        ConfigError: an operation needs colours, and the images don't have three channels.
    """
    if not augment.changes:
        return normalise(images, mean, std)
    if augment.needs_colour and images.shape[1] != 3:
        raise ConfigError(
            f"data.augment.{augment.needs_colour[0]}: needs images of three channels, these have {images.shape[1]}; "
            "set it to 0"
        )
    whole = int(images.shape[2]), int(images.shape[3])
    drawn = parameters(ids, views, augment=augment, seed=seed, size=whole)
    if augment.resized_crop is not None:
        pixels = _resample(images, drawn["box"], drawn["flip"], size or whole)
    elif augment.crop or augment.flip:
        pixels = _shift(images, drawn["box"], drawn["flip"], augment.crop)
    else:
        pixels = images
    if augment.changes_colours:
        pixels = _recolour(pixels.to(torch.float32), drawn, augment)
    result = normalise(pixels, mean, std)
    if augment.cutout:
        result = result.masked_fill_(_hole(drawn["cutout"], views, augment.cutout, whole, size or whole), 0.0)
    return result


def parameters(
    ids: Tensor, views: Tensor, *, augment: AugmentConfig, seed: int, size: tuple[int, int]
) -> dict[str, Tensor]:
    """What ``render`` does to each image of ``size`` (H, W).

    Returns:
        ``box`` int16 [B, 4]: top, left, height and width of the crop in pixels of the image, negative or
        beyond the edge where padding is; ``flip`` bool [B]; with a cutout also ``cutout`` int16 [B, 2], row
        and column of its centre (without meaning in view 0, which has none). What ``drawn`` of ``colour``, ``tones``,
        ``filters`` and ``randaugment`` return comes with them.
    """
    height, width = size
    batch = ids.shape[0]
    whole = torch.tensor([0, 0, height, width], dtype=torch.int64, device=ids.device).expand(batch, 4)
    flip = torch.zeros(batch, dtype=torch.bool, device=ids.device)
    if not augment.changes:
        return {"box": whole.to(torch.int16), "flip": flip}
    names = _operations(augment)
    keys = _keys(names, ids.device)
    bits = dict(zip(names, hash_bits(seed, ids, views, keys[:, None]), strict=True))
    changed = views != 0
    box = whole
    if augment.crop:
        span = 2 * augment.crop + 1
        corner = torch.stack([_below(span, bits["crop/top"]), _below(span, bits["crop/left"])], dim=1) - augment.crop
        box = torch.cat([corner, whole[:, 2:]], dim=1)
    elif augment.resized_crop is not None:
        box = _resized_boxes(bits, augment.resized_crop, size)
    if augment.flip:
        flip = changed & (unit_interval(bits["flip"]) < augment.flip)
    result = {"box": torch.where(changed[:, None], box, whole).to(torch.int16), "flip": flip}
    if augment.cutout:
        centre = [_below(height, bits["cutout/row"]), _below(width, bits["cutout/column"])]
        result["cutout"] = torch.stack(centre, dim=1).to(torch.int16)
    for part in _RECOLOURING:
        result |= part.drawn(augment, bits, changed)
    return result


def scheduled_views(ids: Tensor, epoch: int, count: int, seed: int, *, offset: int = 0) -> Tensor:
    """Choose among ``count`` cached views of each sample.

    Over the ``count`` epochs that start at a multiple of ``count``, a sample sees each of the views 1 to
    ``count`` once, in an order of its own. Views of one step use different offsets below ``count`` and so
        never coincide.

    Args:
        ids: int64 [B].
        epoch: counted from 0.
        count: number of views in the cache, at least 1.
        seed: of the schedule.
        offset: shifts the schedule by so many epochs within its round.

    Returns:
        Int64 [B] in [1, count].
    """
    # An affine map modulo count whose factor is coprime with count is a permutation and needs no table of
    # orders.
    units = [number for number in range(1, count + 1) if math.gcd(number, count) == 1]
    cycle, place = epoch // count, (epoch + offset) % count
    factors = torch.tensor(units, device=ids.device)
    factor = factors[integers(len(units), seed, name_key("schedule/factor"), cycle, ids)]
    start = integers(count, seed, name_key("schedule/start"), cycle, ids)
    return 1 + (factor * place + start) % count


def fresh_views(ids: Tensor, epoch: int, step_view: int, per_step: int) -> Tensor:
    """Views that never come again, for a live teacher: int64 [B], ``1 + epoch * per_step + step_view``."""
    return torch.full_like(ids, 1 + epoch * per_step + step_view)


@lru_cache(maxsize=64)
def _operations(augment: AugmentConfig) -> tuple[str, ...]:
    names: list[str] = []
    if augment.crop:
        names += ["crop/top", "crop/left"]
    if augment.resized_crop is not None:
        names += [f"resized/{what}/{attempt}" for what in ("area", "ratio") for attempt in range(_ATTEMPTS)]
        names += ["resized/top", "resized/left"]
    if augment.flip:
        names += ["flip"]
    if augment.cutout:
        names += ["cutout/row", "cutout/column"]
    for part in _RECOLOURING:
        names += part.names(augment)
    return tuple(names)


@lru_cache(maxsize=64)
def _keys(names: tuple[str, ...], device: torch.device) -> Tensor:
    return torch.tensor([name_key(name) for name in names], dtype=torch.int64, device=device)


def _below(high: int | Tensor, bits: Tensor) -> Tensor:
    return (bits * high) >> 32


def _resized_boxes(bits: dict[str, Tensor], scale: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Boxes [B, 4] as torchvision's RandomResizedCrop draws them: the first of ten attempts that fits.

    Areas and ratios are float64, so that devices which differ in a last bit still round to the same pixel.
    """
    height, width = size
    areas = torch.stack([bits[f"resized/area/{attempt}"] for attempt in range(_ATTEMPTS)]).to(torch.float64) / 2**32
    ratios = torch.stack([bits[f"resized/ratio/{attempt}"] for attempt in range(_ATTEMPTS)]).to(torch.float64) / 2**32
    areas = (scale[0] + (scale[1] - scale[0]) * areas) * (height * width)
    ratios = torch.exp(_LOG_RATIO * (2 * ratios - 1))
    heights = (areas / ratios).sqrt().round().to(torch.int64)
    widths = (areas * ratios).sqrt().round().to(torch.int64)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.to(torch.int8).argmax(dim=0, keepdim=True)
    chosen_height, chosen_width = heights.gather(0, first)[0], widths.gather(0, first)[0]
    top = _below(height - chosen_height + 1, bits["resized/top"])
    left = _below(width - chosen_width + 1, bits["resized/left"])
    boxes = torch.stack([top, left, chosen_height, chosen_width], dim=1)
    fallback = torch.tensor(_central_box(height, width), device=boxes.device)
    return torch.where(fits.any(dim=0)[:, None], boxes, fallback)


def _central_box(height: int, width: int) -> list[int]:
    """The largest centred box whose ratio is allowed."""
    box_height, box_width = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return [(height - box_height) // 2, (width - box_width) // 2, box_height, box_width]


def _recolour(pixels: Tensor, drawn: dict[str, Tensor], augment: AugmentConfig) -> Tensor:
    """Apply what comes between the crop and the normalisation to float32 [B, C, H, W] in 0 to 255."""
    if augment.randaugment is not None:
        pixels = randaugment.augmented(pixels, drawn, augment.randaugment.magnitude)
    if augment.color_jitter is not None:
        pixels = colour.jittered(pixels, drawn)
    if augment.grayscale:
        pixels = colour.greyed(pixels, drawn)
    if augment.blur is not None:
        pixels = filters.blurred(pixels, drawn, augment.blur)
    if augment.solarize:
        pixels = tones.solarized(pixels, drawn)
    return pixels


def _shift(images: Tensor, box: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Cut boxes of the image's own size out of the padded images with one gather; uint8 [B, C, H, W]."""
    batch, channels, height, width = images.shape
    black = 128 if channels == 2 else 0  # two channels are chrominance, where black is in the middle
    padded = F.pad(images, (padding, padding, padding, padding), value=black) if padding else images
    corner = box[:, :2].to(torch.int64) + padding
    rows = corner[:, :1] + torch.arange(height, device=images.device)
    columns = corner[:, 1:] + _mirrored(width, flip)
    index = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    index = index.reshape(batch, 1, height * width).expand(batch, channels, height * width)
    return padded.reshape(batch, channels, -1).gather(2, index).reshape(images.shape)


def _resample(images: Tensor, box: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale boxes to ``size`` (H, W), bilinear, float32 [B, C, H, W] in 0 to 255.

    Written as copies and single operations, since batched products and fused kernels round differently with
    the batch or the device. Without antialiasing: a box is at most little larger than what it is scaled to.
    """
    batch, (height, width) = images.shape[0], size
    box = box.to(torch.int64)
    order = torch.arange(height, device=images.device).expand(batch, height)
    rows = _interpolate(images, *_sources(order, box[:, 0:1], box[:, 2:3], height))
    # Whole rows are copied many times faster than single pixels, so columns are made rows first.
    columns = rows.transpose(2, 3).contiguous()
    sources = _sources(_mirrored(width, flip), box[:, 1:2], box[:, 3:4], width)
    return _interpolate(columns, *sources).transpose(2, 3)


def _interpolate(pixels: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Rows ``low`` + (``high`` - ``low``) * ``weight``, each [B, S], of ``pixels`` [B, C, S, T]; float32."""
    batch, channels, size, length = pixels.shape
    flat = pixels.reshape(batch * channels * size, length)
    shape = (batch, channels, low.shape[1], length)
    plane = torch.arange(batch * channels, device=pixels.device).reshape(batch, channels, 1) * size
    first = flat.index_select(0, (plane + low[:, None]).flatten()).to(torch.float32).reshape(shape)
    second = flat.index_select(0, (plane + high[:, None]).flatten()).to(torch.float32).reshape(shape)
    return first + (second - first) * weight[:, None, :, None]


def _sources(order: Tensor, start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two source pixels [B, S] of each target pixel along an axis, and the weight of the second."""
    position = (order.to(torch.float32) + 0.5) * (length.to(torch.float32) / size) - 0.5
    position = position.clamp_min(0.0)
    low = torch.minimum(position.floor().to(torch.int64), length - 1)
    high = torch.minimum(low + 1, length - 1)
    return start + low, start + high, position - low.to(torch.float32)


def _mirrored(width: int, flip: Tensor) -> Tensor:
    """Column numbers [B, W], from the right where ``flip`` is set."""
    columns = torch.arange(width, device=flip.device)
    return torch.where(flip[:, None], width - 1 - columns, columns)


def _hole(centre: Tensor, views: Tensor, side: int, whole: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Mask [B, 1, H, W] of a square around each centre, cut off at the edges; empty in view 0.

    Centre and side are in pixels of the ``whole`` image and are scaled with it to ``size`` (H, W).
    """
    side = max(1, round(side * size[0] / whole[0]))
    row, column = (centre[:, axis : axis + 1].to(torch.int64) * size[axis] // whole[axis] for axis in (0, 1))
    rows = torch.arange(size[0], device=centre.device) - (row - side // 2)
    columns = torch.arange(size[1], device=centre.device) - (column - side // 2)
    inside_rows = (rows >= 0) & (rows < side) & (views != 0)[:, None]
    inside_columns = (columns >= 0) & (columns < side)
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale pixels [B, C, H, W] in 0 to 255 to float32 with the given moments: the evaluation view."""
    scale, shift = _affine(tuple(mean), tuple(std), images.device)
    return images.to(torch.float32, memory_format=torch.contiguous_format, copy=True).mul_(scale).sub_(shift)


@lru_cache(maxsize=64)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    scale = [1.0 / (255.0 * deviation) for deviation in std]
    shift = [centre / deviation for centre, deviation in zip(mean, std, strict=True)]
    return torch.tensor(scale, device=device)[:, None, None], torch.tensor(shift, device=device)[:, None, None]
