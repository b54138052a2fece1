"""What more workers, bytes and images cost on one machine, whose cores they share: overheads, not a speed-up.

    python experiments/benchmarks/scaling.py [rates] [collectives] [startup] [build] [reading] [decoding] [--rounds 5]

rates: steps of one worker with one core and with both, and of two workers with one core each, in turns in one run.
collectives: an all-reduce and an all-gather of two processes over gloo on loopback, by bytes.
startup: a call of raydistill.train until its first step, with 1, 2 and 3 workers, on a Ray that runs, in turns.
build: a cache of 512 numbers for each of n made-up images, by n.
reading: rows of a cache for batches of random images, from memory and from the disk's page cache, in one process.
decoding: made-up JPEGs of 500 x 375 to 224 x 224, on one core.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from raydistill.config import Experiment, parse_experiment
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.training.assembly import assemble
from raydistill.training.material import prepare
from raydistill.training.session import Session
from raydistill.training.step import descend

RANKS = 2
IMAGES, SIDE, CLASSES, BATCH, STEPS = 2048, 32, 100, 128, 6
SIZES = [4 * 4**exponent for exponent in range(5, 13)]
BUILT = (125_000, 250_000, 500_000)
WORKERS = (1, 2, 3)
ROWS = 1 << 18
DECODED = 40


def experiment_of(folder: Path, workers: int, **sections: Any) -> Experiment:
    """A student on images of 32 pixels; the teacher is small, so that it is not what is measured."""
    data = {
        "name": "synthetic",
        "synthetic_size": IMAGES,
        "synthetic_classes": CLASSES,
        "synthetic_image_size": SIDE,
        "validation": 0.1,
    }
    values: dict[str, Any] = {
        "name": f"scaling-{workers}",
        "output": str(folder),
        "data": data,
        "student": {"model": "resnet20"},
        "teacher": {"model": "resnet8", "weights": str(folder / "teacher.safetensors"), "source": "live"},
        "methods": {"ce": {}, "kd": {}},
        "train": {"epochs": 1, "batch_size": BATCH},
        "scale": {"workers": workers},
    }
    return parse_experiment(values | sections)


def save_teacher(folder: Path) -> None:
    save_weights(build_model("resnet8", CLASSES), folder / "teacher.safetensors")


# --- rates ------------------------------------------------------------------------------------------------------------

ALONE = "1 worker with one core"
WAYS: dict[str, tuple[int, int, dict[str, Any]]] = {
    ALONE: (1, 1, {}),
    "1 worker with both": (1, 2, {}),
    "2 workers with one each": (2, 1, {}),
    "the same, SyncBN": (2, 1, {"scale": {"workers": 2, "sync_batch_norm": True}}),
    "the same, pkt beside kd": (2, 1, {"methods": {"ce": {}, "kd": {}, "pkt": {}}}),
}
"""Workers, cores of each, and what else is set."""


def rates(rounds: int) -> dict[str, float]:
    """Images/s of each way, the median of rounds that take turns."""
    with tempfile.TemporaryDirectory() as folder:
        save_teacher(Path(folder))
        multiprocessing.spawn(_rates_of_a_rank, args=(folder, rounds), nprocs=RANKS)
        found = json.loads((Path(folder) / "rates.json").read_text())
    return {way: statistics.median(values) for way, values in found.items()}


def _rates_of_a_rank(rank: int, folder: str, rounds: int) -> None:
    with ranks_meeting(rank, folder):
        sessions = {way: _session(Path(folder), rank, workers, more) for way, (workers, _, more) in WAYS.items()}
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds + 1):
            for way, session in sessions.items():
                workers, cores, _ = WAYS[way]
                torch.set_num_threads(cores)
                distributed.barrier()
                if rank < workers:
                    found[way].append(STEPS * BATCH / _seconds_of_steps(session))
        if rank == 0:
            (Path(folder) / "rates.json").write_text(json.dumps({way: values[1:] for way, values in found.items()}))


def _session(folder: Path, rank: int, workers: int, sections: dict[str, Any]) -> Session:
    experiment = experiment_of(folder, workers, **sections)
    wrap = partial(DistributedDataParallel, forward_sync_buffers=False) if workers > 1 else lambda module: module
    return assemble(
        experiment, prepare(experiment), device=torch.device("cpu"), rank=rank, world_size=workers, wrap=wrap
    )


def _seconds_of_steps(session: Session) -> float:
    session.model.train()
    steps = session.steps(0)
    started = time.perf_counter()
    for _ in range(STEPS):
        descend(session, next(steps))
    return time.perf_counter() - started


# --- collectives ------------------------------------------------------------------------------------------------------


def collectives(rounds: int) -> dict[str, dict[int, float]]:
    """Median milliseconds of both calls, by the bytes that a rank hands over."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_collectives_of_a_rank, args=(folder, rounds), nprocs=RANKS)
        found = json.loads((Path(folder) / "collectives.json").read_text())
    return {name: {int(size): value for size, value in values.items()} for name, values in found.items()}


