"""Building a teacher cache with Ray: every missing shard goes once through an actor that holds the teacher.

A shard is a fixed range of positions of one view, so a retry, a resumed build or a second builder writes the same
file. Ray is started only when something is missing.
"""

from __future__ import annotations

import inspect
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.data.datasets import load_train
from raydistill.errors import (
    ConfigError,
    InputError,
    RaydistillError,
    RunError,
    StorageError,
    named_error,
)
from raydistill.teachers.cache import store
from raydistill.teachers.cache.actors import ShardActor
from raydistill.teachers.cache.commit import begin, clear_the_way, finish, finished_shards, write_errors
from raydistill.teachers.cache.counting import counted
from raydistill.teachers.cache.files import locked, remove_temporaries
from raydistill.teachers.cache.manifest import RECORDS, SHARDS, Content, ShardRecord, check_links
from raydistill.teachers.cache.pool import Pool, choose_pool, least_pool
from raydistill.teachers.cache.remote import Location
from raydistill.teachers.cache.request import partners_of, requested
from raydistill.teachers.cache.shards import Place
from raydistill.teachers.network import NO_TEACHER, teacher_of

if TYPE_CHECKING:
    from raydistill.config import Experiment
    from raydistill.data.image_set import ImageSet

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

_ATTEMPTS = 3


class _ActorsLostError(Exception):
    """Ray could not go on, for a reason that is not one of ours."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did; ``rows`` counts images times ``views``, the evaluation view included.

    ``forwards`` is the number of images that went through the teacher, ``skipped_images`` of those that could not be
    decoded: ``errors.parquet`` in the cache names them, with the reasons. ``ensemble`` tells of the caches of the
    teachers beside the first.
    """

    path: str
    rows: int
    views: int
    computed_rows: int
    reused_rows: int
    seconds: float
    bytes_per_row: float
    forwards: int
    skipped_images: int = 0
    ensemble: tuple[BuildReport, ...] = ()


def build_cache(experiment: Experiment, *, progress: Progress | None = None) -> BuildReport:
    """Compute what is missing of the caches of the experiment's teachers and finish them.

    Raises:
        InputError: if data, teacher or outputs do not fit; nothing is written then.
        CacheError: if outputs can't be stored, as too large for float16.
        StorageError: if a remote ``cache.root`` cannot be reached, does not exist or refuses.
        RunError: if the disk refuses or Ray's actors fail.
    """
    if experiment.teacher is None:
        raise ConfigError(NO_TEACHER)
    numbers = range(len(experiment.teachers))
    first, *others = [_build_one(experiment.for_teacher(number), progress or _silent) for number in numbers]
    return replace(first, ensemble=tuple(others))


def _build_one(experiment: Experiment, progress: Progress) -> BuildReport:
    started = time.monotonic()
    images = load_train(experiment.data.of_teacher)
    content = requested(experiment, images, teacher_of(experiment, images))
    folder = store.location(experiment.cache.root) / content.folder_name
    check_links(folder)
    store.prepare(folder, folder / SHARDS, folder / RECORDS)
    with locked(folder):
        remove_temporaries(folder)
        clear_the_way(folder)
        done = finished_shards(folder, content, content.shards())
        reused = sum(record.rows for record in done.values())
        build = _Build(experiment, images, content, folder, done, progress)
        try:
            build.fill()
        except InputError:
            if not done:  # what was given is wrong, so nothing may be left of the attempt
                with suppress(OSError, StorageError):
                    store.remove_folder(folder)
            raise
        remove_temporaries(folder)  # of actors that were lost meanwhile, or outlived an earlier build
        write_errors(folder, images.skipped)
        manifest = finish(folder, content, done)
    return BuildReport(
        path=str(folder),
        rows=manifest.rows,
        views=content.views + 1,
        computed_rows=manifest.rows - reused,
        reused_rows=reused,
        seconds=time.monotonic() - started,
        bytes_per_row=sum(record.bytes for record in manifest.shards) / manifest.rows,
        forwards=build.forwards,
        skipped_images=len(images.skipped),
    )


def _silent(done: int, total: int) -> None:
    del done, total


