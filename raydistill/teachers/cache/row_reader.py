"""Single rows of a cache's shards in any order, for readers that do not hold the whole cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from raydistill.teachers.cache.codec import Array, RowType, codec_of, columns_of, take_rows
from raydistill.teachers.cache.manifest import Content, ShardRecord, shard_path
from raydistill.teachers.cache.remote import Location
from raydistill.teachers.cache.shards import read_stored
from raydistill.teachers.cache.store import local_file

_OPEN_BYTES = 1 << 29


class RowReader:
    """Reads rows from the memory maps of shards, of which those used last stay open, half a gigabyte of columns.

    A column of a shard is compared with its checksum when it is first touched, once in the life of the reader. Columns
    without a block, which are compressed or from older caches, are read as a whole instead. Threads may share a reader.
    """

    def __init__(self, folder: Location, content: Content) -> None:
        """Read from the cache in ``folder``; of a remote one, from this node's copies of its shards."""
        self._folder = folder
        self._content = content
        self._open: OrderedDict[tuple[str, str], Array] = OrderedDict()
        self._checked: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the shards for itself."""
        return RowReader, (self._folder, self._content)

    def rows(self, record: ShardRecord, names: Sequence[str], positions: Array) -> dict[str, Array]:
        """Copy some rows of a shard.

        Args:
            record: of the shard.
            names: of outputs.
            positions: int64 [B] in [0, record.rows), counted from the shard's first row; any order, repeats too.

        Returns:
            Name -> [B, *shape] in the codec's dtype.

        Raises:
            CacheError: naming the shard that is missing or damaged.
            IndexError: for a position outside of the shard.
        """
        wanted = columns_of(self._content, names)
        stored = self._columns(record, wanted)
        chosen = {name: take_rows(numbers, positions) for name, numbers in stored.items()}
        return {name: codec_of(self._content, name).decode(name, chosen) for name in names}

    def _columns(self, record: ShardRecord, wanted: Mapping[str, RowType]) -> dict[str, Array]:
        """The columns of a shard, opened now or before."""
        with self._lock:
            lacking = {name: row_type for name, row_type in wanted.items() if (record.name, name) not in self._open}
            if lacking:
                path = local_file(shard_path(self._folder, record.name), record, self._content.key)
                checked = self._checked.setdefault(record.name, set())
                for name, numbers in read_stored(path, record, lacking, checked=checked).items():
                    checked.add(name)
                    self._open[record.name, name] = numbers
            found = {}
            for name in wanted:
                self._open.move_to_end((record.name, name))
                found[name] = self._open[record.name, name]
            self._close_oldest()
        return found

    def _close_oldest(self) -> None:
        held = sum(numbers.nbytes for numbers in self._open.values())
        while held > _OPEN_BYTES:
            held -= self._open.popitem(last=False)[1].nbytes
