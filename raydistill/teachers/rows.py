"""The stored outputs of one teacher for the training images: held in memory, or left on the disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raydistill.data.shared import tensor_of
from raydistill.errors import CacheError
from raydistill.teachers.cache.read import TeacherCache

if TYPE_CHECKING:
    from raydistill.teachers.cache.codec import Array

Shape = tuple[int, ...]
_OPEN_CACHES = 8


class Rows(Protocol):
    """Rows by position in the training set and view id, on one device.

    A cache that holds one view alone answers with it whatever view is asked for.
    """

    @property
    def views(self) -> tuple[int, ...]:
        """Ids of the cached views."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Name -> shape of a row."""

    @property
    def device(self) -> torch.device:
        """Where rows are gathered."""

    def take(self, names: Sequence[str], positions: Tensor, view_ids: Tensor | None) -> dict[str, Tensor]:
        """Return name -> float32 [B, *shape].

        Args:
            names: of outputs.
            positions: int64 [B].
            view_ids: int64 [B]; None only where there is one view.

        Raises:
            CacheError: if a view id is not cached, or a shard is damaged.
        """


class HeldRows:
    """Rows in one table, on the training device or in memory that all processes of the node share."""

    def __init__(
        self, table: Mapping[str, np.ndarray[Any, Any]], views: Iterable[int], device: torch.device | str
    ) -> None:
        """Bring name -> [len(views), N, *shape], as ``TeacherCache.table`` gives it, to the device.

        On the CPU the arrays' memory is kept.
        """
        self.views = tuple(views)
        self.device = torch.device(device)
        self.shapes = {name: tuple(int(size) for size in values.shape[2:]) for name, values in table.items()}
        self._rows = {name: _flat(values, self.device) for name, values in table.items()}
        self._size = next((int(values.shape[1]) for values in table.values()), 0)
        slots = torch.full((max(self.views) + 1,), -1, dtype=torch.int64)
        slots[list(self.views)] = torch.arange(len(self.views))
        self._slots = slots.to(device)

    def take(self, names: Sequence[str], positions: Tensor, view_ids: Tensor | None) -> dict[str, Tensor]:
        """Gather; see ``Rows``. Only on the CPU are view ids checked: elsewhere that would stall the device."""
        rows = positions.to(self.device)
        if len(self.views) > 1:
            assert view_ids is not None
            rows = self._slot(view_ids.to(self.device)) * self._size + rows
        return {name: self._rows[name][rows].float() for name in names}

    def _slot(self, view_ids: Tensor) -> Tensor:
        if view_ids.device.type == "cpu" and len(view_ids):
            low, high = int(view_ids.min()), int(view_ids.max())
            if low < 0 or high >= len(self._slots) or bool((self._slots[view_ids] < 0).any()):
                raise _not_cached(low, high, self.views)
        return self._slots[view_ids]


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows that stay in the cache's shards; small, and quick to send to another process, which then opens the cache.

    Attributes:
        path: of the cache.
        ids: int64 [N], of the training images.
        views: ids of the cached views.
        shapes: name -> shape of a row.
    """

    path: str
    ids: Array
    views: tuple[int, ...]
    shapes: Mapping[str, Shape]

    @classmethod
    def of(cls, cache: TeacherCache, sample_ids: Tensor, names: Sequence[str]) -> StoredRows:
        """Rows of ``sample_ids``, int64 [N], whose order gives the positions."""
        shapes = {name: tuple(cache.manifest.content.teacher.outputs[name]) for name in names}
        return cls(str(cache.path), sample_ids.cpu().numpy(), tuple(cache.views), shapes)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def take(self, names: Sequence[str], positions: Tensor, view_ids: Tensor | None) -> dict[str, Tensor]:
        """Read from the shards; see ``Rows``."""
        cache = _opened(self.path)
        ids = self.ids[positions.cpu().numpy()]
        if len(self.views) == 1:
            return cache.read(ids, self.views[0], names)
        assert view_ids is not None
        wanted = view_ids.cpu().numpy()
        found = {name: torch.empty((len(ids), *self.shapes[name])) for name in names}
        for view in np.unique(wanted).tolist():
            if view not in self.views:
                raise _not_cached(int(wanted.min()), int(wanted.max()), self.views)
            (rows,) = np.nonzero(wanted == view)
            for name, values in cache.read(ids[rows], view, names).items():
                found[name][torch.from_numpy(rows)] = values
        return found


def table_bytes(cache: TeacherCache, count: int, names: Sequence[str]) -> int:
    """Return what ``TeacherCache.table`` of ``count`` images and all views would take in memory."""
    from raydistill.teachers.cache.codec import codec_of

    content = cache.manifest.content
    outputs = content.teacher.outputs
    row = sum(codec_of(content, name).dtype.itemsize * math.prod(outputs[name]) for name in names)
    return row * count * len(cache.views)


@lru_cache(maxsize=_OPEN_CACHES)
def _opened(path: str) -> TeacherCache:
    """Open a cache once in each process; what it has checked and mapped stays so for the next task."""
    return TeacherCache.open(path)


def _not_cached(low: int, high: int, views: tuple[int, ...]) -> CacheError:
    return CacheError(f"teacher views {low} to {high} were asked for, but the cache holds {views}")


def _flat(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Bring a table [V, N, *shape] to the device as [V * N, *shape]."""
    array = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="), copy=False)
    return tensor_of(array).to(device).flatten(0, 1)
