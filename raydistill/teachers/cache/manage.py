"""Looking at caches from outside: list, export, remove."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.errors import CacheError, ConfigError, RunError, StorageError
from raydistill.files import TEMPORARY
from raydistill.progress import Progress, counted, unwatched
from raydistill.teachers.cache import store
from raydistill.teachers.cache.codec import Array, columns_of
from raydistill.teachers.cache.files import locked
from raydistill.teachers.cache.manifest import (
    MANIFEST,
    SHARDS,
    SUCCESS,
    read_manifest,
)
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.remote import Location
from raydistill.teachers.cache.request import cache_folders
from raydistill.teachers.cache.shards import SAMPLE_ID, VIEW_ID, plain_columns, read_columns


@dataclass(frozen=True)
class Listed:
    """One cache of a root; ``finished`` is False while it is being built or after a build was interrupted."""

    path: str
    model: str
    outputs: tuple[str, ...]
    images: int
    views: int
    dtype: str
    rows: int
    bytes: int
    created: str
    finished: bool


def list_caches(root: str | Location = "cache") -> list[Listed]:
    """Return the caches below a root; folders whose manifest is damaged are left to ``verify``.

    Raises:
        StorageError: if a remote root cannot be reached.
    """
    place = store.location(root)
    return [listed for listed in store.spread(place, _listed, cache_folders(place)) if listed is not None]


def _listed(folder: Location) -> Listed | None:
    try:
        manifest = read_manifest(folder)
    except CacheError:
        return None
    content = manifest.content
    return Listed(
        path=str(folder),
        model=content.teacher.model,
        outputs=tuple(content.teacher.outputs),
        images=content.data.count,
        views=content.views + 1,
        dtype=content.dtype,
        rows=manifest.rows,
        bytes=sum(store.file_sizes(folder / SHARDS, ".parquet").values()),
        created=manifest.created,
        finished=(folder / SUCCESS).is_file(),
    )


def export(path: str | Location, out: str | Path, *, progress: Progress = unwatched) -> Path:
    """Write a cache as plain numbers: ``.parquet`` with lists of float32, ``.npz`` with arrays, ``.pt`` with tensors.

    The torch file is a dictionary that loads with ``weights_only=True``. All are of float32 and hold whole rows,
    whatever the cache's encoding.

    Raises:
        CacheError: if the cache is damaged.
        ConfigError: if the suffix is another.
        RunError: if the disk refuses.
    """
    target = Path(out)
    writers = {".parquet": _export_parquet, ".npz": _export_npz, ".pt": _export_torch}
    if target.suffix not in writers:
        raise ConfigError(f"{target}: a cache is exported to a name that ends in .parquet, .npz or .pt")
    cache = TeacherCache.open(path)
    temporary = target.with_name(f".{target.name}{TEMPORARY}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            writers[target.suffix](cache, temporary, progress)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _export_parquet(cache: TeacherCache, target: Path, progress: Progress) -> None:
    shapes = cache.manifest.content.teacher.outputs
    writer: pq.ParquetWriter | None = None
    try:
        for record in counted(cache.manifest.shards, progress, "shard"):
            table = read_columns(cache.path, record, None)
            columns = plain_columns(cache.manifest.content, table)
            plain = {name: table.column(name).combine_chunks() for name in columns if name not in shapes}
            plain |= {name: _lists(columns[name]) for name in shapes}
            rows = pa.table(plain)
            writer = writer or pq.ParquetWriter(target, rows.schema)
            writer.write_table(rows)
    finally:
        if writer is not None:
            writer.close()


def _lists(values: Array) -> pa.Array:
    """Turn [N, *shape] into a column of flat lists."""
    flat = values.reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def _export_npz(cache: TeacherCache, target: Path, progress: Progress) -> None:
    with target.open("wb") as file:
        np.savez(file, **_whole(cache, progress))  # type: ignore[arg-type]


def _export_torch(cache: TeacherCache, target: Path, progress: Progress) -> None:
    import torch

    torch.save({name: torch.from_numpy(values) for name, values in _whole(cache, progress).items()}, target)


def _whole(cache: TeacherCache, progress: Progress) -> dict[str, Array]:
    """Return keys and outputs of all rows."""
    content = cache.manifest.content
    columns = [SAMPLE_ID, VIEW_ID, *columns_of(content, cache.outputs)]
    shards = counted(cache.manifest.shards, progress, "shard")
    parts = [plain_columns(content, read_columns(cache.path, record, columns)) for record in shards]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def remove(path: str | Location) -> None:
    """Delete a cache.

    Raises:
        CacheError: if the folder is none, or a build is at work in it.
        RunError: if the system refuses.
        StorageError: if a remote storage cannot be reached.
    """
    folder = store.location(path)
    if not _is_cache(folder):
        raise CacheError(f"{folder}: not a teacher cache, so nothing was deleted")
    with locked(folder, wait=False) as mine:
        if not mine:
            raise CacheError(f"{folder}: a build is at work in it, so nothing was deleted")
        try:
            store.remove_folder(folder)
        except OSError as error:
            raise RunError(f"cannot delete {folder}: {error.strerror or error}") from error
        except StorageError as error:
            raise RunError(f"cannot delete {error}") from None


def _is_cache(folder: Location) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    # A storage without folders has none for shards before the first one is there, and no links.
    return not isinstance(folder, Path) or ((folder / SHARDS).is_dir() and not folder.is_symlink())
