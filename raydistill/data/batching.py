"""How an epoch is cut into global batches, these into micro-batches, and these into the workers' parts.

All of it follows from numbers alone, so every worker knows what each other one holds, and a batch is the same images
in the same order for any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raydistill.errors import ConfigError

Shares = tuple[int, ...]
"""How many rows each worker holds of a micro-batch."""

LEAST_REST = 2
"""Images that each worker gets of the last, smaller batch at least: of one alone a batch-norm has no variance."""


@dataclass(frozen=True)
class Batching:
    """The batches of an epoch.

    Parts of a batch differ by one image at most, the first ones being the larger. A set smaller than a batch is one
    batch as it is.

    Attributes:
        images: in the training set.
        batch_size: of the global batch, which is one step of the optimiser.
        workers: that share it.
        accumulate: number of micro-batches whose gradients a step adds up.
        drop_last: whether an epoch leaves out what its whole batches leave over; else that is a smaller last batch, of
            fewer micro-batches where it does not need them all.

    Raises:
        ConfigError: if a worker would get none of a batch's images, or one alone of the last.
    """

    images: int
    batch_size: int
    workers: int = 1
    accumulate: int = 1
    drop_last: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be shared."""
        whole = min(self.images, self.batch_size)
        if self._least(whole) < 1:
            raise ConfigError(
                f"{whole} images are too few for {self.workers} workers"
                + (f" with {self._micro_batches(whole)} micro-batches each" if self.accumulate > 1 else "")
                + "; lower scale.workers or train.accumulate, or take more images"
            )
        rest = self.images % self.batch_size
        if not self.drop_last and self.images > self.batch_size and rest and self._least(rest) < LEAST_REST:
            raise ConfigError(
                f"train.drop_last = false: the last batch of an epoch would have {rest} of the {self.images} images, "
                f"fewer than {LEAST_REST} for each worker and micro-batch; set it to true, or change train.batch_size"
            )

    @property
    def steps(self) -> int:
        """Number of batches in an epoch, at least one."""
        whole, rest = divmod(self.images, self.batch_size)
        return max(1, whole + (rest > 0 and not self.drop_last))

    @property
    def images_per_epoch(self) -> int:
        """Images that an epoch shows."""
        return min(self.images, self.steps * self.batch_size)

    def shares(self, step: int) -> tuple[Shares, ...]:
        """Rows that each worker holds, for each micro-batch of a step of the epoch, counted from 0."""
        rows = min(self.batch_size, self.images - step * self.batch_size)
        return tuple(_parts(micro_batch, self.workers) for micro_batch in _parts(rows, self._micro_batches(rows)))

    def spans(self, step: int, rank: int) -> Iterator[tuple[int, int]]:
        """First place in the epoch's order, and length, of a worker's part of each micro-batch."""
        first = step * self.batch_size
        for shares in self.shares(step):
            yield first + sum(shares[:rank]), shares[rank]
            first += sum(shares)

    def _micro_batches(self, rows: int) -> int:
        """Number of micro-batches: no more than keep them as large as those of a whole batch."""
        return max(1, -(-rows * self.accumulate // self.batch_size))

    def _least(self, rows: int) -> int:
        """Rows of the smallest part of a batch."""
        return rows // self._micro_batches(rows) // self.workers


def _parts(rows: int, count: int) -> tuple[int, ...]:
    each, more = divmod(rows, count)
    return tuple(each + (number < more) for number in range(count))