def _collectives_of_a_rank(rank: int, folder: str, rounds: int) -> None:
    with ranks_meeting(rank, folder):
        torch.set_num_threads(1)
        found: dict[str, dict[int, float]] = {"all-reduce": {}, "all-gather": {}}
        for size in SIZES:
            given = torch.ones(size // 4)
            pieces = [torch.empty_like(given) for _ in range(RANKS)]
            found["all-reduce"][size] = _milliseconds(partial(distributed.all_reduce, given), rounds)
            found["all-gather"][size] = _milliseconds(partial(distributed.all_gather, pieces, given), rounds)
        if rank == 0:
            (Path(folder) / "collectives.json").write_text(json.dumps(found))


def _milliseconds(call: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(8 * rounds):
        distributed.barrier()
        started = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken[rounds:])


@contextmanager
def ranks_meeting(rank: int, folder: str) -> Iterator[None]:
    """Join the other ranks, and leave them together."""
    meet = f"file://{Path(folder) / 'meet'}"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=RANKS)
    yield
    distributed.barrier()
    distributed.destroy_process_group()


# --- start-up ---------------------------------------------------------------------------------------------------------


def startup(rounds: int) -> dict[int, dict[str, float]]:
    """Median seconds from the call to the workers' first line, their sessions and the first step, by workers."""
    import raydistill
    from raydistill.cluster import ensure_ray

    ensure_ray(num_cpus=max(WORKERS))
    found: dict[int, list[dict[str, float]]] = {workers: [] for workers in WORKERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_teacher(folder)
        raydistill.train(started(folder, 1))  # brings files into memory, and does not count
        for _ in range(rounds):
            for workers in WORKERS:
                raydistill.train(started(folder, workers))
                marks = json.loads((folder / f"scaling-{workers}" / "logs" / "startup.json").read_text())
                until = {mark: marks[mark] - marks["called"] for mark in ("worker_started", "assembled", "first_step")}
                found[workers].append(until)
    return {
        workers: {mark: statistics.median(until[mark] for until in all_of) for mark in all_of[0]}
        for workers, all_of in found.items()
    }


def started(folder: Path, workers: int) -> Experiment:
    """A run of two steps."""
    data = {"name": "digits", "subset": 200, "validation": 0.1}
    return experiment_of(
        folder, workers, data=data, methods={"ce": {}}, teacher=None, train={"epochs": 1, "batch_size": 90}
    )


# --- build ------------------------------------------------------------------------------------------------------------


def build() -> dict[int, float]:
    """Seconds that a cache of so many rows takes, Ray's start and actor included."""
    script = str(Path(__file__).with_name("memory.py"))
    found = {}
    for rows in BUILT:
        done = subprocess.run(
            [sys.executable, script, "--rows", str(rows), "--json"], capture_output=True, text=True, check=True
        )
        found[rows] = json.loads(done.stdout)["build"]["seconds"]
    return found


# --- reading ----------------------------------------------------------------------------------------------------------


def reading(rounds: int) -> dict[str, float]:
    """Rows a second of each way, the median of rounds that take turns."""
    from cache import WIDTH, content_of, stored

    from raydistill.teachers.rows import HeldRows, StoredRows

    rows = {"embedding": np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        cache = stored(content_of(rows), rows, Path(folder))
        ids = torch.arange(ROWS)
        table = cache.table(ids, cache.views, ["embedding"])
        sources = {
            "held in memory (resident, shared)": HeldRows(table, cache.views, "cpu"),
            "stored (stream), 1 step a task": StoredRows.of(cache, ids, ["embedding"]),
            "stored (stream), 16 steps a task": StoredRows.of(cache, ids, ["embedding"]),
        }
        taken: dict[str, list[float]] = {way: [] for way in sources}
        for number in range(rounds + 1):
            order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(number))[: 64 * 256]
            for way, source in sources.items():
                started = time.perf_counter()
                for positions in order.split(16 * 256 if "16" in way else 256):
                    source.take(["embedding"], positions, None)
                taken[way].append(len(order) / (time.perf_counter() - started))
    return {way: statistics.median(rates[1:]) for way, rates in taken.items()}


# --- decoding ---------------------------------------------------------------------------------------------------------


def decoding(rounds: int) -> dict[str, float]:
    """Images/s of one core, and the bytes of an image."""
    from raydistill.data.decoding import attempt

    files = [made_up_jpeg(number) for number in range(DECODED)]
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        for file in files:
            assert not isinstance(attempt(file, 224), str)
        taken.append(time.perf_counter() - started)
    return {"images_per_s": DECODED / statistics.median(taken[1:]), "bytes": statistics.mean(map(len, files))}


def made_up_jpeg(number: int) -> bytes:
    """Clouds of several scales with a little noise, 500 x 375, about as large as an ImageNet file."""
    from PIL import Image

    generator = np.random.default_rng(number)
    pixels = np.zeros((375, 500, 3), np.float32)
    for cells, strength in ((5, 60), (20, 30), (80, 18), (250, 9)):
        small = generator.normal(128, strength, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
        pixels += np.asarray(Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC), np.float32) - 128
    buffer = io.BytesIO()
    noisy = (128 + pixels + generator.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------------------------------


def show_rates(found: dict[str, float]) -> None:
    for way, rate in found.items():
        print(f"{way:<26}{rate:>9.0f} images/s{rate / found[ALONE]:>8.2f} of the first")


def show_collectives(found: dict[str, dict[int, float]]) -> None:
    print(f"{'bytes of a rank':>16}" + "".join(f"{name:>14}" for name in found) + f"{'all-reduce, MB/s':>19}")
    for size in SIZES:
        times = "".join(f"{found[name][size]:>11.2f} ms" for name in found)
        print(f"{size:>16,}{times}{size / 1e3 / found['all-reduce'][size]:>19.0f}")


def show_startup(found: dict[int, dict[str, float]]) -> None:
    print("seconds after the call     worker runs   assembled   first step")
    for workers, until in found.items():
        print(f"{workers} workers{'':<17}" + "".join(f"{seconds:>12.1f}" for seconds in until.values()))


def show_build(found: dict[int, float]) -> None:
    (least, shortest), (most, longest) = min(found.items()), max(found.items())
    slope = (longest - shortest) / (most - least)
    for rows, seconds in found.items():
        line = shortest + slope * (rows - least)
        print(f"{rows:>10,} rows{seconds:>8.1f} s, on the line through first and last {line:>6.1f} s")
    print(f"{1e6 * slope:.1f} s for each million more")


def show_reading(found: dict[str, float]) -> None:
    for way, rate in found.items():
        print(f"{way:<36}{rate:>12,.0f} rows/s")


def show_decoding(found: dict[str, float]) -> None:
    print(f"{found['images_per_s']:.0f} JPEGs of {found['bytes'] / 1000:.0f} kB a second and core")


PARTS: dict[str, tuple[Callable[[int], Any], Callable[[Any], None]]] = {
    "rates": (rates, show_rates),
    "collectives": (collectives, show_collectives),
    "startup": (startup, show_startup),
    "build": (lambda rounds: build(), show_build),
    "reading": (reading, show_reading),
    "decoding": (decoding, show_decoding),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to measure; all, if nothing is named")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for part in given.parts or PARTS:
        print(f"\n{part}")
        measure, show = PARTS[part]
        show(measure(given.rounds))


if __name__ == "__main__":
    main()
