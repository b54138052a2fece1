"""Memory of a large cache: build it with Ray, then read all of it into one tensor in a fresh process.

    python experiments/benchmarks/memory.py [--rows 1000000] [--folder FOLDER] [--json]

Images and teacher are made up, and small. Every process of the build is looked at five times a second: resident memory
is what it holds for itself and what it shares with others (libraries, files, Ray's object store). The system itself
keeps the peak of resident memory; those of the parts are from the looks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

MIB = 2**20
WIDTH, SIDE, CLASSES = 512, 8, 10
AT_MOST_MIB = 2048
GROWTH_MIB = 64  # between a quarter of the rows and all of them: what an allocator may keep
SECONDS_BETWEEN_LOOKS = 0.2


def teacher(num_classes: int, in_channels: int) -> nn.Module:
    """A layer of 512 units on the pixels, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(in_channels * SIDE * SIDE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, num_classes)]
    network = nn.Sequential(nn.Flatten(), *layers)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    return network


@dataclass
class Peaks:
    """Most MiB of one kind of process: each number is the largest of one process of that kind.

    ``early`` holds the private memory until a quarter of the rows was done, ``late`` that after it.
    """

    processes: set[int] = field(default_factory=set)
    resident: float = 0.0
    private: float = 0.0
    shared: float = 0.0
    early: float = 0.0
    late: float = 0.0

    def take(self, pid: int, memory: dict[str, float], share: float) -> None:
        """Take one look at one process into account, at which a ``share`` of the rows was done."""
        self.processes.add(pid)
        private = memory["Private_Clean"] + memory["Private_Dirty"]
        self.resident, self.private = max(self.resident, memory["VmHWM"]), max(self.private, private)
        self.shared = max(self.shared, memory["Rss"] - private)
        if share <= 0.25:
            self.early = max(self.early, private)
        else:
            self.late = max(self.late, private)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the cache is written, 1 KiB for each row; kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--stage", choices=["build", "read"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        {"build": build, "read": read}[given.stage](given.folder, given.rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.folder or Path(folder), given.rows)
    if given.json:
        print(json.dumps(found))
        return
    print(
        f"{given.rows:,} rows x {WIDTH} float16, built in {found['build']['seconds']:.0f} s. Most MiB of one process:"
    )
    print(f"{'':<26}{'processes':>10}{'resident':>10}{'private':>9}{'shared':>8}{'private to 25 %':>17}{'after':>8}")
    for name, row in found["build"]["processes"].items():
        print(
            f"{name:<26}{row['processes']:>10}{row['resident']:>10.0f}{row['private']:>9.0f}{row['shared']:>8.0f}"
            f"{row['early']:>17.0f}{row['late']:>8.0f}"
        )
    print(f"{'reader':<26}{1:>10}{found['read']['resident']:>10.0f}  in {found['read']['seconds']:.1f} s")
    for name, met in found["targets"].items():
        print(f"{name}: {'met' if met else 'MISSED'}")


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Build and read in processes of their own."""
    started = time.monotonic()
    process = stage("build", folder, rows)
    peaks = watch(process)
    if process.returncode:
        sys.exit(process.returncode)
    seconds = time.monotonic() - started
    reader = stage("read", folder, rows)
    told, _ = reader.communicate()
    if reader.returncode:
        sys.exit(reader.returncode)
    reading = json.loads(told)
    ours = {name: row for name, row in peaks.items() if name in ("driver", "actor")}
    return {
        "rows": rows,
        "build": {
            "seconds": seconds,
            "processes": {name: asdict(row) | {"processes": len(row.processes)} for name, row in peaks.items()},
        },
        "read": reading,
        "targets": {
            f"every process of the build at most {AT_MOST_MIB} MiB": all(
                row.resident <= AT_MOST_MIB for row in peaks.values()
            ),
            f"driver and actors flat, within {GROWTH_MIB} MiB after a quarter of the rows": len(ours) == 2
            and all(row.late <= row.early + GROWTH_MIB for row in ours.values()),
            f"reader at most {AT_MOST_MIB} MiB": reading["resident"] <= AT_MOST_MIB,
        },
    }


def stage(name: str, folder: Path, rows: int) -> subprocess.Popen[str]:
    """Start a stage; Ray's workers find the teacher in this file."""
    command = [sys.executable, __file__, "--stage", name, "--folder", str(folder), "--rows", str(rows)]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})


