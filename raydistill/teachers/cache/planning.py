"""What a cache would cost and whom it could not serve, said before anything is computed."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from raydistill.measures import VALIDATION
from raydistill.models.taps import EMBEDDING
from raydistill.progress import Progress, part, unwatched
from raydistill.teachers.cache import store
from raydistill.teachers.cache.manifest import Content, read_record, shard_name
from raydistill.teachers.cache.pool import Pool, choose_pool
from raydistill.teachers.cache.remote import Location
from raydistill.teachers.cache.request import needing_every_logit, partners_of, requested
from raydistill.teachers.cache.shards import row_bytes

if TYPE_CHECKING:
    from raydistill.config import Experiment
    from raydistill.data.image_set import ImageSet
    from raydistill.models.taps import Tapped

_TIMED_IMAGES = 100
_TIMED_SECONDS = 5.0  # processors of clouds are slower for seconds at a time
_RAY_STARTS_S = 6.0
_ACTOR_STARTS_S = 7.0
"""Both as measured on two idle cores, most of it imports; ``experiments/benchmarks/plan.py`` compares."""


@dataclass(frozen=True)
class Plan:
    """What a build would cost on this machine, or on the Ray that this process has joined.

    ``seconds`` is for all rows and includes ``startup_seconds``, in which no image is computed; ``missing_rows`` says
    how many rows there are not yet. ``break_even_epochs`` counts the epochs of training for which a live teacher would
    be at work as long as the whole build takes. Sizes are those before compression. ``uncacheable`` lists
    ``label: reason`` for each method that the cache could not serve. ``ensemble`` tells of the caches of the teachers
    beside the first.
    """

    path: str
    rows: int
    missing_rows: int
    views: int
    bytes_per_row: int
    bytes: int
    seconds: float
    startup_seconds: float
    images_per_s: float
    break_even_epochs: float
    uncacheable: tuple[str, ...]
    ensemble: tuple[Plan, ...] = ()


def plan(experiment: Experiment, *, progress: Progress = unwatched) -> Plan:
    """Say what a build would cost, after running the teacher on about a hundred images.

    Raises:
        InputError: where data, teacher or outputs do not fit.
        RunError: where Ray would have no room for the actors that are asked for.
    """
    from raydistill.data.datasets import load_train
    from raydistill.teachers.network import teacher_of

    if experiment.ensemble:
        count = len(experiment.teachers)
        first, *others = [
            plan(experiment.for_teacher(number), progress=part(progress, number / count, (number + 1) / count))
            for number in range(count)
        ]
        return replace(first, ensemble=tuple(others))
    progress(0.0, "reading the images")
    images = load_train(experiment.data.of_teacher)
    progress(0.2, "loading the teacher")
    started = time.monotonic()
    network = teacher_of(experiment, images)
    loading = time.monotonic() - started
    content = requested(experiment, images, network)
    folder = store.location(experiment.cache.root) / content.folder_name
    rows = len(images) * (content.views + 1)
    pool = choose_pool(experiment, len(list(content.shards())), _nodes())
    timed = part(progress, 0.3, 1.0)
    per_image = _seconds_per_image(experiment, content, images, network, pool, progress=timed) / pool.most
    startup = _startup_seconds() + 2 * loading  # by the process that builds, then by its actors
    live_epoch = len(images) * (1.0 - experiment.data.validation) * max(1, len(experiment.needs.teacher)) * per_image
    return Plan(
        path=str(folder),
        rows=rows,
        missing_rows=rows - _recorded_rows(folder, content),
        views=content.views + 1,
        bytes_per_row=row_bytes(content),
        bytes=row_bytes(content) * rows,
        seconds=startup + per_image * rows,
        startup_seconds=startup,
        images_per_s=1.0 / per_image,
        break_even_epochs=(startup + per_image * rows) / live_epoch,
        uncacheable=_uncacheable(experiment, network, images, rows),
    )


def _nodes() -> list[dict[str, float]]:
    """Return what Ray's nodes have, or this machine alone where Ray was not started."""
    import ray
    import torch

    if ray.is_initialized():
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]


def _startup_seconds() -> float:
    import ray

    return _ACTOR_STARTS_S + (0.0 if ray.is_initialized() else _RAY_STARTS_S)


def _seconds_per_image(
    experiment: Experiment, content: Content, images: ImageSet, network: Tapped, pool: Pool, *, progress: Progress
) -> float:
    """Time one actor's work on the last view: median over batches, after one that pays for what is set up once."""
    import torch

    from raydistill.teachers.cache.compute import Source, teacher_rows

    assert experiment.teacher is not None
    device = torch.device("cuda" if pool.gpus and torch.cuda.is_available() else "cpu")
    size = min(experiment.teacher.batch_size, len(images))
    source = Source(content, images, network.to(device), size, device, partners_of(content, images))
    threads = torch.get_num_threads()
    torch.set_num_threads(min(pool.cpus, threads))
    try:
        positions = np.arange(size)
        teacher_rows(source, positions, content.views)
        times: list[float] = []
        while (share := min(len(times) * size / _TIMED_IMAGES, sum(times) / _TIMED_SECONDS)) < 1.0:
            progress(share, "timing the teacher")
            positions = (positions + size) % len(images)
            started = time.monotonic()
            teacher_rows(source, positions, content.views)
            times.append(time.monotonic() - started)
    finally:
        torch.set_num_threads(threads)
    return float(np.median(times)) / size


def _recorded_rows(folder: Location, content: Content) -> int:
    names = [shard_name(view, first) for view, first, _ in content.shards()]
    records = store.spread(folder, lambda name: read_record(folder, name), names)
    return sum(record.rows for record in records if record is not None)


def _uncacheable(experiment: Experiment, network: Tapped, images: ImageSet, rows: int) -> tuple[str, ...]:
    """Return ``label: reason`` for what methods and measures want and the cache would not hold."""
    from raydistill.teachers.source import wrong_views

    shapes = network.shapes(images.shape)
    found: list[str] = []

    def ask(label: str, wanted: set[str]) -> None:
        for name in sorted(wanted - set(experiment.cache.outputs)):
            found.append(f"{label}: {name} is not in cache.outputs; {_cost(experiment, shapes.get(name), rows)}")

    for label, method in experiment.methods.items():
        ask(label, {name for names in method.needs().teacher.values() for name in names})
        if objection := wrong_views(method.needs(), experiment.cache.views):
            found.append(f"{label}: {objection}")
    for measure in experiment.agreement:
        ask(f"{VALIDATION}{measure}", {EMBEDDING})
    return (*found, *needing_every_logit(experiment))


def _cost(experiment: Experiment, shape: tuple[int, ...] | None, rows: int) -> str:
    if shape is None:
        return "the teacher has no such output"
    size = math.prod(shape) * {"float16": 2, "float32": 4, "int8": 1}[experiment.cache.dtype]
    return f"it would add {size} bytes a row, {size * rows / 2**20:,.1f} MiB in all; or set teacher.source=live"
