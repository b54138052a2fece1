"""Makes the folder of a sweep in today's layout: baseline, conditional keys, causes, finalists, students of sizes."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

from raydistill.reporting.runs import load_run
from raydistill.reporting.sweeps import Sweep
from tests.reporting.folders import config_of, history, leave

STUDENTS = {"resnet8": (78_042, 1.9), "resnet14": (175_258, 3.4), "resnet20": (272_474, 5.2)}
EPOCHS, RUNGS = 18, (2, 6)

SPACE: dict[str, Any] = {
    "student.model": {"choice": list(STUDENTS)},
    "train.optimizer.lr": {"loguniform": [0.003, 0.3]},
    "methods.kd.temperature": {"grid": [1, 2, 4, 8]},
    "methods.crd": {"choice": [True, False]},
    "methods.crd.negatives": {"logint": [64, 16384], "when": {"methods.crd": True}},
}

Row = dict[str, Any]


def make_search(folder: Path, trials: int = 32, *, mode: str = "max", finalists: bool = True) -> Path:
    """A sweep of which the learning rate decides, as ASHA would have left it; every eleventh trial fails."""
    noise = random.Random(3)
    config = config_of(folder.name, 0, ["ce", "kd", "crd"], epochs=EPOCHS)
    scheduler = {"name": "asha", "grace": 2, "reduction": 3}
    config["tune"] = {"metric": "val/top1", "mode": mode, "scheduler": scheduler, "space": SPACE}
    rows = [_row(number, noise) for number in range(trials)]
    folder.mkdir(parents=True)
    for row in rows:
        trial = folder / "trials" / row["trial"]
        trial.mkdir(parents=True)
        epochs = history(row["val/top1"] or 50.0, ["ce", "kd"], EPOCHS, int(row["trial"]))[: row["epochs"]]
        row["val/top1"] = epochs[-1]["val/top1"] if row["status"] != "failed" else None
        leave(trial, config, {}, epochs)
    write_rows(folder / "trials.csv", rows)
    result = {"kind": "tune", "name": folder.name, "seed": 0, "trials": trials, "teacher_forwards": 0}
    if finalists:
        result |= _repeat(folder, rows, noise)
    leave(folder, config, result, [])
    (folder / "_SUCCESS").touch()
    return folder


def sweep_of(
    folder: Path, space: dict[str, Any], cells: dict[str, list[str]], metric: list[float] | None = None
) -> Sweep:
    """A sweep of completed trials with these cells; the metric grows from trial to trial where it is not given."""
    count = len(next(iter(cells.values())))
    scores = metric or [60.0 + number for number in range(count)]
    rows = [
        {"trial": f"{number:04d}", "status": "completed", "epochs": 3, "val/top1": scores[number]}
        | {name: column[number] for name, column in cells.items()}
        for number in range(count)
    ]
    sweep = load_run(leave_sweep(folder, space, rows)).sweep
    assert sweep is not None
    return sweep


def leave_sweep(folder: Path, space: dict[str, Any], rows: list[Row], mode: str = "max") -> Path:
    """The folder of a sweep whose ``trials.csv`` has these rows, and of which nothing else is kept."""
    folder.mkdir(parents=True)
    config = config_of(folder.name, 0, ["kd"], epochs=EPOCHS)
    config["tune"] = {"metric": "val/top1", "mode": mode, "space": space}
    write_rows(folder / "trials.csv", rows)
    leave(folder, config, {"kind": "tune", "name": folder.name}, [])
    (folder / "_SUCCESS").touch()
    return folder


def write_rows(file: Path, rows: list[Row]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _row(number: int, noise: random.Random) -> Row:
    is_baseline = number == 0
    student = "resnet8" if is_baseline else noise.choice(list(STUDENTS))
    lr = 0.05 if is_baseline else math.exp(noise.uniform(math.log(0.003), math.log(0.3)))
    crd = is_baseline or noise.random() < 0.5
    size, latency = STUDENTS[student]
    top1 = 60 + 7 * math.log10(size / 78_042) - 5 * math.log10(lr / 0.06) ** 2 + 1.2 * crd + noise.gauss(0, 0.4)
    failed = number % 11 == 5
    epochs = EPOCHS if top1 > 61.2 or is_baseline else RUNGS[1] if top1 > 59 else RUNGS[0]
    return {
        "trial": f"{number:04d}",
        "status": "failed" if failed else "completed" if epochs == EPOCHS else "stopped",
        "epochs": 1 if failed else epochs,
        "val/top1": top1,
        "seconds": 37.5 * epochs,
        "seed": 0,
        "cause": "CUDA out of memory: tried to allocate 2.4 GiB" if failed else "",
        "parameters": size,
        "latency_ms": latency + noise.gauss(0, 0.05),
        "student.model": student,
        "train.optimizer.lr": lr,
        "methods.kd.temperature": 4 if is_baseline else noise.choice([1, 2, 4, 8]),
        "methods.crd": crd,
        "methods.crd.negatives": 1024 if is_baseline else int(2 ** noise.uniform(6, 14)) if crd else "",
    }


def _repeat(folder: Path, rows: list[Row], noise: random.Random) -> Row:
    """Three seeds for each of the best three; returns what the result says about them."""
    ended = [row for row in rows if row["val/top1"] is not None]
    first = [row["trial"] for row in sorted(ended, key=lambda row: -row["val/top1"])[:3]]
    again = [
        {"trial": trial, "seed": seed, "val/top1": 64 - place / 4 + noise.gauss(0, 0.4)}
        for place, trial in enumerate(first)
        for seed in range(3)
    ]
    write_rows(folder / "finalists.csv", again)
    means = {trial: sum(row["val/top1"] for row in again if row["trial"] == trial) / 3 for trial in first}
    best, second = sorted(first, key=lambda trial: -means[trial])[:2]
    return {"best_trial": best, "tie": True, "tie_with": [second]}


def say(folder: Path, **result: Any) -> None:
    """Change what ``result.json`` says."""
    file = folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | result))
