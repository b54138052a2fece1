"""Three small commands that take some time, what they have done at any moment, and what they come to.

Teacher and student are networks that leave a line for every batch they see, so that work done twice can be counted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOG = "CHAOS_LOG"
"""The environment variable that names the file of those lines."""
IMAGES, VIEWS, SHARD_ROWS, BATCH = 480, 1, 24, 24
TIMES = ("seconds", "images_per_s")
STATES = ("ray_train", "ray_tune")
"""Folders in which Ray keeps what our commands never read again."""


@dataclass(frozen=True)
class Workload:
    """A command: what it is called with, and what counts as a unit of its work."""

    verb: str
    unit: str
    experiment: Mapping[str, Any]
    resumes: bool
    output: str

    def arguments(self, disk: Path) -> list[str]:
        """Return the words after the configuration, as a user would choose them by what is there."""
        began = (disk / self.output / "config.yaml").is_file()
        return ["--resume"] if self.resumes and began else []


def workloads(disk: Path, cache: Path) -> dict[str, Workload]:
    """Return the three, working on a disk; training and sweep read a finished ``cache`` that lies elsewhere."""
    base = {
        "data": {"name": "digits", "subset": IMAGES, "validation": 0.2, "augment": {"crop": 1}},
        "teacher": {"model": "workloads:teacher", "batch_size": BATCH},
        "student": {"model": "workloads:student"},
        "methods": {"ce": {}, "kd": {}},
        "scale": {"use_gpu": False, "max_failures": 10},
    }
    rows = {"shard_rows": SHARD_ROWS, "views": VIEWS, "actors": 1, "cpus_per_actor": 1}
    built = base | {"name": "built", "cache": rows | {"root": str(disk / "cache")}}
    trained = base | {
        "name": "trained",
        "output": str(disk),
        "cache": rows | {"root": str(cache)},
        "train": {"epochs": 8, "batch_size": BATCH, "checkpoint": {"steps": 5, "keep": 3}},
    }
    swept = trained | {
        "name": "swept",
        "train": {"epochs": 9, "batch_size": 2 * BATCH},
        "tune": {
            "samples": 6,
            "concurrent": 2,
            "repeats": 2,
            "finalists": 1,
            "scheduler": {"name": "asha", "grace": 1, "reduction": 3},
            "space": {"train.optimizer.lr": {"loguniform": [0.005, 0.3]}},
        },
    }
    return {
        "cache": Workload("cache build", "images through the teacher", built, resumes=False, output="cache"),
        "train": Workload("train", "steps", trained, resumes=True, output="trained"),
        "tune": Workload("tune", "steps of trials", swept, resumes=True, output="swept"),
    }


# --- networks ---------------------------------------------------------------------------------------------------------


def teacher(num_classes: int, in_channels: int) -> Any:
    """A teacher that takes a fifth of a second for a batch; its weights are the same in every process."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _network(num_classes, in_channels, width=16)
    network.register_forward_pre_hook(_leave_teachers_line)
    return network


def student(num_classes: int, in_channels: int) -> Any:
    """A student that takes some hundredths of a second for a step."""
    network = _network(num_classes, in_channels, width=8)
    network.register_forward_pre_hook(_leave_students_line)
    return network


def _network(num_classes: int, in_channels: int, width: int) -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def _leave_teachers_line(network: Any, batch: tuple[Any, ...]) -> None:
    _leave_line(len(batch[0]), seconds=0.2)


def _leave_students_line(network: Any, batch: tuple[Any, ...]) -> None:
    if network.training:
        _leave_line(1, seconds=0.05)


def _leave_line(units: int, seconds: float) -> None:
    if path := os.environ.get(LOG):
        time.sleep(seconds)
        with Path(path).open("a") as log:
            log.write(f"{os.getpid()} {units}\n")