def watch(process: subprocess.Popen[str]) -> dict[str, Peaks]:
    """Look at a process and all below it until it ends; it prints how many of its rows are done."""
    share = [0.0]

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            share[0] = float(line)

    threading.Thread(target=listen, daemon=True).start()
    peaks: dict[str, Peaks] = {}
    while process.poll() is None:
        for pid in (process.pid, *below(process.pid)):
            try:
                kind, memory = kind_of(pid), memory_of(pid)
            except (OSError, KeyError):  # it has ended
                continue
            peaks.setdefault("driver" if pid == process.pid else kind, Peaks()).take(pid, memory, share[0])
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return dict(sorted(peaks.items(), key=lambda item: -item[1].private))


def below(pid: int) -> Iterator[int]:
    """Children of all threads of a process, and theirs."""
    for child in _children(pid):
        yield child
        yield from below(child)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # the process has ended
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # one of its threads has
                found += map(int, path.read_text().split())
    return found


def kind_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").split()
    if not words:
        raise KeyError("ended")
    text = " ".join(words)
    if "ShardActor" in text:
        return "actor"
    if text.startswith("ray::"):
        return text[5:].split("(")[0].split(".")[0]
    if "python" not in Path(words[0]).name:
        return Path(words[0]).name
    script = next((word for word in words[1:] if word.endswith(".py")), words[0])
    return Path(script).stem


def memory_of(pid: int | str) -> dict[str, float]:
    """What the system says of a process's memory now, and as ``VmHWM`` of the most that was ever resident, in MiB."""
    texts = [Path(f"/proc/{pid}/{name}").read_text() for name in ("smaps_rollup", "status")]
    lines = (line.partition(":") for line in "".join(texts).splitlines())
    return {name: int(rest.split()[0]) / 1024 for name, _, rest in lines if rest.endswith(" kB")}


def build(folder: Path, rows: int) -> None:
    """Build the cache, telling the share of rows that is done."""
    from raydistill.config import parse_experiment
    from raydistill.teachers.cache.build import build_cache

    made = parse_experiment(experiment(folder, rows))
    build_cache(made, progress=lambda done, total: print(done / total, flush=True))


def read(folder: Path, rows: int) -> None:
    """Read all rows and tell the most memory that this process ever had."""
    from raydistill.teachers.cache.read import TeacherCache

    started = time.monotonic()
    (path,) = (folder / "cache").glob("*/")
    cache = TeacherCache.open(path)
    table = torch.from_numpy(cache.table(cache.ids, (0,), ["embedding"])["embedding"][0])
    seconds = time.monotonic() - started
    assert table.shape == (rows, WIDTH), table.shape
    assert float(table[:1000].float().std()) > 0
    told = {"resident": memory_of("self")["VmHWM"], "tensor": table.nbytes / MIB, "seconds": seconds}
    print(json.dumps(told))


def experiment(folder: Path, rows: int) -> dict[str, Any]:
    return {
        "name": "memory",
        "output": str(folder / "runs"),
        "data": {
            "name": "synthetic",
            "synthetic_size": rows,
            "synthetic_image_size": SIDE,
            "synthetic_channels": 1,
            "synthetic_classes": CLASSES,
        },
        "teacher": {"model": "memory:teacher", "batch_size": 1024},
        "student": {"model": "resnet8"},
        "methods": {"compress": {}},
        "cache": {"root": str(folder / "cache"), "outputs": ["embedding"]},
    }


if __name__ == "__main__":
    main()
