"""Looking for damage: every fault names the shard that has it, and a rebuild computes only that one again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raydistill.errors import CacheError
from raydistill.teachers.cache.codec import Array
from raydistill.teachers.cache.files import file_sha256
from raydistill.teachers.cache.manifest import (
    REPAIR,
    Manifest,
    ShardRecord,
    check_success,
    read_manifest,
    shard_path,
)
from raydistill.teachers.cache.shards import (
    SAMPLE_ID,
    VIEW_ID,
    check_footer,
    damaged,
    ids_sha256,
    read_columns,
    read_outputs,
)

if TYPE_CHECKING:
    import torch

    from raydistill.data.image_set import ImageSet
    from raydistill.models.taps import Tapped
    from raydistill.teachers.cache.read import TeacherCache


@dataclass(frozen=True)
class SpotCheck:
    """How far recomputed rows are from the stored ones, over all outputs; cosines are between whole rows."""

    rows: int
    max_difference: float
    min_cosine: float


def verify(path: str | Path, full: bool = False) -> list[str]:
    """Check a cache and return one line for each fault, none for a sound cache.

    Quick: manifest, sizes, row counts and keys. Full: also the sha256 of every shard, that ids are complete and
    unique, and that every value is finite.
    """
    folder = Path(path)
    try:
        manifest = read_manifest(folder)
    except CacheError as error:
        return [str(error)]
    problems = _guarded(lambda: check_success(folder))
    ids: dict[int, list[Array]] = {}
    for record in manifest.shards:
        found, keys = _check_shard(folder, manifest, record, full)
        problems += found
        ids.setdefault(record.view, []).append(keys)
    if full and not problems:
        problems += _check_ids(folder, manifest, ids)
    return problems


def spot_check(cache: TeacherCache, teacher: Tapped, images: ImageSet, rows: int = 64, seed: int = 0) -> SpotCheck:
    """Recompute random rows with the teacher, on its own device, and compare; ``images`` are what the teacher sees.

    Raises:
        CacheError: if the images hold none of the cache's rows, or a shard is damaged.
    """
    import torch

    from raydistill.teachers.cache.compute import Source, teacher_rows

    generator = np.random.default_rng(seed)
    positions = np.sort(generator.choice(len(images), size=min(rows, len(images)), replace=False))
    views = generator.integers(0, len(cache.views), size=len(positions))
    device = next(teacher.parameters(), torch.empty(0)).device
    all_ids = images.ids.cpu().numpy()
    source = Source(cache.manifest.content, images.images.cpu().numpy(), all_ids, teacher, rows, device)
    largest, smallest = 0.0, 1.0
    for view in np.unique(views):
        chosen = positions[views == view]
        stored = cache.read(all_ids[chosen], view=int(view))
        for name, values in teacher_rows(source, chosen, int(view)).items():
            difference, cosine = _compare(stored[name], torch.from_numpy(values))
            largest, smallest = max(largest, difference), min(smallest, cosine)
    return SpotCheck(len(positions), largest, smallest)


def _compare(stored: torch.Tensor, computed: torch.Tensor) -> tuple[float, float]:
    """Return the largest difference and the smallest cosine of rows [B, ...]; two zero rows are alike."""
    left, right = stored.flatten(1).double(), computed.flatten(1).double()
    dots, norms = (left * right).sum(1), left.norm(dim=1) * right.norm(dim=1)
    alike = (left == right).all(dim=1)
    cosine = (dots / norms.clamp_min(1e-300)).masked_fill(alike, 1.0)
    return float((left - right).abs().max()), float(cosine.min())


def _check_shard(folder: Path, manifest: Manifest, record: ShardRecord, full: bool) -> tuple[list[str], Array]:
    """Return the faults of one shard and its ids."""
    path = shard_path(folder, record.name)
    ids = np.empty(0, dtype=np.int64)
    problems = _guarded(lambda: check_footer(folder, manifest.content, record))
    if problems:
        return problems, ids
    if full and file_sha256(path) != record.sha256:
        problems.append(str(damaged(path, "its sha256 is not the recorded one")))
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


def _check_values(folder: Path, manifest: Manifest, record: ShardRecord) -> list[str]:
    names = list(manifest.content.teacher.outputs)
    stored = read_outputs(folder, manifest.content, record, names)
    path = shard_path(folder, record.name)
    return [
        str(damaged(path, f"output '{name}' holds NaN or infinity"))
        for name, values in stored.items()
        if not np.isfinite(values).all()
    ]


def _check_ids(folder: Path, manifest: Manifest, ids: dict[int, list[Array]]) -> list[str]:
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
