"""A whole data set beside the training, so that a batch is an index, and the order in which epochs visit it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raydistill.counter_rng import hash_bits, name_key
from raydistill.data.image_set import DecodedImages
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.batching import Batching
    from raydistill.data.image_set import ImageSet


class ResidentSet:
    """Labels and ids of a set on one device, its pixels too where they are decoded, and the order of epochs.

    Attributes:
        source: the set itself.
        resident: whether the pixels lie on the device; else they are decoded as they are asked for.
        labels: int64 [N] on the device, or ``None``.
        targets: int8 [N, C] on the device, or ``None``.
        ids: int64 [N] on the device.
    """

    def __init__(self, images: ImageSet, device: torch.device | str) -> None:
        """Move ``images`` to ``device``."""
        self.device = torch.device(device)
        self.source = images
        self.resident = isinstance(images, DecodedImages)
        self._images = images.images.to(self.device) if self.resident else None
        self.labels = None if images.labels is None else images.labels.to(self.device)
        self.targets = None if images.targets is None else images.targets.to(self.device)
        self.ids = images.ids.to(self.device)
        self.num_classes = images.num_classes
        self.mean = images.mean
        self.std = images.std

    def __len__(self) -> int:
        """Number of images."""
        return int(self.ids.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.source.shape

    @property
    def images(self) -> Tensor:
        """All pixels, uint8 [N, C, H, W] on the device; what is not decoded is so now, if it fits into memory."""
        return self.source.images.to(self.device) if self._images is None else self._images

    def pixels(self, positions: Tensor) -> Tensor:
        """The images at ``positions``, int64 [B], as uint8 [B, C, H, W] on the device."""
        if self._images is not None:
            return self._images[positions.to(self.device)]
        return self.source.pixels(positions.cpu()).to(self.device)

    def order(self, epoch: int, seed: int) -> Tensor:
        """Positions in an epoch's order: int64 [N] on the CPU, a function of ``seed`` and ``epoch`` only.

        It is a random permutation of the whole set, whatever files the images lie in and however they are read: there
        is no shuffling within windows or shards.
        """
        generator = torch.Generator().manual_seed(int(hash_bits(seed, name_key("order"), epoch)))
        return torch.randperm(len(self), generator=generator)

    def batches(
        self,
        epoch: int,
        batching: Batching,
        *,
        seed: int,
        rank: int = 0,
        start: int = 0,
        device: torch.device | None = None,
    ) -> Iterator[Tensor]:
        """Positions of each step's images.

        Args:
            epoch: counted from 0.
            batching: how the epoch is cut.
            seed: of the order.
            rank: of this worker.
            start: first step to give, to go on in the middle of an epoch.
            device: where the positions shall lie, if not with the set.

        Returns:
            An iterator over int64 [B]: this worker's part of each global batch, of one micro-batch after the other.
        """
        order = self.order(epoch, seed).to(device or self.device)
        for step in range(start, batching.steps):
            parts = [order.narrow(0, first, length) for first, length in batching.spans(step, rank)]
            yield parts[0] if len(parts) == 1 else torch.cat(parts)
