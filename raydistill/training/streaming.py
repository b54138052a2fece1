"""Reading ahead: a Ray Data pipeline brings what lies on the disk, in the very order of the epoch.

Every task reads what up to 64 coming steps ask for, images and teacher's rows alike, so they are joined by sample when
they arrive. The order is a whole random permutation, as exact as with everything in memory, and that costs random
reads: where the operating system's page cache does not hold a shard, each row costs a page of 4 KiB, four times what
512 numbers in float16 take. A task gathers its rows shard by shard and file by file, so the more steps it covers, the
more of them share a page. Of compressed shards, whole columns must be unpacked: leave them uncompressed to stream them.
Images in Parquet files come by whole row groups, unless ``data.spool`` names a place for a copy without such.
What is read ahead is a few blocks, whatever the cache's size. The first epoch begins with a wait for its first task;
the next ones are begun while the one before still has blocks to show, so reading goes on through validation.

Tasks ask Ray for no CPU: a worker, another rank or a trial that holds all of them could otherwise wait for its own
reader for ever. What they take is bounded by their number, for which ``trainer`` leaves room.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydistill.cluster import ensure_ray, quiet_data
from raydistill.data.shared import tensor_of
from raydistill.errors import RaydistillError, RunError, named_error
from raydistill.methods.base import Needs
from raydistill.threads import thread_beside
from raydistill.training.feeding import Columns, Supply
from raydistill.training.heaps import return_freed
from raydistill.training.requests import Plan, Request

MOST_STEPS = 64
BLOCK_BYTES = 1 << 25
"""A task takes fewer steps where they would be more than this; what is read ahead is some such blocks."""

Following = Callable[[], Sequence[Tensor]]
_FAILURE = "failure"
_BLOCKS_AHEAD = 2
_LEAST_BUDGET = 1 << 27


@dataclass(frozen=True)
class Reading:
    """What tasks need to read the steps of an epoch: they make the requests themselves."""

    supply: Supply
    plan: Plan
    epoch: int
    needs: Needs

    def columns(self, positions: Tensor) -> Columns:
        """Read for int64 [B] positions on the CPU."""
        return self.supply.bring(self._request(positions))

    def bytes_of(self, positions: Tensor) -> int:
        """What the columns for int64 [B] positions take."""
        return len(positions) * self.supply.row_bytes(self._request(positions[:1]))

    def _request(self, positions: Tensor) -> Request:
        return self.plan.request(positions, self.epoch, self.needs)


class EpochReader:
    """Reads one epoch after the other, and the first blocks of the next one before the last of the present is used."""

    def __init__(self, supply: Supply, plan: Plan, readers: int) -> None:
        """Read from ``supply`` what ``plan`` asks for, with ``readers`` tasks at a time, for a while twice as many."""
        self._supply, self._plan, self._readers = supply, plan, readers
        self._begun: _Begun | None = None
        self._thread = thread_beside("next-epoch")

    def read(
        self, steps: Sequence[Tensor], epoch: int, needs: Needs, following: Following | None = None
    ) -> Iterator[Columns]:
        """Yield the columns of each step of an epoch.

        Args:
            steps: int64 [B] positions of each; none has more than the first.
            epoch: counted from 0.
            needs: which outputs of which views.
            following: gives the steps of the next epoch, which has the same needs, where there is one.

        Raises:
            InputError, RunError: as ``stream``.
        """
        return_freed()
        reading = Reading(self._supply, self._plan, epoch, needs)
        columns = self._take(reading, steps)
        begin_at = len(steps) - 1 - _BLOCKS_AHEAD * steps_together(reading, steps, self._readers)
        for number, found in enumerate(columns):
            if following is not None and number == max(0, begin_at):
                self._begin(replace(reading, epoch=epoch + 1), following())
            yield found

    def _begin(self, reading: Reading, steps: Sequence[Tensor]) -> None:
        columns = stream(reading, steps, self._readers)
        self._begun = _Begun(reading, steps, columns, self._thread.submit(next, columns, None))

    def _take(self, reading: Reading, steps: Sequence[Tensor]) -> Iterator[Columns]:
        """Return what was begun, if that is what is asked for, else begin now."""
        begun, self._begun = self._begun, None
        if begun is None:
            return stream(reading, steps, self._readers)
        if begun.serves(reading, steps):
            return begun.all()
        begun.end()
        return stream(reading, steps, self._readers)


@dataclass(frozen=True)
class _Begun:
    """An epoch whose first step's columns another thread waits for."""

    reading: Reading
    steps: Sequence[Tensor]
    columns: Generator[Columns]
    first: Future[Columns | None]

    def serves(self, reading: Reading, steps: Sequence[Tensor]) -> bool:
        """Whether it is what is asked for."""
        mine, asked = self.reading, reading
        same = (mine.epoch, mine.needs, len(self.steps)) == (asked.epoch, asked.needs, len(steps))
        return same and all(map(torch.equal, self.steps, steps))

    def all(self) -> Iterator[Columns]:
        """Yield the columns of each step."""
        first = self.first.result()
        if first is not None:
            yield first
            yield from self.columns

    def end(self) -> None:
        """Read no more."""
        self.first.add_done_callback(lambda first: self.columns.close())


