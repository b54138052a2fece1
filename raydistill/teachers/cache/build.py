"""Building a teacher cache with Ray: every missing shard goes once through an actor that holds the teacher.

A shard is a fixed range of positions of one view, so a retry, a resumed build or a second builder writes the same
file. Ray is started only when something is missing.
"""

from __future__ import annotations

import inspect
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.data.datasets import load_train
from raydistill.errors import ConfigError, InputError, RaydistillError, RunError, WeightsError, named_error
from raydistill.files import make_folders
from raydistill.teachers.cache.commit import begin, finish, finished_shards, write_errors
from raydistill.teachers.cache.files import locked, remove_temporaries
from raydistill.teachers.cache.manifest import RECORDS, SHARDS, Content, ShardRecord
from raydistill.teachers.cache.request import requested
from raydistill.teachers.cache.shards import Place
from raydistill.teachers.network import NO_TEACHER, teacher_of

if TYPE_CHECKING:
    from raydistill.config import Experiment
    from raydistill.data.image_set import ImageSet

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

_CPUS_PER_ACTOR = 4
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
    folder = Path(experiment.cache.root) / content.folder_name
    make_folders(folder, folder / SHARDS, folder / RECORDS)
    with locked(folder):
        remove_temporaries(folder)
        done = finished_shards(folder, content)
        reused = sum(record.rows for record in done.values())
        build = _Build(experiment, images, content, folder, done, progress)
        try:
            build.fill()
        except InputError:
            if not done:  # what was given is wrong, so nothing may be left of the attempt
                shutil.rmtree(folder, ignore_errors=True)
            raise
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
    folder: Path
    done: dict[str, ShardRecord]
    progress: Progress
    forwards: int = 0

    def missing(self) -> list[Place]:
        """Shards that are still to be computed."""
        places = (Place(self.content.key, *shard) for shard in self.content.shards())
        return [place for place in places if place.name not in self.done]

    def fill(self) -> None:
        """Compute what is missing; raises as ``build_cache`` does."""
        self._tell()
        if self.missing():
            begin(self.folder, self.content)
        attempt = 0
        while missing := self.missing():
            attempt += 1
            try:
                for record in _computed(self, missing):
                    self.done[record.name] = record
                    self.forwards += record.forwards
                    self._tell()
            except _ActorsLostError as error:
                # Shards are idempotent: whatever killed an actor (memory, a lost node), go on with the rest.
                if attempt == _ATTEMPTS:
                    raise RunError(f"building {self.folder} failed {attempt} times: {error}") from error

    def _tell(self) -> None:
        rows = sum(record.rows for record in self.done.values())
        self.progress(rows, self.content.data.count * (self.content.views + 1))


def _computed(build: _Build, missing: Sequence[Place]) -> Iterator[ShardRecord]:
    """Send the shards through Ray Data's actors; yield their records as they are finished."""
    from raydistill.cluster import ensure_ray

    ensure_ray()
    import ray

    experiment, images = build.experiment, build.images
    assert experiment.teacher is not None
    pool = _pool(experiment, len(missing))
    job = {
        "content": build.content.model_dump_json(),
        "teacher": experiment.teacher.model_dump_json(),
        "folder": str(build.folder.resolve()),
        "weights": experiment.teacher.weights and str(Path(experiment.teacher.weights).resolve()),
        "num_classes": images.num_classes,
        "cpus": pool["num_cpus"],
        "gpu": bool(pool["num_gpus"]),
        "images": ray.put(images.images.cpu().numpy()),
        "ids": ray.put(images.ids.cpu().numpy()),
    }
    rows = [asdict(place) for place in missing]
    _quiet()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _ShardActor, fn_constructor_kwargs={"job": job}, batch_size=1, **pool, **_bounded()
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


def _quiet() -> None:
    """Leave Ray Data's messages to its log files."""
    import logging

    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if not hasattr(handler, "baseFilename") and "File" not in type(handler).__name__:
            handler.setLevel(logging.CRITICAL)


def _record(row: Mapping[str, Any]) -> ShardRecord:
    """Turn an actor's answer into a record, or into the error that it reports."""
    if row["error"]:
        raise named_error(row["error"], row["text"])
    return ShardRecord.model_validate_json(row["text"])


def _pool(experiment: Experiment, shards: int) -> dict[str, Any]:
    """Choose the number of actors and what each gets, from what Ray has.

    One actor with several threads comes up faster and holds one copy of the teacher; beyond a few threads
    small networks gain nothing, so more CPUs mean more actors.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    total, smallest = (pick(int(node["CPU"]) for node in nodes) for pick in (sum, min))
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    wanted, use_gpu = experiment.cache.actors, experiment.scale.use_gpu
    if use_gpu is True and not gpus:
        raise RunError("scale.use_gpu: true, but Ray has no GPU")
    on_gpu = bool(gpus) and use_gpu is not False
    most = gpus if on_gpu else total
    if wanted is not None and wanted > most:
        raise RunError(f"cache.actors = {wanted}, but Ray has {most} {'GPUs' if on_gpu else 'CPUs'}")
    if on_gpu:
        actors = min(wanted or gpus, shards)
        return _resources(actors, max(1, min(_CPUS_PER_ACTOR, smallest // max(1, gpus))), 1)
    if wanted is not None:
        return _resources(min(wanted, shards), max(1, min(smallest, total // wanted)), 0)
    cpus = min(smallest, max(_CPUS_PER_ACTOR, total // shards))
    return _resources(min(shards, sum(int(node["CPU"]) // cpus for node in nodes)), cpus, 0)


def _resources(actors: int, cpus: int, gpus: int) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    return {
        "compute": ActorPoolStrategy(size=actors),
        "num_cpus": cpus,
        "num_gpus": gpus,
    }


class _ShardActor:
    """Holds the teacher and computes shards; errors travel as rows, so that the driver raises them unchanged."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._source: Any = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        from raydistill.teachers.cache.compute import compute_shard

        place = Place(**{name: batch[name][0].item() for name in ("view", "first", "rows")}, key=str(batch["key"][0]))
        try:
            self._source = self._source or self._load()
            record = compute_shard(self._source, Path(self._job["folder"]), place)
        except RaydistillError as error:
            return {"error": [type(error).__name__], "text": [str(error)]}
        return {"error": [""], "text": [record.model_dump_json()]}

    def _load(self) -> Any:
        """Read the teacher's weights and map the images; in the constructor, Ray would retry what fails."""
        import ray
        import torch

        from raydistill.config import TeacherConfig
        from raydistill.models.weights import weights_fingerprint
        from raydistill.teachers.cache.compute import Source
        from raydistill.teachers.network import load_teacher

        job = self._job
        torch.set_num_threads(int(job["cpus"]))
        content = Content.model_validate_json(job["content"])
        config = TeacherConfig.model_validate_json(job["teacher"]).model_copy(update={"weights": job["weights"]})
        channels = content.preprocessing.image_shape[0]
        device = torch.device("cuda" if job["gpu"] else "cpu")
        network = load_teacher(config, num_classes=job["num_classes"], in_channels=channels)
        if weights_fingerprint(network) != content.teacher.weights:
            raise WeightsError(
                f"teacher.model = {config.model}: it has other weights in each process; a function must load its "
                f"weights, or teacher.weights name them"
            )
        network = network.to(device)
        images, ids = ray.get([job["images"], job["ids"]])
        return Source(content, images, ids, network, config.batch_size, device)
