"""What the ways to read a cache hold in memory: two workers that share a table, and one that streams it.

    python experiments/benchmarks/sharing.py [--quick] [--json]

Proportional set size (PSS) counts a page of two processes as half a page of each; since the object store's own process
maps the table as well, two workers grow by two thirds of it. Of the worker that streams, the peak of its memory is
compared between a table and one four times as large, over as many steps; what is left of a difference are the images'
ids. The tasks that read for it come and go, and map no more than half a gigabyte of shards at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydistill.cluster import ensure_ray
from raydistill.data.augment_config import AugmentConfig
from raydistill.methods.base import Needs
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.rows import HeldRows, StoredRows
from raydistill.teachers.source import CachedTeacher
from raydistill.training.feeding import Supply
from raydistill.training.requests import Plan
from raydistill.training.streaming import Reading, stream

MIB = 2**20
WIDTH, BATCH, STEPS = 512, 256, 64
AT_MOST_OF_TWO, AT_MOST_GROWTH_MIB = 1.25, 32.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller tables")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    given = parser.parse_args()
    images = 1 << (16 if given.quick else 18)
    ensure_ray(num_cpus=2)
    found = {"shared": shared(images), "stream": [streamed(images), streamed(4 * images)]}
    if given.json:
        print(json.dumps(found))
        return
    pair, (small, large) = found["shared"], found["stream"]
    growth, size = large["peak_mib"] - small["peak_mib"], pair["table_mib"]
    print(f"two workers that share a table of {size:.0f} MiB grow by {pair['grown_mib']:.0f} MiB together", end=", ")
    print("met" if pair["grown_mib"] < AT_MOST_OF_TWO * size else "MISSED")
    for row in (small, large):
        print(
            f"a worker that streams a table of {row['table_mib']:.0f} MiB takes {row['peak_mib']:.0f} MiB at its peak"
        )
    print(f"difference: {growth:.0f} MiB, {'met' if growth < AT_MOST_GROWTH_MIB else 'MISSED'}")


def shared(images: int) -> dict[str, float]:
    """PSS of two processes that gather every row of one table, less what they had before."""
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        """Gathers as a worker or trial with ``cache.read=shared`` does."""

        def pss(self) -> float:
            return memory_of(os.getpid(), "smaps_rollup", "Pss")

        def gather(self, table: Any, count: int) -> None:
            self.rows = HeldRows(table, (0,), "cpu")
            for positions in torch.arange(count).split(BATCH):
                self.rows.take(["embedding"], positions, None)

    table = {"embedding": made_up(images)[None]}
    workers = [Worker.remote() for _ in range(2)]
    warm = ray.put({"embedding": made_up(BATCH)[None]})
    ray.get([worker.gather.remote(warm, BATCH) for worker in workers])  # imports, before anything is counted
    before = sum(ray.get([worker.pss.remote() for worker in workers]))
    reference = ray.put(table)
    ray.get([worker.gather.remote(reference, images) for worker in workers])
    after = sum(ray.get([worker.pss.remote() for worker in workers]))
    for worker in workers:
        ray.kill(worker)
    return {"table_mib": table["embedding"].nbytes / MIB, "grown_mib": after - before}


def streamed(images: int) -> dict[str, float]:
    """Peak memory of a process that streams rows of random images."""
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        """Takes steps as a worker with ``cache.read=stream`` does."""

        def run(self, rows: StoredRows) -> float:
            needs = Needs(teacher={0: frozenset({"embedding"})})
            plan = Plan(torch.arange(images), 0, 0, 0, AugmentConfig(), (1, 1))
            reading = Reading(Supply({}, {0: CachedTeacher(rows, needs)}), plan, 0, needs)
            order = torch.randperm(images)[: STEPS * BATCH].split(BATCH)
            taken = sum(len(columns["0/0/embedding"]) for columns in stream(reading, list(order), readers=1))
            assert taken == STEPS * BATCH
            return memory_of(os.getpid(), "status", "VmHWM")

    with tempfile.TemporaryDirectory() as folder:
        rows = StoredRows.of(written(images, Path(folder)), torch.arange(images), ["embedding"])
        worker = Worker.remote()
        peak = ray.get(worker.run.remote(rows))
        ray.kill(worker)
    return {"table_mib": images * WIDTH * 2 / MIB, "peak_mib": peak}


def written(images: int, root: Path) -> TeacherCache:
    """Write a cache of made-up rows."""
    from cache import content_of, stored

    rows = {"embedding": made_up(images).astype(np.float32)}
    return stored(content_of(rows), rows, root)


def made_up(images: int) -> Any:
    """Rows without zero pages, float16 [N, 512]."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((images, WIDTH), dtype=np.float32).astype(np.float16)


def memory_of(pid: int, file: str, name: str) -> float:
    """Return what the kernel says of a process in MiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
