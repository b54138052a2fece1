"""Looking at caches from outside: list, plan, export, remove."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.errors import CacheError, ConfigError, RunError
from raydistill.files import TEMPORARY
from raydistill.teachers.cache.codec import Array, columns_of
from raydistill.teachers.cache.files import locked
from raydistill.teachers.cache.manifest import (
    MANIFEST,
    SHARDS,
    SUCCESS,
    Content,
    Manifest,
    read_manifest,
    read_record,
)
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.request import cache_folders, needing_every_logit, requested
from raydistill.teachers.cache.shards import SAMPLE_ID, VIEW_ID, plain_columns, read_columns, row_bytes

if TYPE_CHECKING:
    from raydistill.config import Experiment
    from raydistill.data.image_set import ImageSet
    from raydistill.models.taps import Tapped

_TIMED_IMAGES = 100


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


@dataclass(frozen=True)
class Plan:
    """What a build would cost; times are those of one process here.

    ``seconds`` is for all rows, ``missing_rows`` says how many of them there are not yet. ``break_even_epochs``
    counts the epochs that a live teacher would need as long for as for the whole build. ``uncacheable`` lists
    ``label: output`` for what methods want and the cache would not hold, and ``label: reason`` for those that
    ``cache.top_k`` shuts out. Sizes are those before compression. ``ensemble`` tells of the caches of the teachers
    beside the first.
    """

    path: str
    rows: int
    missing_rows: int
    views: int
    bytes_per_row: int
    bytes: int
    seconds: float
    break_even_epochs: float
    uncacheable: tuple[str, ...]
    ensemble: tuple[Plan, ...] = ()


def list_caches(root: str | Path = "cache") -> list[Listed]:
    """Return the caches below a root; folders whose manifest is damaged are left to ``verify``."""
    found = []
    for folder in cache_folders(Path(root)):
        try:
            found.append(_listed(folder, read_manifest(folder)))
        except CacheError:
            continue
    return found


def _listed(folder: Path, manifest: Manifest) -> Listed:
    content = manifest.content
    return Listed(
        path=str(folder),
        model=content.teacher.model,
        outputs=tuple(content.teacher.outputs),
        images=content.data.count,
        views=content.views + 1,
        dtype=content.dtype,
        rows=manifest.rows,
        bytes=sum(path.stat().st_size for path in (folder / SHARDS).glob("*.parquet")),
        created=manifest.created,
        finished=(folder / SUCCESS).is_file(),
    )


def plan(experiment: Experiment) -> Plan:
    """Say what a build would cost, after running the teacher on about a hundred images.

    Raises:
        InputError: where data, teacher or outputs do not fit.
    """
    from raydistill.data.datasets import load_train
    from raydistill.teachers.network import teacher_of

    if experiment.ensemble:
        first, *others = [plan(experiment.for_teacher(number)) for number in range(len(experiment.teachers))]
        return replace(first, ensemble=tuple(others))
    images = load_train(experiment.data.of_teacher)
    network = teacher_of(experiment, images)
    content = requested(experiment, images, network)
    folder = Path(experiment.cache.root) / content.folder_name
    rows = len(images) * (content.views + 1)
    per_image = _seconds_per_image(content, images, network, experiment.teacher.batch_size if experiment.teacher else 1)
    teacher_views = max(1, len(experiment.needs.teacher))
    trained = len(images) * (1.0 - experiment.data.validation)
    return Plan(
        path=str(folder),
        rows=rows,
        missing_rows=rows - _recorded_rows(folder, content),
        views=content.views + 1,
        bytes_per_row=row_bytes(content),
        bytes=row_bytes(content) * rows,
        seconds=per_image * rows,
        break_even_epochs=rows / (trained * teacher_views),
        uncacheable=_uncacheable(experiment),
    )


def _uncacheable(experiment: Experiment) -> tuple[str, ...]:
    lacking = tuple(
        f"{label}: {name}"
        for label, method in experiment.methods.items()
        for name in sorted({name for names in method.needs().teacher.values() for name in names})
        if name not in experiment.cache.outputs
    )
    return lacking + needing_every_logit(experiment)


def _recorded_rows(folder: Path, content: Content) -> int:
    from raydistill.teachers.cache.manifest import shard_name

    records = (read_record(folder, shard_name(view, first)) for view, first, _ in content.shards())
    return sum(record.rows for record in records if record is not None)


def _seconds_per_image(content: Content, images: ImageSet, network: Tapped, batch_size: int) -> float:
    """Time the teacher on the last view, after one small batch that pays for what is set up once."""
    import torch

    from raydistill.teachers.cache.compute import Source, teacher_rows

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = Source(content, images.images.numpy(), images.ids.numpy(), network.to(device), batch_size, device)
    positions = np.arange(min(_TIMED_IMAGES, len(images)))
    teacher_rows(source, positions[:8], content.views)
    started = time.monotonic()
    for start in range(0, len(positions), batch_size):
        teacher_rows(source, positions[start : start + batch_size], content.views)
    return (time.monotonic() - started) / len(positions)


def export(path: str | Path, out: str | Path) -> Path:
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
            writers[target.suffix](cache, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _export_parquet(cache: TeacherCache, target: Path) -> None:
    shapes = cache.manifest.content.teacher.outputs
    writer: pq.ParquetWriter | None = None
    try:
        for record in cache.manifest.shards:
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


def _export_npz(cache: TeacherCache, target: Path) -> None:
    with target.open("wb") as file:
        np.savez(file, **_whole(cache))  # type: ignore[arg-type]


def _export_torch(cache: TeacherCache, target: Path) -> None:
    import torch

    torch.save({name: torch.from_numpy(values) for name, values in _whole(cache).items()}, target)


def _whole(cache: TeacherCache) -> dict[str, Array]:
    """Return keys and outputs of all rows."""
    content = cache.manifest.content
    columns = [SAMPLE_ID, VIEW_ID, *columns_of(content, cache.outputs)]
    parts = [plain_columns(content, read_columns(cache.path, record, columns)) for record in cache.manifest.shards]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def remove(path: str | Path) -> None:
    """Delete a cache.

    Raises:
        CacheError: if the folder is none, or a build is at work in it.
        RunError: if the system refuses.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file() or not (folder / SHARDS).is_dir() or folder.is_symlink():
        raise CacheError(f"{folder}: not a teacher cache, so nothing was deleted")
    with locked(folder, wait=False) as mine:
        if not mine:
            raise CacheError(f"{folder}: a build is at work in it, so nothing was deleted")
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise RunError(f"cannot delete {folder}: {error.strerror or error}") from error
