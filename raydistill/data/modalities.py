"""Cross-modal distillation: what each side sees of an image.

Both sides are the same list of ids, so splits, subsets, caches and views never ask which side they serve; geometric
augmentation depends on ids alone and is the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.data.image_set import DecodedImages, ImageSet
from raydistill.data.names import MODALITIES
from raydistill.errors import DataError
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig, ModalityName

_LISTED = 5
_CHUNK_PIXELS = 1 << 18
_EDGE = 6 / 29

# Linear sRGB to X, Y and Z (IEC 61966-2-1).
_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)


def in_modality(images: ImageSet, config: DataConfig) -> ImageSet:
    """Turn what a reader gave without regard to modalities into what the section's student sees.

    Raises:
        DataError: images that should be grey are not.
    """
    if config.modalities is None:
        return images
    name = config.modalities.student
    mean, std = config.normalisation
    repeats = MODALITIES[name].channels // len(mean)
    images = replace(images, modality=name, mean=mean * repeats, std=std * repeats)
    if not isinstance(images, DecodedImages):  # its pixels are converted when they are decoded
        return images
    try:
        return replace(images, decoded=converted(images.decoded, name))
    except DataError as error:
        raise DataError(f"data set '{config.name}' at {config.root}: {error}") from None


def converted(images: Tensor, name: ModalityName) -> Tensor:
    """Turn uint8 sRGB [N, 3, H, W] into a modality, uint8 [N, C, H, W].

    Raises:
        DataError: images that should be grey are not.
    """
    pixels = _MADE[name](images)
    if pixels is None:
        raise DataError("modality 'grey', but there are colours; take luminance")
    return pixels


def lab(images: Tensor) -> Tensor:
    """Convert sRGB to CIE Lab under the white D65.

    In float64, so that devices and batches which differ in a last bit still round to the same byte.

    Args:
        images: uint8 [N, 3, H, W].

    Returns:
        Float64 [N, 3, H, W]: L in [0, 100], a and b, which are 0 for grey.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    linear = torch.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    red, green, blue = linear.to(images.device)[images.long()].unbind(1)
    curves = []
    for row in _XYZ:
        # The white's X, Y and Z are the rows' sums.
        share = (row[0] * red + row[1] * green + row[2] * blue) / sum(row)
        curves.append(torch.where(share > _EDGE**3, share ** (1 / 3), share / (3 * _EDGE**2) + 4 / 29))
    x, y, z = curves
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def luminance(images: Tensor) -> Tensor:
    """L of uint8 sRGB [N, 3, H, W] as uint8 [N, 1, H, W], 0 to 255 for 0 to 100."""
    return _in_chunks(images, lambda part: lab(part)[:, :1] * 2.55)


def chrominance(images: Tensor) -> Tensor:
    """Return a and b of uint8 sRGB [N, 3, H, W] as uint8 [N, 2, H, W], 128 for grey; all of sRGB has room there."""
    return _in_chunks(images, lambda part: lab(part)[:, 1:] + 128)


def _in_chunks(images: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    count = max(1, _CHUNK_PIXELS // max(1, images.shape[2] * images.shape[3]))
    return torch.cat([convert(part).round().to(torch.uint8) for part in torch.split(images, count)])


def _grey(images: Tensor) -> Tensor | None:
    """Return the channel that all three of [N, 3, H, W] repeat, or None."""
    single = images[:, :1].contiguous()
    return single if bool((images == single).all()) else None


_MADE: Mapping[str, Callable[[Tensor], Tensor | None]] = {
    "rgb": lambda images: images,
    "luminance": luminance,
    "chrominance": chrominance,
    "grey": _grey,
}


def drop_unpaired(student: ImageSet, teacher: ImageSet) -> ImageSet:
    """Return the student's images whose partner could be read too.

    Raises:
        DataError: none is left, or the two sides differ in size.
    """
    if student.shape[1:] != teacher.shape[1:]:
        one, other = (f"{images.shape[2]} x {images.shape[1]}" for images in (student, teacher))
        raise DataError(f"the student's images are {one}, the teacher's {other}; set data.image_size")
    kept = torch.isin(student.ids, teacher.ids)
    if not kept.any():
        raise DataError("of no pair could both images be decoded")
    return replace(student.take(kept.nonzero().squeeze(1)), skipped=student.skipped + teacher.skipped)


def with_ids(images: ImageSet, ids: Tensor) -> ImageSet:
    """Return the images of these ids, int64 [M], in their order; all of them must be there."""
    order = images.ids.argsort()
    return images.take(order[torch.searchsorted(images.ids[order], ids)])


def pair_name(path: Path, root: Path) -> str:
    """What an image has in common with its partner: the path below the root without its ending."""
    return path.relative_to(root).with_suffix("").as_posix()


def check_pairs(root: Path, files: Iterable[Path], other_root: Path, other_files: Iterable[Path]) -> None:
    """Check that each image of two folders has exactly one partner in the other.

    Raises:
        DataError: naming the first images that have none, or two images of one name.
    """
    sides = _by_name(root, files), _by_name(other_root, other_files)
    lonely = [side[name] for side, other in (sides, sides[::-1]) for name in side if name not in other]
    if lonely:
        listed = ", ".join(map(str, lonely[:_LISTED])) + (", ..." if len(lonely) > _LISTED else "")
        raise DataError(
            f"{root} and {other_root} are paired by path without ending, but {len(lonely)} images have no partner: "
            f"{listed}"
        )


def _by_name(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        first = found.setdefault(pair_name(path, root), path)
        if first is not path:
            raise DataError(f"{first} and {path}: pairs need images whose names differ in more than the ending")
    return found
