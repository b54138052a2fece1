"""Training that reads its images and the teacher's rows from the disk: is memory flat, and does a step wait for data?

    python experiments/benchmarks/streaming.py [--images 200000] [--part memory|speed] [--folder FOLDER] [--json]

It makes a Parquet set of JPEG images of 64 pixels, no two alike, out of pairs of Fashion-MNIST, and a teacher's cache.

memory: `raydistill train` with a tiny student, which asks for images as fast as they come, for six epochs of all of
them. Every process of the run is looked at four times a second. The numbers are proportional set size (PSS: what a
process has for itself, and its part of what it shares with others, such as Ray's object store) summed over the
processes of a kind, in each epoch with its validation. What a shard or a library maps of a file counts too. Printed
are the largest, and the level: the median of an epoch's looks. Memory is flat where the level stays from the second
epoch on, but for what allocators keep; in the first one processes still start, and nothing was read before it. The
largest depends on which short peaks the looks meet.

speed: sessions and steps of a worker, in a process with one thread, on a subset from memory and from the disk:
images/s, and how long a step waits for its data. The tiny student shows what the one reading task delivers at most,
with row groups of a thousand images, and from a copy that holds images one by one.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from memory import below, kind_of, memory_of
from PIL import Image
from torch import nn

FASHION = os.environ.get("RAYDISTILL_FASHION_MNIST", "/usr/share/datasets/fashion-mnist")
SIDE, CLASSES, WIDTH = 64, 10, 512
FILE_IMAGES, GROUP_IMAGES = 10_000, 1000
SUBSET, EPOCHS, SPEED_EPOCHS = 4000, 6, 3
GROWTH_MIB = 128  # of the level after the second epoch, over all processes: what allocators may keep
WAIT_SHARE, RATIO = 0.05, 0.95
SECONDS_BETWEEN_LOOKS = 0.25
TINY = "streaming:student"
WAYS = {  # student, reading, whether from a copy
    "resnet8, resident": ("resnet8", "resident", False),
    "resnet8, stream": ("resnet8", "stream", False),
    "tiny, resident": (TINY, "resident", False),
    "tiny, stream": (TINY, "stream", False),
    "tiny, stream, data.spool": (TINY, "stream", True),
}
COMMAND = [sys.executable, "-m", "raydistill.cli"]


def teacher(num_classes: int, in_channels: int) -> nn.Module:
    """Coarse pixels through a layer of 512 units, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(in_channels * 64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, num_classes)]
    network = nn.Sequential(nn.AvgPool2d(SIDE // 8), nn.Flatten(), *layers)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return network


def student(num_classes: int, in_channels: int) -> nn.Module:
    """One convolution of patches: next to nothing to compute."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 8, stride=8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="where all of it is made; kept, and used again by the next call")
    parser.add_argument("--part", choices=["memory", "speed"], help="only one of the two")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(waits(given.folder, given.way)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        made = prepare(folder, given.images)
        found: dict[str, Any] = {"data": made}
        if given.part != "speed":
            found["memory"] = measure_memory(folder)
        if given.part != "memory":
            found["speed"] = measure_speed(folder)
    if given.json:
        print(json.dumps(found))
        return
    show(found)


def prepare(folder: Path, images: int) -> dict[str, float]:
    """Make the images and the cache, where they are not there yet; return their sizes and the seconds they took."""
    taken = {}
    started = time.monotonic()
    if not list(folder.glob("data/*.parquet")):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            firsts = range(0, images, FILE_IMAGES)
            list(pool.map(make_file, [(folder / "data", first, min(FILE_IMAGES, images - first)) for first in firsts]))
    taken["make_seconds"] = time.monotonic() - started
    (folder / "experiment.yaml").write_text(json.dumps(experiment(folder)))
    started = time.monotonic()
    run(folder, "cache", "build", "experiment.yaml")
    taken["cache_seconds"] = time.monotonic() - started
    paths = list((folder / "data").iterdir())
    rows = sum(pq.read_metadata(path).num_rows for path in paths)
    encoded = sum(path.stat().st_size for path in paths)
    stored = sum(path.stat().st_size for path in (folder / "cache").rglob("*.parquet"))
    sizes = {"encoded_mib": encoded / 2**20, "decoded_mib": rows * 3 * SIDE * SIDE / 2**20, "cache_mib": stored / 2**20}
    return {"images": rows, "files": len(paths), **sizes, **taken}


def make_file(part: tuple[Path, int, int]) -> None:
    """Write one file of images."""
    folder, first, count = part
    with gzip.open(Path(FASHION, "train-images-idx3-ubyte.gz")) as file:
        small = np.frombuffer(file.read(16 + 500 * 784), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(Path(FASHION, "train-labels-idx1-ubyte.gz")) as file:
        labels = np.frombuffer(file.read(8 + 500), np.uint8, offset=8)
    large = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in small]
    generator = np.random.default_rng(first)
    rows: dict[str, list[Any]] = {"image": [], "label": [], "id": list(range(first, first + count))}
    for front, back in generator.integers(0, len(large), (count, 2)):
        buffer = io.BytesIO()
        Image.fromarray(composed(large[front], large[back], generator)).save(buffer, "JPEG", quality=95)
        rows["image"].append(buffer.getvalue())
        rows["label"].append(int(labels[front]))
    path = folder / f"train-{first // FILE_IMAGES:03d}.parquet"
    pq.write_table(pa.table(rows), path, row_group_size=GROUP_IMAGES)


def composed(front: Any, back: Any, generator: np.random.Generator) -> Any:
    """Two tinted images, one shifted behind the other, under noise: uint8 [64, 64, 3]."""
    tints = generator.integers(96, 256, (2, 3)) / (255, 510)[0]
    behind = np.roll(back, tuple(generator.integers(-24, 24, 2)), (0, 1))
    image = np.maximum(front[..., None] * tints[0], behind[..., None] * tints[1] / 2).astype(np.uint8)
    return image ^ generator.integers(0, 8, (SIDE, SIDE, 1), dtype=np.uint8)


def experiment(folder: Path) -> dict[str, Any]:
    return {
        "name": "stream",
        "output": str(folder / "runs"),
        "data": {
            "name": "parquet",
            "root": str(folder / "data"),
            "id_column": "id",
            "image_size": SIDE,
            "validation": 0.02,
            "reading": "stream",
            "augment": {"crop": 4, "flip": 0.5},
        },
        "teacher": {"model": "streaming:teacher", "batch_size": 512},
        "student": {"model": TINY},
        "methods": {"ce": {}, "kd": {}, "pkt": {}},
        "train": {"epochs": EPOCHS, "batch_size": 128, "optimizer": {"lr": 0.01}},
        "cache": {"root": str(folder / "cache"), "read": "stream"},
        "scale": {"cpus_per_worker": 1},
    }


def run(folder: Path, *arguments: str) -> None:
    """Run a command of raydistill to its end."""
    subprocess.run([*COMMAND, *arguments], cwd=folder, env=environment(folder), check=True, stdout=subprocess.DEVNULL)


def environment(folder: Path) -> dict[str, str]:
    """Let every process find the networks in this file, and remember checked images in the folder."""
    paths = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(folder / "remembered")}


def measure_memory(folder: Path) -> dict[str, Any]:
    """Train on all images; return the peaks of each kind of process and the levels of all, in MiB for each epoch."""
    command = [*COMMAND, "train", "experiment.yaml", "name=memory"]
    shutil.rmtree(folder / "runs" / "memory", ignore_errors=True)  # of an earlier call
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL)
    looks = watch(process, folder / "runs" / "memory")
    if process.returncode:
        sys.exit(process.returncode)
    rates = [record["images_per_s"] for record in history(folder, "memory")]
    return {
        "seconds": time.monotonic() - started,
        "images_per_s": rates,
        "peaks": {kind: [max(epoch, default=0.0) for epoch in epochs] for kind, epochs in looks.items()},
        "levels": [statistics.median(epoch) for epoch in looks["all"]],
    }


def watch(process: subprocess.Popen[bytes], run_folder: Path) -> dict[str, list[list[float]]]:
    """Look at a process and all below it until it ends: kind -> MiB at each look of each epoch."""
    looks: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in range(EPOCHS)])
    known: dict[int, str] = {}
    while process.poll() is None:
        epoch = epoch_of(run_folder)
        now: dict[str, float] = defaultdict(float)
        for pid in (process.pid, *below(process.pid)):
            try:
                kind, memory = kind_of(pid), memory_of(pid)
            except (OSError, KeyError):  # it has ended
                continue
            kind = known[pid] = named("driver" if pid == process.pid else kind, known.get(pid))
            for name in (kind, "all"):
                now[name] += memory["Pss"]
                now[f"{name}, its own"] += memory["Pss_Anon"]
        for name, value in now.items():
            looks[name][epoch].append(value)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return dict(looks)


def named(kind: str, before: str | None) -> str:
    """Return what a process is called here: one that ever read or trained stays that between its tasks."""
    if "MapBatches" in kind or "_read" in kind:
        return "reading tasks"
    return before if kind == "IDLE" and before is not None else kind


def epoch_of(run_folder: Path) -> int:
    """The epoch that a run is in, whose validation belongs to it."""
    try:
        told = json.loads((run_folder / "logs" / "progress.json").read_text())
    except (OSError, ValueError):
        return 0
    return min(EPOCHS - 1, int(told["epoch"]))


def history(folder: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def measure_speed(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Train on a subset in each way, in processes of their own."""
    run(folder, "cache", "build", "experiment.yaml", f"data.subset={SUBSET}")
    told = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--folder", str(folder), "--way", way]
        output = subprocess.run(command, env=environment(folder), check=True, stdout=subprocess.PIPE, text=True).stdout
        told[way] = json.loads(output.splitlines()[-1])
    return told


def waits(folder: Path, way: str) -> list[dict[str, float]]:
    """Train in this process; return images/s, share of the time that was waiting, and the first step's, by epoch."""
    from raydistill.cluster import ensure_ray
    from raydistill.config import parse_experiment
    from raydistill.training.assembly import assemble
    from raydistill.training.material import prepare
    from raydistill.training.step import descend

    model, reading, spool = WAYS[way]
    chosen = parse_experiment(experiment(folder)).override(
        {
            "data.subset": SUBSET,
            "data.reading": reading,
            "data.spool": str(folder / "copies") if spool else None,
            "cache.read": reading,
            "student.model": model,
            "train.epochs": SPEED_EPOCHS,
        }
    )
    ensure_ray(num_cpus=2)
    torch.set_num_threads(1)
    session = assemble(chosen, prepare(chosen), device=torch.device("cpu"))
    session.model.train()
    epochs = []
    for epoch in range(SPEED_EPOCHS):
        waited = []
        asked = began = time.monotonic()
        for step in session.steps(epoch):
            waited.append(time.monotonic() - asked)
            descend(session, step)
            asked = time.monotonic()
        seconds = time.monotonic() - began
        images = session.batching.images_per_epoch
        epochs.append({"images_per_s": images / seconds, "waited": sum(waited) / seconds, "first_s": waited[0]})
    return epochs


def show(found: dict[str, Any]) -> None:
    """Print tables, and what was met."""
    data = found["data"]
    print(
        f"{data['images']:,} JPEG images of {SIDE} pixels in {data['files']} files: {data['encoded_mib']:.0f} MiB, "
        f"decoded {data['decoded_mib']:.0f} MiB; teacher's rows {data['cache_mib']:.0f} MiB. "
        f"Made in {data['make_seconds']:.0f} s, cache in {data['cache_seconds']:.0f} s"
    )
    if "memory" in found:
        memory = found["memory"]
        rates = ", ".join(f"{rate:.0f}" for rate in memory["images_per_s"])
        print(f"\ntiny student, {EPOCHS} epochs in {memory['seconds']:.0f} s; images/s of each: {rates}")
        print(f"{'PSS in MiB, most in each epoch':<38}" + "".join(f"{number:>8}" for number in range(1, EPOCHS + 1)))
        for kind, values in sorted(memory["peaks"].items(), key=lambda item: -max(item[1])):
            print(f"{kind:<38}" + "".join(f"{value:>8.0f}" for value in values))
        levels = memory["levels"]
        print(f"{'all, the level of each epoch':<38}" + "".join(f"{value:>8.0f}" for value in levels))
        growth = max(levels[2:]) - levels[1]
        met = "met" if growth <= GROWTH_MIB else "MISSED"
        print(f"the level grows after the second epoch by {growth:.0f} MiB, at most {GROWTH_MIB}: {met}")
    if "speed" in found:
        show_speed(found["speed"])


def show_speed(speed: dict[str, list[dict[str, float]]]) -> None:
    print(f"\n{f'{SUBSET} images, one thread':<28}{'epoch':>6}{'images/s':>10}{'waited':>9}{'for the first step':>20}")
    for way, epochs in speed.items():
        for number, row in enumerate(epochs, start=1):
            rate, waited, first = row["images_per_s"], row["waited"], row["first_s"]
            print(f"{way:<28}{number:>6}{rate:>10.0f}{waited:>9.1%}{first:>18.2f} s")
    resident, streamed = (
        statistics.median(row["images_per_s"] for row in speed[f"resnet8, {reading}"][1:])
        for reading in ("resident", "stream")
    )
    ratio = streamed / resident
    print(f"resnet8, stream / resident: {ratio:.2f}, at least {RATIO}: {'met' if ratio >= RATIO else 'MISSED'}")
    waited = max(row["waited"] for row in speed["resnet8, stream"][1:])
    print(
        f"resnet8 waits at most {WAIT_SHARE:.0%} after the first epoch: {'met' if waited <= WAIT_SHARE else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
