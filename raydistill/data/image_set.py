"""A whole data set as tensors, and how a part of it is chosen."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raydistill.counter_rng import hash_bits, name_key
from raydistill.errors import DataError
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Skipped:
    """An image that could not be decoded, with its id and the reason."""

    id: int
    path: str
    reason: str

    def __str__(self) -> str:
        """``path: reason``."""
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels and ids, in a fixed order.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N] in [0, num_classes), or ``None`` where there are none.
        ids: int64 [N], unique; an image keeps its id whatever subset or order it is in.
        num_classes: number of classes; without labels what ``data.num_classes`` says, or 0.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
        skipped: the images that could not be decoded.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return int(self.images.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return int(channels), int(height), int(width)

    def take(self, positions: Tensor) -> ImageSet:
        """The images at ``positions``, int64 [M], in that order."""
        labels = None if self.labels is None else self.labels[positions]
        return ImageSet(
            self.images[positions],
            labels,
            self.ids[positions],
            self.num_classes,
            self.mean,
            self.std,
            self.skipped,
        )

    def fingerprint(self) -> str:
        """Sha256 over ids, shape and pixels, in their order; not labels, since a teacher never sees them."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.ids.cpu().numpy().astype("<i8").tobytes())
        digest.update(self.images.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def assemble(
    config: DataConfig,
    images: Tensor,
    labels: Tensor | None,
    *,
    num_classes: int,
    ids: Tensor | None = None,
    skipped: tuple[Skipped, ...] = (),
) -> ImageSet:
    """Build a set from what a reader read; ids are positions unless given, mean and std come with the name.

    Raises:
        DataError: there is no image, ids occur twice, mean and std do not fit the channels, or labels not
            ``data.num_classes``.
    """
    if not images.shape[0]:
        raise DataError(f"data set '{config.name}' at {config.root}: no image in it")
    if ids is None:
        ids = torch.arange(images.shape[0])
    elif len(set(ids.tolist())) != len(ids):
        raise DataError(f"data set '{config.name}' at {config.root}: ids are not unique")
    channels = int(images.shape[1])
    mean, std = config.mean or config.known.mean, config.std or config.known.std
    if len(mean) == 1:
        mean, std = mean * channels, std * channels
    if len(mean) != channels:
        raise DataError(f"data.mean and data.std have {len(mean)} channels, images of '{config.name}' {channels}")
    if labels is None:
        num_classes = config.num_classes or 0
    elif config.num_classes not in (None, num_classes):
        raise DataError(
            f"data.num_classes = {config.num_classes}: for images without labels, but those of '{config.name}' have "
            f"labels of {num_classes} classes"
        )
    return ImageSet(images, labels, ids, num_classes, mean, std, skipped)


def choose_subset(ids: Tensor, config: DataConfig) -> Tensor:
    """Positions, ascending, of the images that ``config.subset`` keeps.

    Ids are ranked by a hash, so a smaller subset lies inside a larger one and new files displace few old
    ones.

    Raises:
        DataError: there are fewer images than asked for.
    """
    if config.subset is None:
        return torch.arange(len(ids))
    if config.subset > len(ids):
        raise DataError(f"data.subset asks for {config.subset} images, '{config.name}' has {len(ids)}")
    return _ranked(ids, config.split_seed, "subset")[: config.subset].sort().values


def choose_stratified(ids: Tensor, labels: Tensor | None, share: float, seed: int, purpose: str) -> Tensor:
    """Mask, bool [N], of ``round(share * N)`` images with every class's share as equal as can be."""
    count = round(share * len(ids))
    order = _ranked(ids, seed, purpose)
    mask = torch.zeros(len(ids), dtype=torch.bool)
    if labels is None:
        mask[order[:count]] = True
        return mask
    order = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    quota = _largest_remainder(sizes, count)
    rank_in_class = torch.arange(len(ids)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    mask[order[rank_in_class < quota.repeat_interleave(sizes)]] = True
    return mask


def _largest_remainder(sizes: Tensor, count: int) -> Tensor:
    """Split ``count`` over classes in proportion to ``sizes`` [K]; whole numbers throughout, hence exact."""
    total = int(sizes.sum())
    quota = sizes * count // total
    remainder = sizes * count % total
    quota[remainder.argsort(descending=True, stable=True)[: count - int(quota.sum())]] += 1
    return quota


def _ranked(ids: Tensor, seed: int, purpose: str) -> Tensor:
    return hash_bits(seed, name_key(purpose), ids).argsort(stable=True)
