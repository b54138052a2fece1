"""Makes run folders as training and sweeps leave them behind."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

METHODS: dict[str, dict[str, Any]] = {
    "ce": {"weight": 1.0},
    "kd": {"weight": 1.0, "temperature": 4.0},
    "crd": {"weight": 0.8, "temperature": 0.1},
}


def config_of(name: str, seed: int, methods: Sequence[str], model: str = "resnet8", epochs: int = 8) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "data": {"name": "digits", "root": "somewhere", "validation": 0.1},
        "teacher": {"model": "wrn_16_2", "weights": "runs/teacher/model.safetensors"},
        "student": {"model": model},
        "methods": {label: METHODS.get(label, {"weight": 1.0}) for label in methods},
        "train": {"epochs": epochs, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.05}},
    }


def history(top1: float, methods: Sequence[str], epochs: int, seed: int = 0) -> list[dict[str, float]]:
    noise = random.Random(f"{seed}{methods}{top1}")
    rows = []
    for epoch in range(1, epochs + 1):
        left = math.exp(-epoch / 2.5)
        terms = {
            f"train/{label}": (2.0 - 0.4 * number) * (0.3 + left) + noise.random() / 20
            for number, label in enumerate(methods)
        }
        rows.append(
            {
                "epoch": epoch,
                "train/loss": sum(terms.values()),
                **terms,
                "val/top1": top1 * (1 - left) + noise.gauss(0, 0.4),
                "images_per_s": 3100 + noise.gauss(0, 40),
                "seconds": 4.2,
                "lr": 0.05 * left,
            }
        )
    return rows


def make_run(
    folder: Path,
    top1: float | None,
    methods: Sequence[str] = ("ce",),
    *,
    name: str | None = None,
    seed: int = 0,
    kind: str = "train",
    model: str = "resnet8",
    epochs: int = 8,
    card: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    folder.mkdir(parents=True)
    name = name or folder.name
    result = {
        "kind": kind, "name": name, "seed": seed, "top1": top1, "val_top1": top1, "epochs": epochs, "seconds": 33.6,
        "teacher_forwards": 0, "methods": list(methods), "student": model,
    }  # fmt: skip
    resolved = config_of(name, seed, methods, model, epochs) | config
    if kind == "teacher":
        del resolved["teacher"]
    leave(folder, resolved, result, history(top1 or 50.0, methods, epochs, seed))
    if card is not None:
        (folder / "card.json").write_text(json.dumps(card))
    (folder / "_SUCCESS").touch()
    return folder


def make_sweep(folder: Path, trials: int = 16, mode: str = "max", name: str | None = None) -> Path:
    folder.mkdir(parents=True)
    name = name or folder.name
    noise = random.Random(7)
    config = config_of(name, 0, ["ce", "kd"])
    config["tune"] = {
        "metric": "val/top1",
        "mode": mode,
        "space": {
            "train.optimizer.lr": {"loguniform": [0.003, 0.3]},
            "methods.kd.temperature": {"uniform": [1.0, 10.0]},
            "train.optimizer.name": {"choice": ["sgd", "adamw"]},
        },
    }
    rows = []
    for number in range(trials):
        lr = math.exp(noise.uniform(math.log(0.003), math.log(0.3)))
        top1 = 72.0 - 4 * math.log10(lr / 0.04) ** 2 + noise.gauss(0, 0.7)
        status = "failed" if number == 5 else "stopped" if top1 < 70.5 else "completed"
        epochs = {"failed": 0, "stopped": 2}.get(status, 8)
        metrics = history(top1, ["ce", "kd"], epochs, number)
        rows.append(
            {
                "trial": f"{number:05d}",
                "status": status,
                "epochs": epochs,
                "val/top1": metrics[-1]["val/top1"] if metrics else None,
                "seconds": 4.2 * epochs,
                "seed": 0,
                "train.optimizer.lr": lr,
                "methods.kd.temperature": noise.uniform(1, 10),
                "train.optimizer.name": noise.choice(["sgd", "adamw"]),
            }
        )
        (folder / "trials" / f"{number:05d}").mkdir(parents=True)
        leave(folder / "trials" / f"{number:05d}", config, {}, metrics)
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    leave(folder, config, {"kind": "tune", "name": name, "seed": 0, "teacher_forwards": 0, "trials": trials}, [])
    (folder / "_SUCCESS").touch()
    return folder


def make_demo(root: Path) -> list[Path]:
    """A teacher, a sweep, and three seeds each of the student alone and of two distilled ones."""
    student = {
        "top1": 72.4,
        "top5": 97.1,
        "nn1": 68.0,
        "knn": 70.2,
        "parameters": 78042,
        "mult_adds": 12400000,
    }
    teacher = {
        "top1": 78.1,
        "top5": 98.4,
        "nn1": 75.0,
        "knn": 77.2,
        "parameters": 691674,
        "mult_adds": 101000000,
    }
    card = {
        "student": student | {"latency_p50_ms": 1.42, "latency_p95_ms": 1.9},
        "teacher": teacher | {"latency_p50_ms": 4.8, "latency_p95_ms": 5.31},
    }
    paths = [make_run(root / "teacher", 78.1, kind="teacher", model="wrn_16_2"), make_sweep(root / "sweep")]
    scores = {("ce",): 68.2, ("ce", "kd"): 71.1, ("ce", "crd"): 72.3}
    for methods, top1 in scores.items():
        for seed, offset in enumerate((-0.5, 0.1, 0.4)):
            name = f"{'-'.join(methods)}-{seed}"
            shown = card if name == "ce-crd-2" else None
            paths.append(make_run(root / name, top1 + offset, methods, seed=seed, card=shown))
    return paths


def leave(folder: Path, config: dict[str, Any], result: dict[str, Any], metrics: list[dict[str, float]]) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "environment.json").write_text(
        json.dumps(
            {
                "python": "3.11.7",
                "command": ["raydistill", "train"],
                "packages": {"torch": "2.15.0", "ray": None},
            }
        )
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if result:
        (folder / "result.json").write_text(json.dumps(result))
