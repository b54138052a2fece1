"""From finished shards to a finished cache: what can be kept, the manifest, and the mark of success."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.errors import CacheError
from raydistill.files import write_atomically
from raydistill.teachers.cache.files import file_sha256
from raydistill.teachers.cache.manifest import (
    ERRORS,
    MANIFEST,
    SUCCESS,
    Content,
    Manifest,
    ShardRecord,
    check_success,
    library_versions,
    read_manifest,
    read_record,
    shard_name,
    shard_path,
    write_part,
)

if TYPE_CHECKING:
    from raydistill.data.image_set import Skipped


def finished_shards(folder: Path, content: Content) -> dict[str, ShardRecord]:
    """Return the records, by name, of shards to keep: their file has the recorded size and hash."""
    kept = {}
    for view, first, rows in content.shards():
        record = read_record(folder, shard_name(view, first))
        if record is not None and record.rows == rows and _intact(shard_path(folder, record.name), record):
            kept[record.name] = record
    return kept


def begin(folder: Path, content: Content) -> None:
    """Mark the cache as unfinished; its manifest then tells what is being built. Raises ``RunError``."""
    (folder / SUCCESS).unlink(missing_ok=True)
    write_part(folder / MANIFEST, _manifest(content, ()))


def finish(folder: Path, content: Content, done: Mapping[str, ShardRecord]) -> Manifest:
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
    write_atomically(folder / SUCCESS, digest.encode())
    return manifest


def write_errors(folder: Path, skipped: Sequence[Skipped]) -> None:
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
    write_atomically(path, sink.getvalue().to_pybytes())


def _intact(path: Path, record: ShardRecord) -> bool:
    # A second for a gigabyte; without the hash, the repair that errors recommend would keep a flipped bit.
    try:
        return path.stat().st_size == record.bytes and file_sha256(path) == record.sha256
    except OSError:
        return False


def _manifest(content: Content, shards: tuple[ShardRecord, ...]) -> Manifest:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    versions = library_versions()
    return Manifest(key=content.key, content=content, versions=versions, created=created, shards=shards)
