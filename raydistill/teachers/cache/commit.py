"""From finished shards to a finished cache: what can be kept, the manifest, and the mark of success."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.errors import CacheError, RunError
from raydistill.teachers.cache import store
from raydistill.teachers.cache.manifest import (
    ERRORS,
    MANIFEST,
    RECORDS,
    SHARDS,
    SUCCESS,
    Content,
    Manifest,
    ShardRecord,
    check_success,
    library_versions,
    read_manifest,
    read_record,
    shard_name,
    write_part,
)
from raydistill.teachers.cache.remote import Location
from raydistill.teachers.cache.shards import check_record

if TYPE_CHECKING:
    from raydistill.data.image_set import Skipped


def finished_shards(
    folder: Location, content: Content, shards: Iterable[tuple[int, int, int]]
) -> dict[str, ShardRecord]:
    """Return the records, by name, of those shards that can be kept: file and record agree in every byte.

    Hashing takes a second for a gigabyte; without it, the repair that errors recommend would keep a flipped bit.
    """

    def kept(shard: tuple[int, int, int]) -> ShardRecord | None:
        view, first, rows = shard
        record = read_record(folder, shard_name(view, first))
        if record is None or record.rows != rows:
            return None
        try:
            check_record(folder, content, record)
        except CacheError:
            return None
        return record

    return {record.name: record for record in store.spread(folder, kept, shards) if record is not None}


def clear_the_way(folder: Location) -> None:
    """Delete folders that lie where a file of the cache belongs. Raises ``RunError``."""
    if not isinstance(folder, Path):
        return
    try:
        own = [path for name in (SHARDS, RECORDS) for path in (folder / name).glob("*")]
        for path in (folder / MANIFEST, folder / SUCCESS, folder / ERRORS, *own):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
    except OSError as error:
        raise RunError(f"{folder}: cannot be repaired: {error}") from error


def begin(folder: Location, content: Content) -> None:
    """Mark the cache as unfinished; its manifest then tells what is being built. Raises ``RunError``."""
    (folder / SUCCESS).unlink(missing_ok=True)
    write_part(folder / MANIFEST, _manifest(content, ()))


def finish(folder: Location, content: Content, done: Mapping[str, ShardRecord]) -> Manifest:
    """Write the manifest and then the mark of success, unless the right ones are there. Raises ``RunError``."""
    shards = tuple(done[shard_name(view, first)] for view, first, _ in content.shards())
    try:
        manifest = read_manifest(folder)
        check_success(folder)
        if manifest.content == content and manifest.shards == shards:
            return manifest
    except CacheError:
        pass
    manifest = _manifest(content, shards)
    write_part(folder / MANIFEST, manifest)
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    store.write(folder / SUCCESS, digest.encode())
    return manifest


def write_errors(folder: Location, skipped: Sequence[Skipped]) -> None:
    """List the images that could not be decoded, in the order of the data set. Raises ``RunError``."""
    path = folder / ERRORS
    if not skipped:
        path.unlink(missing_ok=True)  # of a build before the images were mended
        return
    columns = {
        "sample_id": pa.array([image.id for image in skipped], pa.int64()),
        "path": pa.array([image.path for image in skipped], pa.string()),
        "reason": pa.array([image.reason for image in skipped], pa.string()),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    store.write(path, sink.getvalue().to_pybytes())


def _manifest(content: Content, shards: tuple[ShardRecord, ...]) -> Manifest:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    versions = library_versions()
    return Manifest(key=content.key, content=content, versions=versions, created=created, shards=shards)