@dataclass
class _Build:
    """A build under its lock; ``done`` gains the records of finished shards."""

    experiment: Experiment
    images: ImageSet
    content: Content
    folder: Location
    done: dict[str, ShardRecord]
    progress: Progress
    forwards: int = 0
    _told: int = 0
    _base: int = 0
    _telling: threading.Lock = field(default_factory=threading.Lock)

    def missing(self) -> list[Place]:
        """Shards that are still to be computed."""
        places = (Place(self.content.key, *shard) for shard in self.content.shards())
        return [place for place in places if place.name not in self.done]

    def fill(self) -> None:
        """Compute what is missing; raises as ``build_cache`` does."""
        self.tell()
        if self.missing():
            begin(self.folder, self.content)
        attempt = 0
        while missing := self.missing():
            attempt += 1
            self._base = self._finished()
            try:
                for record in _computed(self, missing):
                    self._add(record)
            except _ActorsLostError as error:
                # Shards are idempotent: whatever killed an actor (memory, a lost node), go on with the rest.
                if attempt == _ATTEMPTS:
                    raise RunError(f"building {self.folder} failed {attempt} times: {error}") from error
                self._find_untold()

    def tell(self, computed: int = 0) -> None:
        """Report rows: those of finished shards, and what the actors have ``computed`` in this attempt beyond them.

        What is told never falls, though rows of lost actors are computed again.
        """
        total = self.content.data.count * (self.content.views + 1)
        with self._telling:
            self._told = min(total, max(self._told, self._finished(), self._base + computed))
            self.progress(self._told, total)

    def _add(self, record: ShardRecord) -> None:
        self.done[record.name] = record
        self.forwards += record.forwards
        self.tell()

    def _find_untold(self) -> None:
        """Take up the shards that actors had finished when they were lost, before they could say so."""
        shards = [(place.view, place.first, place.rows) for place in self.missing()]
        for record in finished_shards(self.folder, self.content, shards).values():
            self._add(record)

    def _finished(self) -> int:
        return sum(record.rows for record in tuple(self.done.values()))


def _computed(build: _Build, missing: Sequence[Place]) -> Iterator[ShardRecord]:
    """Send the shards through Ray Data's actors; yield their records as they are finished."""
    from raydistill.cluster import await_room, ensure_ray, most_resources

    ensure_ray()
    import ray

    from raydistill.data.shared import to_parts
    from raydistill.reachable import require_reachable

    experiment, images = build.experiment, build.images
    await_room(*least_pool(experiment, most_resources()))
    require_reachable(experiment, {"cache.root": experiment.cache.root})
    assert experiment.teacher is not None
    pool = _pool(build, len(missing))
    job = {
        "content": build.content.model_dump_json(),
        "teacher": experiment.teacher.model_dump_json(),
        "folder": str(build.folder.resolve()),
        "weights": experiment.teacher.weights and str(Path(experiment.teacher.weights).resolve()),
        "num_classes": images.num_classes,
        "cpus": pool.cpus,
        "gpu": bool(pool.gpus),
        "images": ray.put(to_parts(images)),
        "partners": ray.put(partners_of(build.content, images)),
    }
    with counted(build.tell) as counter:
        yield from _records(missing, {**job, "counter": counter}, pool)


def _records(missing: Sequence[Place], job: dict[str, Any], pool: Pool) -> Iterator[ShardRecord]:
    import ray

    from raydistill.cluster import quiet_data

    rows = [asdict(place) for place in missing]
    quiet_data()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ShardActor, fn_constructor_kwargs={"job": job}, batch_size=1, **_resources(pool), **_bounded()
        )
    try:
        for row in data.iter_rows():
            yield _record(row)
    except RaydistillError:
        raise
    except Exception as error:  # Ray raises many kinds; each means that an actor could not go on
        reason = str(error).strip().splitlines()[-1:]
        raise _ActorsLostError(f"{type(error).__name__}: {''.join(reason)}") from error


def _bounded() -> dict[str, Any]:
    """Keep Ray from restarting and retrying for ever, its default; the driver retries a few times.

    Ray announces the removal of this option without another in its place; then its default holds.
    """
    import ray

    if "ray_remote_args_fn" not in inspect.signature(ray.data.Dataset.map_batches).parameters:
        return {}
    return {"ray_remote_args_fn": lambda: {"max_restarts": 0, "max_task_retries": 0}}


def _record(row: Mapping[str, Any]) -> ShardRecord:
    """Turn an actor's answer into a record, or into the error that it reports."""
    if row["error"]:
        raise named_error(row["error"], row["text"])
    return ShardRecord.model_validate_json(row["text"])


def _pool(build: _Build, shards: int) -> Pool:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return choose_pool(build.experiment, shards, nodes)


def _resources(pool: Pool) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    if pool.least == pool.most:
        strategy = ActorPoolStrategy(size=pool.most)
    else:
        strategy = ActorPoolStrategy(min_size=pool.least, max_size=pool.most)
    return {"compute": strategy, "num_cpus": pool.cpus, "num_gpus": pool.gpus}
