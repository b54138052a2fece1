"""How much memory the trials of a sweep share.

    python experiments/benchmarks/sweep_memory.py [--trials 16] [--images 70000] [--json]

So many trials are alive at once, each of which has seen all images and teacher rows. Proportional set size (PSS)
counts a page of n processes as an nth of a page each, so the sum over all processes is what the machine holds. The
same sweep with a quarter of the images shows what of it is data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from stages import SLOTS, history_of, obey, stage

MIB = 2**20
WIDTH, SIDE, FEWER = 512, 32, 4
AT_MOST_OF_DATA = 1.25


def main() -> None:
    """Weigh the same sweep twice, and a process that has imported torch alone; print."""
    obey({"rows": rows, "weighed": weighed, "torch": torch_alone})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--images", type=int, default=70_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(folder, options.trials, options.images)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


def measured(folder: str, trials: int, images: int) -> dict[str, Any]:
    """Return MiB of both sweeps, and what the data's part in them is."""
    found = {}
    for name, count in (("few", images // FEWER), ("many", images)):
        given = {"folder": f"{folder}/{name}", "images": count, "trials": trials}
        stage("rows", **given)  # in a Ray of its own, which holds images too
        found[name] = stage("weighed", **given)
    data = found["many"]["data"] - found["few"]["data"]
    grown = found["many"]["trials and store"] - found["few"]["trials and store"]
    return {
        "trials": trials,
        **found,
        "torch alone": stage("torch"),
        "data": data,
        "grown": grown,
        "copies": trials * data,
        "met": grown <= AT_MOST_OF_DATA * data,
    }


def show(found: Mapping[str, Any]) -> None:
    """Print the table."""
    print(f"{found['trials']} trials alive at once, MiB{'a quarter':>23}{'all images':>14}")
    for name in found["few"]:
        print(f"{name:<38}{found['few'][name]:>14.1f}{found['many'][name]:>14.1f}")
    print(f"a process that has imported torch: {found['torch alone']:.0f} MiB of its own")
    print(
        f"{found['data']:.0f} MiB more of data make trials and store together grow by {found['grown']:.0f} MiB,",
        end=" ",
    )
    print(f"where a copy for each would be {found['copies']:.0f}: {'met' if found['met'] else 'MISSED'}")


def teacher(num_classes: int, in_channels: int) -> Any:
    """A layer of 512 units on the pixels, the same in every process."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perceptron(torch.nn.Flatten(), in_channels * SIDE * SIDE, WIDTH, num_classes)


def student(num_classes: int, in_channels: int) -> Any:
    """A small student, so that all trials come through all images soon."""
    import torch

    pooled = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    return perceptron(pooled, in_channels * (SIDE // 4) ** 2, 64, num_classes)


def perceptron(first: Any, inputs: int, width: int, classes: int) -> Any:
    """Two layers behind another one."""
    from torch import nn

    return nn.Sequential(first, nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


class Weighed(Exception):  # noqa: N818  no error
    """All that was wanted of a sweep is known."""


def large(folder: str, images: int, trials: int) -> Any:
    """A sweep whose trials take little time for all images."""
    from raydistill.config import parse_experiment

    return parse_experiment(
        {
            "name": "memory",
            "output": folder,
            "data": {
                "name": "synthetic",
                "synthetic_size": images,
                "synthetic_image_size": SIDE,
                "synthetic_channels": 3,
                "synthetic_classes": 10,
                "validation": 0.1,
            },
            "teacher": {"model": "sweep_memory:teacher", "batch_size": 512},
            "student": {"model": "sweep_memory:student"},
            "methods": {"compress": {"queue": 2048, "queues": "1q"}},
            "train": {"epochs": 1000, "batch_size": 256},
            "cache": {"root": f"{folder}/cache", "outputs": ["embedding"]},
            "tune": {
                "samples": trials - 1,
                "concurrent": trials,
                "cpus_per_trial": SLOTS / trials,
                "scheduler": {"name": "none"},
                "space": {"train.optimizer.lr": {"loguniform": [1e-4, 1e-3]}},
            },
        }
    )


def rows(folder: str, images: int, trials: int) -> int:
    """Build the teacher's cache."""
    from raydistill import build_cache

    return build_cache(large(folder, images, trials)).rows


def weighed(folder: str, images: int, trials: int) -> dict[str, float]:
    """Weigh all processes of a sweep once every trial has seen all images, in MiB; then leave it."""
    import raydistill

    found: dict[str, float] = {}

    def watch(folder: Any) -> None:
        if sum(bool(history_of(path)) for path in (folder.path / "trials").glob("*")) == trials:
            found.update(memory_of_all(trials))
            raise Weighed

    with suppress(Weighed):
        raydistill.tune(large(folder, images, trials), watch=watch)
    return {"data": (3 * SIDE * SIDE * images + 2 * WIDTH * int(0.9 * images)) / MIB, **found}


def memory_of_all(trials: int) -> dict[str, float]:
    """What this process and all below it hold."""
    from memory import below, kind_of, memory_of

    kinds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for pid in (os.getpid(), *below(os.getpid())):
        try:
            kinds["driver" if pid == os.getpid() else kind_of(pid)].append(memory_of(pid))
        except (OSError, KeyError):  # it has ended
            continue
    mine = kinds.pop("ImplicitFunc")
    assert len(mine) == trials, {kind: len(found) for kind, found in kinds.items()}
    everybody = [found for several in (*kinds.values(), mine) for found in several]
    private = [found["Pss_Anon"] for found in mine]
    store = sum(found["Pss_Shmem"] for found in everybody)
    return {
        "one trial's own (mean)": statistics.mean(private),
        "one trial's own (most)": max(private),
        "all trials' own": sum(private),
        "all trials' part of libraries": sum(found["Pss_File"] for found in mine),
        "store, mapped by all": store,
        "one trial maps of it (mean)": statistics.mean(found["Rss"] - found["Pss_Anon"] for found in mine),
        "trials and store": sum(private) + sum(found["Pss_File"] for found in mine) + store,
        "the driver's own": kinds["driver"][0]["Pss_Anon"],
    }


def torch_alone() -> float:
    """MiB of this process's own once torch is there."""
    import torch  # noqa: F401
    from memory import memory_of

    return memory_of("self")["Pss_Anon"]


if __name__ == "__main__":
    main()
