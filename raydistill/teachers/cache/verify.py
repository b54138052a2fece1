"""Looking for damage: every fault names the shard that has it, and a rebuild computes only that one again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from raydistill.errors import CacheError
from raydistill.progress import Progress, unwatched
from raydistill.teachers.cache import store
from raydistill.teachers.cache.codec import Array
from raydistill.teachers.cache.manifest import (
    REPAIR,
    Manifest,
    ShardRecord,
    check_links,
    check_success,
    read_manifest,
    read_record,
    record_path,
    shard_path,
)
from raydistill.teachers.cache.remote import Location
from raydistill.teachers.cache.shards import (
    SAMPLE_ID,
    VIEW_ID,
    check_footer,
    check_record,
    damaged,
    ids_sha256,
    read_columns,
    read_outputs,
)


def verify(path: str | Location, full: bool = False, *, progress: Progress = unwatched) -> list[str]:
    """Check a cache and return one line for each fault, none for a sound cache.

    Quick: manifest, sizes, row counts and keys. Full: also the sha256 of every shard, the records, that ids are
    complete and unique, and that every value is finite.

    Raises:
        StorageError: if a remote cache's storage cannot be reached.
    """
    folder = store.location(path)
    try:
        manifest = read_manifest(folder)
    except CacheError as error:
        return [str(error)]
    problems = _guarded(lambda: check_success(folder)) + _guarded(lambda: check_links(folder))
    ids: dict[int, list[Array]] = {}
    checked = store.spread(
        folder,
        lambda record: _check_shard(folder, manifest, record, full),
        manifest.shards,
        lambda share, counted: progress(share, f"{counted} shards"),
    )
    for record, (found, keys) in zip(manifest.shards, checked, strict=True):
        problems += found
        ids.setdefault(record.view, []).append(keys)
    if full and not problems:
        problems += _check_ids(folder, manifest, ids)
    return problems


def _check_shard(folder: Location, manifest: Manifest, record: ShardRecord, full: bool) -> tuple[list[str], Array]:
    """Return the faults of one shard and its ids."""
    path = shard_path(folder, record.name)
    ids = np.empty(0, dtype=np.int64)
    problems = _guarded(lambda: check_footer(folder, manifest.content, record))
    if problems:
        return problems, ids
    if full:
        problems = _guarded(lambda: check_record(folder, manifest.content, record))
        if read_record(folder, record.name) != record:
            beside = record_path(folder, record.name)
            problems.append(f"{beside}: not what the manifest says of its shard; repair it with `{REPAIR}`")
    try:
        keys = read_columns(folder, record, [SAMPLE_ID, VIEW_ID])
        ids = keys.column(SAMPLE_ID).to_numpy()
        if ids_sha256(ids) != record.ids or (keys.column(VIEW_ID).to_numpy() != record.view).any():
            problems.append(str(damaged(path, "its keys are not those of the manifest")))
        if full and not problems:
            problems += _check_values(folder, manifest, record)
    except CacheError as error:
        problems = problems or [str(error)]
    return problems, ids


def _check_values(folder: Location, manifest: Manifest, record: ShardRecord) -> list[str]:
    names = list(manifest.content.teacher.outputs)
    stored = read_outputs(folder, manifest.content, record, names)
    path = shard_path(folder, record.name)
    return [
        str(damaged(path, f"output '{name}' holds NaN or infinity"))
        for name, values in stored.items()
        if not np.isfinite(values).all()
    ]


def _check_ids(folder: Location, manifest: Manifest, ids: dict[int, list[Array]]) -> list[str]:
    """Every view holds every image once, in the order of the data set."""
    problems = []
    if not manifest.shards:
        problems.append(f"{folder}: it holds no shard; finish it with `{REPAIR}`")
    for view, parts in ids.items():
        whole = np.concatenate(parts)
        if ids_sha256(whole) != manifest.content.data.ids or len(np.unique(whole)) != manifest.content.data.count:
            problems.append(f"{folder}: view {view} does not hold every image once; repair it with `{REPAIR}`")
    return problems


def _guarded(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except CacheError as error:
        return [str(error)]
    return []