def work_done(log: Path, drivers: Sequence[int]) -> int:
    """Return the units that all processes have done but the drivers, which only ask for shapes."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return sum(int(units) for pid, units in lines if int(pid) not in drivers)


# --- what lies on the disk --------------------------------------------------------------------------------------------


def progress(output: Path) -> int:
    """Return how far a command has come that can be taken up again: shards, or the newest checkpoint's step, or epochs.

    The epochs are those that the metrics of a sweep's trials tell of.
    """
    epochs = [path.read_bytes().count(b"\n") for path in output.glob("*/*/metrics.jsonl")]
    steps = [int(path.name[-9:]) for path in output.glob("checkpoints/checkpoint_step*")]
    return len([*output.glob("*/records/*.json")]) + max(steps, default=0) + sum(epochs)


def results(output: Path) -> dict[str, str]:
    """Return what must not depend on what befell a command, as texts or sha256 by their names. Times are left out."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        if path.suffix in (".parquet", ".safetensors") or path.name == "best.yaml":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.parent == output and path.suffix == ".csv":
            found[name] = _without_times(path.read_text())
        elif path.name == "_SUCCESS":
            found[name] = "there"
        elif path.parent.name == "records":
            found[name] = path.read_text()
        elif path == output / "result.json":
            found[name] = str(json.loads(path.read_text()).get("top1"))
    return found


def _without_times(table: str) -> str:
    rows = list(csv.DictReader(io.StringIO(table)))
    kept = [{name: value for name, value in row.items() if not _is_time(name)} for row in rows]
    return json.dumps(kept)


def _is_time(name: str) -> bool:
    return name in TIMES or name.startswith("time/")


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Say which results are missing, are too many or are others."""
    said = [f"{name} is missing" for name in wanted if name not in found]
    said += [f"{name} is too many" for name in found if name not in wanted]
    return said + [f"{name} differs" for name in wanted if name in found and found[name] != wanted[name]]


def torn(output: Path) -> list[str]:
    """Say which files have their names, and so are taken for whole, though they end too early or are not what they say.

    JSON is parsed, shards and checkpoints are compared with their records.
    """
    said = []
    for path in sorted(output.rglob("*")):
        inside = path.relative_to(output).parts
        if not path.is_file() or any(part.startswith(".") or part in STATES for part in inside):
            continue
        try:
            if (problem := _problem(path)) is not None:
                said.append(f"{'/'.join(inside)} is torn: {problem}")
        except FileNotFoundError:
            continue  # it was replaced meanwhile
    return said


def _problem(path: Path) -> str | None:
    look = {".jsonl": _lines, ".json": _json, ".safetensors": _tensors, ".yaml": _text}.get(path.suffix)
    try:
        return None if look is None else look(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _lines(path: Path) -> None:
    for line in path.read_text().splitlines():
        json.loads(line)


def _json(path: Path) -> str | None:
    record = json.loads(path.read_text())
    if path.parent.name == "records":
        return _unlike(path.parents[1] / "shards" / f"{path.stem}.parquet", record["bytes"], record["sha256"])
    if path.name == "checkpoint.json":
        return _unlike(path.with_name("state.pt"), record["bytes"])
    return None


def _tensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118  it is no mapping
            tensors.get_tensor(name)


def _text(path: Path) -> str | None:
    return None if path.read_text().endswith("\n") else "its last line has no end"


def _unlike(path: Path, size: int, sha256: str | None = None) -> str | None:
    if not path.is_file():
        return f"there is no {path.name}"
    content = path.read_bytes()
    if len(content) != size or (sha256 and hashlib.sha256(content).hexdigest() != sha256):
        return f"{path.name} is not what its record says"
    return None


def left_over(output: Path) -> list[str]:
    """Return what a finished command should have removed: files and folders under names of something being written."""
    return [str(path.relative_to(output)) for path in output.rglob(".*.tmp")]


def unclean(said: str, code: int) -> list[str]:
    """Say what is not as documented of a command that ended by itself, by what it ``said`` on stderr and its code."""
    problems = [f"{word!r} on stderr" for word in ("Traceback", "Fatal Python error", "*** SIG") if word in said]
    if code not in (0, 1):
        problems.append(f"ended with code {code}")
    last = (said.strip().splitlines() or [""])[-1]
    if code == 1 and not last.startswith("raydistill: "):
        problems.append(f"its last word is {last[:200]!r}")
    return problems
