"""Reading a finished teacher cache: rows by (sample id, view id)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from raydistill.errors import CacheError
from raydistill.lazy import Tensor, torch
from raydistill.teachers.cache import store
from raydistill.teachers.cache.codec import Array, codec_of, columns_of, take_rows
from raydistill.teachers.cache.manifest import (
    REPAIR,
    Manifest,
    ShardRecord,
    check_links,
    check_success,
    read_manifest,
    shard_path,
)
from raydistill.teachers.cache.remote import Location
from raydistill.teachers.cache.row_reader import RowReader
from raydistill.teachers.cache.shards import check_footer, plain_columns, read_columns, read_ids, read_stored

if TYPE_CHECKING:
    import pandas as pd

    from raydistill.config import Experiment
    from raydistill.data.image_set import ImageSet

_READERS = 4


class TeacherCache:
    """The stored outputs of one teacher for one list of images.

    Attributes:
        path: the folder, a ``pathlib.Path`` or a ``RemotePath``.
        manifest: what the cache says about itself.
    """

    def __init__(self, path: Location, manifest: Manifest) -> None:
        """Use ``TeacherCache.open``, which checks the folder first."""
        self.path = path
        self.manifest = manifest
        self._ids: Array | None = None
        self._order: Array | None = None
        self._reader = RowReader(path, manifest.content)

    @classmethod
    def open(cls, path: str | Location) -> TeacherCache:
        """Open a cache, in a folder or at a URL, after checking manifest, completeness, sizes and row counts.

        Raises:
            CacheError: naming the file that is missing or damaged and the command that repairs it.
            StorageError: if a remote storage cannot be reached, does not exist or refuses.
        """
        folder = store.location(path)
        manifest = read_manifest(folder)
        check_success(folder)
        check_links(folder)
        if not manifest.shards:
            raise CacheError(f"{folder}: it holds no shard; finish it with `{REPAIR}`")
        store.spread(folder, lambda record: check_footer(folder, manifest.content, record), manifest.shards)
        return cls(folder, manifest)

    def __len__(self) -> int:
        """Number of rows: images times views."""
        return self.manifest.rows

    @property
    def views(self) -> tuple[int, ...]:
        """Ids of the cached views; 0 is the evaluation view."""
        return tuple(range(self.manifest.content.views + 1))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the cached outputs."""
        return tuple(self.manifest.content.teacher.outputs)

    @property
    def ids(self) -> Array:
        """Ids of the images in the order of the data set, int64 [N].

        Raises:
            CacheError: if they are not those of the manifest.
        """
        if self._ids is None:
            self._ids = np.concatenate(
                store.spread(self.path, lambda record: read_ids(self.path, record), self._shards(0))
            )
        return self._ids

    def read(
        self, sample_ids: Iterable[int] | Array | Tensor, view: int = 0, outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Read rows of one view: name -> float32 [B, *shape] in the order of ``sample_ids``.

        Raises:
            CacheError: naming the id, view or output that the cache does not hold, or a damaged shard.
        """
        rows = self.rows(sample_ids, view, self.outputs if outputs is None else outputs)
        return {name: torch.from_numpy(values.astype(np.float32)) for name, values in rows.items()}

    def rows(self, sample_ids: Iterable[int] | Array | Tensor, view: int, outputs: Sequence[str]) -> dict[str, Array]:
        """Read rows of one view for a batch, from shards of which half a gigabyte stays open; see ``RowReader``.

        Returns:
            Name -> [B, *shape] in the order of ``sample_ids``, float16 where that is the cache's dtype, else float32.

        Raises:
            CacheError: naming the id, view or output that the cache does not hold, or a damaged shard.
        """
        names = self._check_outputs(outputs)
        (shards,) = self._check_views([view])
        positions = self._positions(sample_ids)
        table = {name: self._empty((len(positions),), name) for name in names}
        for number in np.unique(positions // self.manifest.content.shard_rows):
            record = shards[number]
            chosen = _inside(positions, record)
            for name, values in self._reader.rows(record, names, positions[chosen] - record.first).items():
                table[name][chosen] = values
        return table

    def table(
        self, sample_ids: Iterable[int] | Array | Tensor, views: Sequence[int], outputs: Sequence[str]
    ) -> dict[str, Array]:
        """Read rows of several views at once, to keep them in memory.

        Returns:
            Name -> [len(views), N, *shape] in float16 where that is the cache's dtype, else float32.

        Raises:
            CacheError: naming the id, view or output that the cache does not hold, or a damaged shard.
        """
        names = self._check_outputs(outputs)
        shards = self._check_views(views)
        positions, content = self._positions(sample_ids), self.manifest.content
        table = {name: self._empty((len(views), len(positions)), name) for name in names}

        def fill(part: tuple[int, ShardRecord]) -> None:
            slot, record = part
            chosen = _inside(positions, record)
            if not len(chosen):
                return
            rows, places = _as_slice(positions[chosen] - record.first), _as_slice(chosen)
            stored = read_stored(shard_path(self.path, record.name), record, columns_of(content, names))
            stored = {name: take_rows(numbers, rows) for name, numbers in stored.items()}
            for name in names:
                decode, target = codec_of(content, name).decode, table[name][slot]
                if isinstance(places, slice):
                    decode(name, stored, target[places])  # from the file's pages to where they stay
                else:
                    target[places] = decode(name, stored)

        parts = [(slot, record) for slot, records in enumerate(shards) for record in records]
        with ThreadPoolExecutor(min(_READERS, len(parts))) as pool:  # checksums and copies hold no Python lock
            for _ in pool.map(fill, parts):
                pass
        return table

    def verify(self, full: bool = False) -> list[str]:
        """Return one line for each fault found; see ``verify.verify``."""
        from raydistill.teachers.cache.verify import verify

        return verify(self.path, full=full)

    def to_pandas(self, limit: int | None = None) -> pd.DataFrame:
        """Return rows as a data frame: keys, crop, flip, and every output as a flat float32 array in each cell."""
        import pandas as pd

        frames: list[pd.DataFrame] = []
        left = len(self) if limit is None else max(0, limit)
        for record in self.manifest.shards:
            table = read_columns(self.path, record, None).slice(0, left)
            columns = plain_columns(self.manifest.content, table)
            for name in self.outputs:
                columns[name] = _cells(columns[name])
            frames.append(pd.DataFrame(columns))
            left -= len(table)
            if left <= 0:
                break
        return pd.concat(frames, ignore_index=True)

    def _shards(self, view: int) -> list[ShardRecord]:
        return [record for record in self.manifest.shards if record.view == view]

    def _empty(self, leading: tuple[int, ...], name: str) -> Array:
        content = self.manifest.content
        return np.empty((*leading, *content.teacher.outputs[name]), dtype=codec_of(content, name).dtype)

    def _check_outputs(self, names: Sequence[str]) -> list[str]:
        unknown = [name for name in names if name not in self.outputs]
        if unknown:
            raise CacheError(f"cache '{self.path}' has no output '{unknown[0]}'; it has {', '.join(self.outputs)}")
        return list(names)

    def _check_views(self, views: Sequence[int]) -> list[list[ShardRecord]]:
        unknown = [view for view in views if view not in self.views]
        if unknown:
            raise CacheError(f"cache '{self.path}' has no view {unknown[0]}; it has views 0 to {self.views[-1]}")
        return [self._shards(view) for view in views]

    def _positions(self, sample_ids: Iterable[int] | Array | Tensor) -> Array:
        """Turn ids [B] into positions [B] in the data set."""
        if not hasattr(sample_ids, "__array__"):
            sample_ids = list(sample_ids)
        wanted = np.asarray(sample_ids, dtype=np.int64).reshape(-1)
        if np.array_equal(wanted, self.ids):  # all in order, as for a whole table
            return np.arange(len(wanted))
        if self._order is None:
            self._order = np.argsort(self.ids, kind="stable")
        place = np.searchsorted(self.ids, wanted, sorter=self._order)
        positions = self._order[np.minimum(place, len(self._order) - 1)]
        unknown = wanted[self.ids[positions] != wanted]
        if len(unknown):
            raise CacheError(
                f"cache '{self.path}' has no sample {unknown[0]} ({len(unknown)} unknown of {len(wanted)})"
            )
        return positions


def find_cache(experiment: Experiment, images: ImageSet) -> TeacherCache:
    """Open the finished cache that holds exactly what the experiment asks for; ``images`` are what the teacher sees.

    Raises:
        CacheError: if it was not built (naming the fields that set the nearest one apart), is damaged, could not
            serve the methods, or holds other rows than the teacher computes.
        ConfigError, WeightsError: where the teacher can't be loaded.
    """
    from raydistill.teachers.cache.request import absent, missing_outputs, needing_every_logit, requested
    from raydistill.teachers.cache.spot import check_first_use
    from raydistill.teachers.network import teacher_of

    lacking = missing_outputs(experiment)
    if lacking:
        raise CacheError(
            f"cache.outputs lacks '{lacking[0]}', which the experiment wants from the teacher; add it there "
            f"and run `{REPAIR}`, or set teacher.source=live"
        )
    if objections := needing_every_logit(experiment):
        raise CacheError(
            f"cache.top_k = {experiment.cache.top_k}: methods.{objections[0]}; set cache.top_k=null "
            f"and run `{REPAIR}`, or set teacher.source=live"
        )
    teacher = teacher_of(experiment, images)
    content = requested(experiment, images, teacher)
    root = store.location(experiment.cache.root)
    folder = root / content.folder_name
    if not folder.is_dir():
        raise absent(root, content)
    cache = TeacherCache.open(folder)
    check_first_use(cache, teacher, images)
    return cache


def _as_slice(indices: Array) -> Array | slice:
    """Return indices that count upwards one by one as a slice, which copies whole blocks."""
    first, last = int(indices[0]), int(indices[-1])
    if last - first == len(indices) - 1 and bool((np.diff(indices) == 1).all()):
        return slice(first, last + 1)
    return indices


def _inside(positions: Array, record: ShardRecord) -> Array:
    """Indices into ``positions`` of those that lie in a shard."""
    found: Array = ((positions >= record.first) & (positions < record.first + record.rows)).nonzero()[0]
    return found


def _cells(values: Array) -> Array:
    """Put each row of [N, *shape] as one flat array into an object array [N]."""
    cells = np.empty(len(values), dtype=object)
    for row, flat in enumerate(values.reshape(len(values), -1)):
        cells[row] = flat
    return cells


__all__ = ["TeacherCache", "find_cache"]
