"""What a student loses by learning from a cache instead of a live teacher. Prints tables of docs/benchmarks.md.

    python experiments/fashion-mnist/cached.py views kd            # how many replayed views it needs; seeds 0 to 2
    python experiments/fashion-mnist/cached.py views compress      # the same without labels, judged by k-NN
    python experiments/fashion-mnist/cached.py formats kd          # what the formats of the cache cost it
    python experiments/fashion-mnist/cached.py views kd --seeds 5

Training is the time of all epochs of the fastest seed, without start-up. Finished runs and caches are kept and only
read, so an interrupted table goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from running import HERE, teacher, trained

from raydistill import build_cache, load_experiment
from raydistill.config import Experiment
from raydistill.display import rows

METHODS = {"kd": (), "compress": ("methods.ce=null",)}
TABLES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "views": {
        "live teacher": ("cache.views=0", "teacher.source=live"),
        "evaluation view": ("cache.views=0",),
        "1 view": ("cache.views=1",),
        "2 views": ("cache.views=2",),
        "4 views": ("cache.views=4",),
        "8 views": ("cache.views=8",),
    },
    "formats": {
        "float32": ("cache.dtype=float32",),
        "float16": (),
        "float16 zstd": ("cache.compression=zstd",),
        "int8": ("cache.dtype=int8",),
        "float16 top 3": ("cache.top_k=3",),
    },
}


def main() -> None:
    """Run what is missing and print; differences are from the table's first row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    teacher()
    table: dict[str, list[dict[str, Any]]] = {row: [] for row in TABLES[given.table]}
    for seed in range(given.seeds):  # so that a busy hour of the machine falls on every row
        for row, settings in TABLES[given.table].items():
            table[row].append(_run(given.method, row, settings, seed))
    print(_markdown(table))


def _run(method: str, row: str, settings: Sequence[str], seed: int) -> dict[str, Any]:
    """Train one student; seconds are those of its epochs and of the cache's build, the latter with start-up."""
    named = [f"seed={seed}", f"name=cached-{method}-{row.replace(' ', '-')}-seed{seed}"]
    experiment = load_experiment(HERE / f"{method}.yaml", [*METHODS[method], *settings, *named])
    cache = {} if row == "live teacher" else _cached(experiment)
    result = trained(experiment)
    epochs = [json.loads(line) for line in Path(result["run"], "metrics.jsonl").read_text().splitlines()]
    return {"top1": result["top1"], "training": sum(epoch["seconds"] for epoch in epochs), **cache}


def _cached(experiment: Experiment) -> dict[str, float]:
    """Return the size of the cache and, where this script built it, the seconds that took for all methods and seeds."""
    with rows("teacher") as progress:
        built = build_cache(experiment, progress=progress)
    note = Path(experiment.output, f"{Path(built.path).name}.json")
    if built.computed_rows:
        note.write_text(json.dumps({"seconds": built.seconds}))
    size = {"bytes": built.bytes_per_row * (experiment.cache.views + 1)}
    if not note.is_file():  # built by something else
        return size
    return size | {"caching": float(json.loads(note.read_text())["seconds"])}


def _markdown(table: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    reference = mean(run["top1"] for run in next(iter(table.values())))
    lines = [
        "| Teacher's outputs | Top-1 (%) | Std | Difference | Bytes an image | Caching, once (s) | Training (s) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, runs in table.items():
        top1 = [run["top1"] for run in runs]
        spread = f"{stdev(top1):.2f}" if len(top1) > 1 else "-"
        size, once = (f"{runs[0][name]:.0f}" if name in runs[0] else "-" for name in ("bytes", "caching"))
        seconds = min(run["training"] for run in runs)
        lines.append(
            f"| {row} | {mean(top1):.2f} | {spread} | {mean(top1) - reference:+.2f} | {size} | {once} | {seconds:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