def steps_together(reading: Reading, steps: Sequence[Tensor], readers: int) -> int:
    """Return how many steps a task reads."""
    if not steps:
        return 1
    fitting = BLOCK_BYTES // max(1, reading.bytes_of(steps[0]))
    return max(1, min(MOST_STEPS, math.ceil(len(steps) / (readers + 1)), fitting))


def stream(reading: Reading, steps: Sequence[Tensor], readers: int) -> Generator[Columns]:
    """Yield the columns of each step, read ahead by ``readers`` tasks at a time.

    Args:
        reading: what to read.
        steps: int64 [B] positions of each step; none has more than the first.
        readers: number of tasks.

    Raises:
        InputError: what a task met: a damaged shard, an image that was changed.
        RunError: if Ray could not go on.
    """
    if not steps:
        return
    together = steps_together(reading, steps, readers)
    groups = [list(steps[first : first + together]) for first in range(0, len(steps), together)]
    parts = [torch.cat(group) for group in groups]
    for group, block in zip(groups, _blocks(reading, parts, readers, reading.bytes_of(parts[0])), strict=True):
        if _FAILURE in block:
            failure = json.loads(str(block[_FAILURE][0]))
            raise named_error(failure["kind"], failure["message"])
        columns = {name: tensor_of(values) for name, values in block.items()}
        lengths = [len(positions) for positions in group]
        if any(len(values) != sum(lengths) for values in columns.values()):
            raise RunError(f"a reading task brought other than the {sum(lengths)} rows that it was sent for")
        pieces = {name: torch.split(values, lengths) for name, values in columns.items()}
        for number in range(len(group)):
            yield {name: found[number] for name, found in pieces.items()}


def _blocks(
    reading: Reading, parts: Sequence[Tensor], readers: int, block_bytes: int
) -> Iterator[Mapping[str, np.ndarray[Any, Any]]]:
    """Run the pipeline: one task and one block for each part, in their order."""
    ensure_ray()
    import ray
    from ray.data import ExecutionResources

    quiet_data()
    shared = ray.put(reading), ray.put([part.numpy() for part in parts])
    numbers = [{"part": number} for number in range(len(parts))]
    data = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
        _read, fn_args=shared, batch_size=None, num_cpus=0, concurrency=readers
    )
    context = data.context
    context.execution_options.preserve_order = True
    context.target_max_block_size = None  # one block for each task, however large
    budget = max(_LEAST_BUDGET, 4 * (readers + _BLOCKS_AHEAD) * block_bytes)
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=budget)
    try:
        yield from data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=_BLOCKS_AHEAD)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[-1]
        raise RunError(f"reading ahead failed: {type(error).__name__}: {reason}; or set cache.read=shared") from error


def _read(batch: Mapping[str, np.ndarray[Any, Any]], reading: Any, parts: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What a task runs; it tells what it met in its block, since Ray would wrap and repeat it."""
    import ray

    torch.set_num_threads(1)
    positions = ray.get(parts)[int(batch["part"][0])]
    try:
        columns = ray.get(reading).columns(tensor_of(positions))
    except RaydistillError as error:
        return {_FAILURE: np.array([json.dumps({"kind": type(error).__name__, "message": str(error)})])}
    return {name: np.ascontiguousarray(values.numpy()) for name, values in columns.items()}
