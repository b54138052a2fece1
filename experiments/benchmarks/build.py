"""Building a cache with one actor against a bare loop of PyTorch over the same pixels; both in one run.

    python experiments/benchmarks/build.py [--quick] [--json]

The loop has the pixels in memory as bytes, normalises a batch, runs the network and drops the outputs. The build runs
as `raydistill cache build` does; its rate is that from the end of its first shard to the end of its last, and what
passes before the first shard was begun is told as start-up. Both have the same network, batches and threads; the loop
runs before and after each build. Then the same shards are computed in this process, with a clock on each part: what
Ray costs is what the build needs beyond that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from raydistill.cluster import ensure_ray
from raydistill.config import Experiment, parse_experiment
from raydistill.data.datasets import load_train
from raydistill.data.image_set import ImageSet
from raydistill.data.views import normalise
from raydistill.files import make_folders
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.teachers.cache import compute
from raydistill.teachers.cache.build import build_cache
from raydistill.teachers.cache.manifest import RECORDS, SHARDS
from raydistill.teachers.cache.request import requested
from raydistill.teachers.cache.shards import Place
from raydistill.teachers.network import teacher_of

WANTED = 0.95
ROUNDS = 7
BATCH, SHARD_ROWS = 256, 512
CASES: dict[str, dict[str, Any]] = {
    "resident 28 px, wrn_16_2": {
        "model": "wrn_16_2",
        "images": 8192,
        "data": {"name": "synthetic", "synthetic_image_size": 28, "synthetic_channels": 1},
    },
    "JPEGs 64 px decoded on demand, resnet20": {
        "model": "resnet20",
        "images": 3072,
        "data": {"name": "image_folder", "image_size": 64, "reading": "stream"},
    },
}
CLOCKS = {"render": "_drawn", "encode and hash": "encode", "view parameters": "_parameters"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the images")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="builds of each case, of which the median counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    given = parser.parse_args()
    cpus = os.cpu_count() or 1
    ensure_ray(num_cpus=cpus)
    torch.set_num_threads(cpus)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        found = [
            measured(name, case, Path(folder), 4 if given.quick else 1, given.rounds) for name, case in CASES.items()
        ]
    if given.json:
        print(json.dumps({"cases": found, "threads": cpus}))
        return
    for row in found:
        print(
            f"{row['case']}: {row['rows']} rows, loop {row['loop_images_per_s']:.0f} images/s, "
            f"build {row['build_images_per_s']:.0f}, ratio {row['ratio']:.3f} of {row['ratios']} "
            f"(at least {WANTED}) {'met' if row['met'] else 'MISSED'}; start-up {row['start_up_s']:.1f} s"
        )
        for name, seconds in row["seconds"].items():
            print(f"    {name:<34}{seconds:>9.3f} s  {seconds / row['seconds']['build, at its steady rate']:>7.1%}")


def measured(name: str, case: dict[str, Any], root: Path, less: int, rounds: int) -> dict[str, Any]:
    """Loop, build, loop, as often as asked; then the parts."""
    count = case["images"] // less
    folder = root / case["model"]
    experiment = experiment_of(case, folder, count)
    images = load_train(experiment.data)
    network = teacher_of(experiment, images)
    pixels = images.pixels(torch.arange(len(images)))
    loop(network, pixels[: 2 * BATCH], images)
    rates, builds, ratios = [loop(network, pixels, images)], [], []
    for number in range(rounds):
        builds.append(build(experiment.override({"cache.root": str(folder / f"cache-{number}")})))
        rates.append(loop(network, pixels, images))
        ratios.append(builds[-1][0] / statistics.fmean(rates[-2:]))
    rate, start_up = (statistics.median(each[part] for each in builds) for part in (0, 1))
    ratio = statistics.median(ratios)
    parts = parts_of(experiment.override({"cache.root": str(folder / "cache-parts")}), images)
    here = parts.pop("in this process")
    seconds = {"build, at its steady rate": count / rate, "bare loop": count / statistics.fmean(rates), **parts}
    seconds["Ray, and the noise of this machine"] = count / rate - here
    return {
        "case": name,
        "rows": count,
        "loop_images_per_s": statistics.fmean(rates),
        "build_images_per_s": rate,
        "ratio": ratio,
        "ratios": [round(each, 3) for each in ratios],
        "met": ratio >= WANTED,
        "start_up_s": start_up,
        "seconds": seconds,
    }


def experiment_of(case: dict[str, Any], folder: Path, count: int) -> Experiment:
    make_folders(folder)
    data = {**case["data"]}
    if data["name"] == "synthetic":
        data["synthetic_size"] = count
    else:
        data["root"] = str(folder / "images")
        write_jpegs(folder / "images" / "train", count)
    torch.manual_seed(0)
    channels = data.get("synthetic_channels", 3)
    save_weights(build_model(case["model"], 10, in_channels=channels), folder / "teacher.safetensors")
    return parse_experiment(
        {
            "name": "build",
            "data": data,
            "teacher": {
                "model": case["model"],
                "weights": str(folder / "teacher.safetensors"),
                "batch_size": BATCH,
            },
            "student": {"model": "resnet8"},
            "methods": {"kd": {}},
            "cache": {"root": str(folder / "cache"), "shard_rows": SHARD_ROWS, "actors": 1},
            "scale": {"use_gpu": False},
        }
    )


def write_jpegs(folder: Path, count: int) -> None:
    """Smooth pictures, which take as many bytes as photographs of their size."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number % 10) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (12, 12, 3)).astype(np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path, quality=90)


