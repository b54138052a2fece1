"""How long a user waits: for help, for a configuration error, and from `raydistill train` to the first step.

    python experiments/benchmarks/startup.py [--repeats 3]

Prints a breakdown of the way to the first optimisation step on the embedded digits, the median of all repeats: once
with a Ray that the command starts itself, once with one that is there already and has had a run before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

EXPERIMENT = """
name: startup
data: {name: digits}
student: {model: resnet8}
methods: {ce: {}}
train: {epochs: 1}
"""
RAY = """
import sys
from raydistill.cluster import ensure_ray
ensure_ray()
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
COMMAND = [sys.executable, "-m", "raydistill.cli"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "experiment.yaml").write_text(EXPERIMENT)
        print(f"{'--help':<42}{median(repeats, folder, '--help'):6.2f} s")
        wrong = ("train", "experiment.yaml", "train.epochz=1")
        print(f"{'configuration error':<42}{median(repeats, folder, *wrong):6.2f} s")
        cold = [to_first_step(folder, {}) for _ in range(repeats)]
        with running_ray() as address:
            to_first_step(folder, address)
            warm = [to_first_step(folder, address) for _ in range(repeats)]
    print(f"{'':<42}{'cold':>6}{'warm Ray':>12}")
    for stage in cold[0]:
        medians = [statistics.median(way[stage] for way in ways) for ways in (cold, warm)]
        print(f"{stage:<42}{medians[0]:6.2f} s{medians[1]:10.2f} s")


@contextlib.contextmanager
def running_ray() -> Iterator[dict[str, str]]:
    """Start a Ray for the time being; the environment with which commands join it."""
    alone = {"RAY_AUTH_MODE": "disabled"}  # it listens on loopback; a token would have to be shared by a file
    with subprocess.Popen(
        [sys.executable, "-c", RAY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **alone},
    ) as process:
        assert process.stdin and process.stdout
        try:
            yield {"RAY_ADDRESS": process.stdout.readline().strip(), **alone}
        finally:
            process.stdin.close()


def median(repeats: int, folder: Path, *arguments: str) -> float:
    """Median seconds of a command."""
    return statistics.median(seconds(folder, *arguments) for _ in range(repeats))


def seconds(folder: Path, *arguments: str) -> float:
    """Seconds that a command takes from start to exit."""
    started = time.time()
    subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, check=False)
    return time.time() - started


def to_first_step(folder: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Seconds of each stage of a run, from the start of its process."""
    started = time.time()
    subprocess.run(
        [*COMMAND, "train", "experiment.yaml"],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    ended = time.time()
    marks = json.loads((folder / "runs" / "startup" / "logs" / "startup.json").read_text())
    return {
        "train: until the command runs": marks["called"] - started,
        "train: Ray started": marks["ray_started"] - marks["called"],
        "train: data and Ray Train loaded": max(0.0, marks["prepared"] - marks["ray_started"]),
        "train: worker group up": marks["worker_started"] - max(marks["prepared"], marks["ray_started"]),
        "train: student and objective assembled": marks["assembled"] - marks["worker_started"],
        "train: first step done": marks["first_step"] - marks["assembled"],
        "train: start to first step done": marks["first_step"] - started,
        "train: whole command, one epoch": ended - started,
    }


if __name__ == "__main__":
    main()
