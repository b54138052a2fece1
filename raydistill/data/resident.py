"""A whole data set on the device, so that a batch is an index and no loader process exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raydistill.counter_rng import hash_bits, name_key
from raydistill.errors import ConfigError
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.image_set import ImageSet


class ResidentSet:
    """Images, labels and ids of a set on one device, and the order in which epochs visit them.

    Attributes:
        images: uint8 [N, C, H, W] on the device.
        labels: int64 [N] on the device, or ``None``.
        ids: int64 [N] on the device.
    """

    def __init__(self, images: ImageSet, device: torch.device | str) -> None:
        """Move ``images`` to ``device``."""
        self.device = torch.device(device)
        self.images = images.images.to(self.device)
        self.labels = None if images.labels is None else images.labels.to(self.device)
        self.ids = images.ids.to(self.device)
        self.num_classes = images.num_classes
        self.mean = images.mean
        self.std = images.std

    def __len__(self) -> int:
        """Number of images."""
        return int(self.ids.shape[0])

    def order(self, epoch: int, seed: int) -> Tensor:
        """Positions in an epoch's order: int64 [N] on the CPU, a function of ``seed`` and ``epoch`` only."""
        generator = torch.Generator().manual_seed(int(hash_bits(seed, name_key("order"), epoch)))
        return torch.randperm(len(self), generator=generator)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Number of batches in an epoch: whole ones, or one smaller where the set has no whole one."""
        return max(1, len(self) // batch_size)

    def batches(
        self, epoch: int, *, seed: int, batch_size: int, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> Iterator[Tensor]:
        """Positions of each step's images on the device.

        Args:
            epoch: counted from 0.
            seed: of the order.
            batch_size: of the global batch, which all workers share equally.
            rank: of this worker.
            world_size: number of workers.
            start: first step to give, to go on in the middle of an epoch.

        Returns:
            An iterator over int64 [batch_size / world_size]; this worker's part of each global batch.

        Raises:
            ConfigError: the batch can't be shared equally, or there are fewer images than workers.
        """
        share = self._share(batch_size, world_size)
        steps = range(start, self.steps_per_epoch(batch_size))
        return self._positions(self.order(epoch, seed), steps, batch_size=batch_size, rank=rank, share=share)

    def _share(self, batch_size: int, world_size: int) -> int:
        if batch_size % world_size:
            raise ConfigError(f"batch size {batch_size} can't be shared equally by {world_size} workers")
        share = min(batch_size, len(self)) // world_size
        if not share:
            raise ConfigError(f"{len(self)} images are too few for {world_size} workers")
        return share

    def _positions(self, order: Tensor, steps: range, *, batch_size: int, rank: int, share: int) -> Iterator[Tensor]:
        order = order.to(self.device)
        for step in steps:
            yield order.narrow(0, step * batch_size + rank * share, share)