@torch.inference_mode()
def loop(network: Any, pixels: torch.Tensor, images: ImageSet) -> float:
    """Images a second of the bare loop."""
    started = time.perf_counter()
    for batch in pixels.split(BATCH):
        network(normalise(batch, images.mean, images.std), outputs=("embedding", "logits"))
    return len(pixels) / (time.perf_counter() - started)


def build(experiment: Experiment) -> tuple[float, float]:
    """Images a second after the first shard, and seconds before that was begun."""
    started = time.time()
    report = build_cache(experiment)
    ends = sorted(path.stat().st_mtime for path in (Path(report.path) / RECORDS).iterdir())
    seconds = ends[-1] - ends[0]
    rate = (len(ends) - 1) * SHARD_ROWS / seconds
    return rate, ends[0] - started - SHARD_ROWS / rate


def parts_of(experiment: Experiment, images: ImageSet) -> dict[str, float]:
    """Seconds of each part of computing all shards in this process; decoding goes on beside the rest."""
    seconds: dict[str, float] = defaultdict(float)
    network = teacher_of(experiment, images)
    content = requested(experiment, images, network)
    folder = Path(experiment.cache.root) / content.folder_name
    make_folders(folder, folder / SHARDS, folder / RECORDS)
    source = compute.Source(content, images, network, BATCH, torch.device("cpu"))
    with ExitStack() as patches:
        for label, function in CLOCKS.items():
            clocked(patches, compute, function, label, seconds)
        clocked(patches, compute, "gather", "take or decode, beside the teacher", seconds)
        clocked(patches, compute, "ahead", "of it, waited for", seconds, iterates=True)
        clocked(patches, type(network), "forward", "network", seconds)
        clocked(patches, compute.store, "write", "write", seconds)
        started = time.perf_counter()
        for shard in content.shards():
            compute.compute_shard(source, folder, Place(content.key, *shard))
        seconds["in this process"] = time.perf_counter() - started
    return dict(seconds)


def clocked(
    patches: ExitStack, owner: Any, name: str, label: str, seconds: dict[str, float], *, iterates: bool = False
) -> None:
    """Add the time in a function, or in waiting for what it yields, to ``seconds``."""
    plain: Callable[..., Any] = getattr(owner, name)
    seconds[label] = 0.0

    @contextmanager
    def clock() -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[label] += time.perf_counter() - started

    def once(*given: Any, **named: Any) -> Any:
        with clock():
            return plain(*given, **named)

    def each(*given: Any, **named: Any) -> Iterator[Any]:
        coming = iter(plain(*given, **named))
        while True:
            with clock():
                found = next(coming, None)
            if found is None:
                return
            yield found

    patches.enter_context(mock.patch.object(owner, name, each if iterates else once))


if __name__ == "__main__":
    main()
