"""A whole data set with its labels and ids, and how a part of it is chosen."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self, TypedDict

from raydistill.counter_rng import hash_bits, name_key
from raydistill.errors import DataError
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig, ModalityName

_DECODING = "encoded images, decoding 1"  # to be counted up when other pixels are made of the same bytes
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


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet(ABC):
    """Images with their labels and ids, in a fixed order: ``DecodedImages``, or ``EncodedImages`` to be read on demand.

    Attributes:
        labels: int64 [N] in [0, num_classes), or ``None`` where there are none.
        targets: int8 [N, C] of images that may show several classes, which have no labels: 1 where an image shows the
            class, -1 where it does not, 0 where that is not to be judged; else ``None``.
        ids: int64 [N], unique; an image keeps its id whatever subset or order it is in.
        num_classes: number of classes; without labels what ``data.num_classes`` says, else that of the targets, or 0.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
        skipped: the images that could not be decoded.
        digests: uint8 [N, 16], of each image's encoded bytes; ``None`` where a set is not made of encoded images.
        modality: what was made of the colours.
    """

    labels: Tensor | None
    ids: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[Skipped, ...] = ()
    digests: Tensor | None = None
    modality: ModalityName = "rgb"
    targets: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return int(self.ids.shape[0])

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @property
    @abstractmethod
    def images(self) -> Tensor:
        """All pixels at once, uint8 [N, C, H, W]; a set that decodes on demand decodes them now.

        Raises:
            DataError: they would not fit into this machine's memory, or a file was changed.
        """

    @abstractmethod
    def pixels(self, positions: Tensor) -> Tensor:
        """The images at ``positions``, int64 [B], as uint8 [B, C, H, W].

        Raises:
            DataError: a file was changed or lost since the set was opened.
        """

    def take(self, positions: Tensor) -> Self:
        """The images at ``positions``, int64 [M], in that order."""
        return replace(
            self,
            labels=None if self.labels is None else self.labels[positions],
            targets=None if self.targets is None else self.targets[positions],
            ids=self.ids[positions],
            digests=None if self.digests is None else self.digests[positions],
        )

    def fingerprint(self) -> str:
        """Sha256 over ids, shape and content, in their order; not labels, since a teacher never sees them.

        Content is the encoded bytes, where the set was made of such, so that a set which decodes on demand and one
        that is decoded have one fingerprint and share caches; elsewhere it is the pixels.
        """
        digest = hashlib.sha256(repr((len(self), *self.shape)).encode())
        digest.update(self.ids.cpu().numpy().astype("<i8").tobytes())
        if self.digests is None:
            digest.update(self.images.cpu().contiguous().numpy().data)
        else:
            digest.update(f"{_DECODING}, {self.modality}".encode())
            digest.update(self.digests.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedImages(ImageSet):
    """A set whose pixels are one tensor.

    Attributes:
        decoded: uint8 [N, C, H, W].
    """

    decoded: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.decoded.shape[1:]
        return int(channels), int(height), int(width)

    @property
    def images(self) -> Tensor:
        """All pixels, uint8 [N, C, H, W], on the tensor's device."""
        return self.decoded

    def pixels(self, positions: Tensor) -> Tensor:
        """The images at ``positions``, int64 [B], as uint8 [B, C, H, W]."""
        return self.decoded[positions]

    def take(self, positions: Tensor) -> Self:
        """The images at ``positions``, int64 [M], in that order."""
        return replace(super().take(positions), decoded=self.decoded[positions])


class Description(TypedDict):
    """What is said of a set beside its images; the fields are those of ``ImageSet``."""

    labels: Tensor | None
    ids: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def assemble(
    config: DataConfig,
    images: Tensor,
    labels: Tensor | None,
    *,
    num_classes: int,
    ids: Tensor | None = None,
) -> ImageSet:
    """Build a set from the pixels that a reader read; ids are positions unless given.

    Raises:
        DataError: as ``describe``.
    """
    ids = torch.arange(images.shape[0]) if ids is None else ids
    described = describe(config, ids, labels, num_classes=num_classes, channels=int(images.shape[1]))
    return DecodedImages(decoded=images, **described)


def describe(config: DataConfig, ids: Tensor, labels: Tensor | None, *, num_classes: int, channels: int) -> Description:
    """Check what is known beside the images; mean and std come with the name unless given.

    Raises:
        DataError: there is no image, ids occur twice, mean and std do not fit the channels, or labels not
            ``data.num_classes``.
    """
    if not len(ids):
        raise DataError(f"data set '{config.name}' at {config.root}: no image in it")
    if len(set(ids.tolist())) != len(ids):
        raise DataError(f"data set '{config.name}' at {config.root}: ids are not unique")
    mean, std = config.mean or config.known.mean, config.std or config.known.std
    if len(mean) == 1:
        mean, std = mean * channels, std * channels
    if len(mean) != channels:
        raise DataError(f"data.mean and data.std have {len(mean)} channels, images of '{config.name}' {channels}")
    if labels is None:
        num_classes = config.num_classes or num_classes
    elif config.num_classes not in (None, num_classes):
        raise DataError(
            f"data.num_classes = {config.num_classes}: for images without labels, but those of '{config.name}' have "
            f"labels of {num_classes} classes"
        )
    return {"labels": labels, "ids": ids, "num_classes": num_classes, "mean": mean, "std": std}


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
        raise DataError(
            f"data.subset asks for {config.subset} images, '{config.name}' has {len(ids)}; lower it or leave it out"
        )
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
