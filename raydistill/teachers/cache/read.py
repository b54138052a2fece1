"""Reading a finished teacher cache: rows by (sample id, view id)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raydistill.errors import CacheError
from raydistill.lazy import Tensor, torch
from raydistill.teachers.cache.codec import Array, codec_of
from raydistill.teachers.cache.manifest import REPAIR, Manifest, ShardRecord, check_success, read_manifest
from raydistill.teachers.cache.shards import (
    SAMPLE_ID,
    check_footer,
    damaged,
    ids_sha256,
    plain_columns,
    read_columns,
    read_outputs,
)

if TYPE_CHECKING:
    import pandas as pd

    from raydistill.config import Experiment
    from raydistill.data.image_set import ImageSet

_RECENT_BYTES = 1 << 29
_READERS = 4


class TeacherCache:
    """The stored outputs of one teacher for one list of images.

    Attributes:
        path: the folder.
        manifest: what the cache says about itself.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use ``TeacherCache.open``, which checks the folder first."""
        self.path = path
        self.manifest = manifest
        self._ids: Array | None = None
        self._order: Array | None = None
        self._recent: OrderedDict[tuple[str, str], Array] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> TeacherCache:
        """Open a cache after checking manifest, completeness, sizes and row counts.

        Raises:
            CacheError: naming the file that is missing or damaged and the command that repairs it.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        check_success(folder)
        for record in manifest.shards:
            check_footer(folder, manifest.content, record)
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
            parts = []
            for record in self._shards(0):
                column = read_columns(self.path, record, [SAMPLE_ID]).column(SAMPLE_ID).to_numpy()
                if ids_sha256(column) != record.ids:
                    raise damaged(self.path / "shards" / record.name, "its sample ids are not those of the manifest")
                parts.append(column)
            self._ids = np.concatenate(parts)
        return self._ids

    def read(
        self, sample_ids: Iterable[int] | Array | Tensor, view: int = 0, outputs: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Read rows of one view: name -> float32 [B, *shape] in the order of ``sample_ids``.

        Raises:
            CacheError: naming the id, view or output that the cache does not hold, or a damaged shard.
        """
        names = self._check_outputs(self.outputs if outputs is None else outputs)
        (shards,) = self._check_views([view])
        positions = self._positions(sample_ids)
        table = {name: self._empty((len(positions),), name) for name in names}
        for record in shards:
            chosen = _inside(positions, record)
            if len(chosen):
                for name, values in self._cached(record, names).items():
                    table[name][chosen] = values[positions[chosen] - record.first]
        return {name: torch.from_numpy(values.astype(np.float32)) for name, values in table.items()}

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
        positions = self._positions(sample_ids)
        table = {name: self._empty((len(views), len(positions)), name) for name in names}

        def fill(part: tuple[int, ShardRecord]) -> None:
            slot, record = part
            chosen = _inside(positions, record)
            if not len(chosen):
                return
            rows = _as_slice(positions[chosen] - record.first)
            for name, values in read_outputs(self.path, self.manifest.content, record, names).items():
                table[name][slot, _as_slice(chosen)] = values[rows]

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

    def _cached(self, record: ShardRecord, names: Sequence[str]) -> dict[str, Array]:
        """Outputs of a shard from the recently read ones, which may hold half a gigabyte."""
        lacking = [name for name in names if (record.name, name) not in self._recent]
        if lacking:
            for name, values in read_outputs(self.path, self.manifest.content, record, lacking).items():
                self._recent[record.name, name] = values
        found = {name: self._recent[record.name, name] for name in names}
        for name in names:
            self._recent.move_to_end((record.name, name))
        while sum(values.nbytes for values in self._recent.values()) > _RECENT_BYTES:
            self._recent.popitem(last=False)
        return found


def find_cache(experiment: Experiment, images: ImageSet) -> TeacherCache:
    """Open the finished cache that holds exactly what the experiment asks for; ``images`` are what the teacher sees.

    Raises:
        CacheError: if it was not built (naming the fields that set the nearest one apart), is damaged, or could
            not serve the methods.
        ConfigError, WeightsError: where the teacher can't be loaded.
    """
    from raydistill.teachers.cache.request import absent, missing_outputs, needing_every_logit, requested
    from raydistill.teachers.network import teacher_of

    lacking = missing_outputs(experiment)
    if lacking:
        raise CacheError(
            f"cache.outputs lacks '{lacking[0]}', which the methods want from the teacher; add it there "
            f"and run `{REPAIR}`, or set teacher.source=live"
        )
    if objections := needing_every_logit(experiment):
        raise CacheError(
            f"cache.top_k = {experiment.cache.top_k}: methods.{objections[0]}; set cache.top_k=null "
            f"and run `{REPAIR}`, or set teacher.source=live"
        )
    content = requested(experiment, images, teacher_of(experiment, images))
    root = Path(experiment.cache.root)
    folder = root / content.folder_name
    if not folder.is_dir():
        raise absent(root, content)
    return TeacherCache.open(folder)


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
