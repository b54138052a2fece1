"""ASHA against whole grids: how good a configuration it finds, and for how much of the training.

    python experiments/benchmarks/asha.py [--images 2000 --held-out 2000] [--seeds 0 1 2] [--fresh 16] [--folder FOLDER]

On Fashion-MNIST, with the same seeds and so the same trials. How far ASHA's choice is from the grid's best is told by
the runs of that one seed, and by what configurations are worth, which is their mean over the grids of all seeds. The
best of 28 runs owes much to its seed, so the configuration that one grid would choose is held against the best mean,
too. What chose should not judge: with ``--fresh`` all configurations that were chosen are trained anew with so many
further seeds, and compared seed by seed. Sweeps that are finished are not repeated where ``--folder`` still has them,
and one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stages import SLOTS, history_of, obey, stage

REGRET, SHARE = 0.2, 0.25
TRAINING_IMAGES = 60_000
FRESH = 1000  # further seeds begin behind it
GRID = {
    "methods.kd.weight": [0.3, 0.9, 3.0],
    "methods.kd.temperature": [2.0, 4.0, 8.0],
    "train.optimizer.lr": [0.005, 0.02, 0.08],
}


@dataclass(frozen=True)
class Task:
    """Distillation from a cached resnet14.

    Attributes:
        root: the files of Fashion-MNIST.
        folder: of teacher, cache and sweeps.
        images: that each trial trains on.
        held_out: images that it is judged by.
        epochs: of a trial that is not stopped.
        ema: decay of the students' averages that are judged, 0 for the students themselves.
        precision: of the students' training.
        schedule: of their learning rate.
    """

    root: str
    folder: str
    images: int
    held_out: int
    epochs: int
    ema: float
    precision: str
    schedule: str

    def experiment(self, name: str, **more: Any) -> Any:
        """Describe a run, or a sweep where ``more`` says so; its name tells the task."""
        from raydistill.config import parse_experiment

        size = f"{self.images}-{self.held_out}-{self.epochs}-{self.ema:g}-{self.precision}-{self.schedule}"
        average = {"ema": {"decay": self.ema}} if self.ema else {}
        return parse_experiment(
            {
                "name": f"{name}-{size}",
                "output": self.folder,
                "data": {
                    "name": "fashion_mnist",
                    "root": self.root,
                    "subset": self.images + self.held_out,
                    "validation": self.held_out / (self.images + self.held_out),
                },
                "teacher": {"model": "resnet14", "weights": f"{self.folder}/teacher/model.safetensors"},
                "student": {"model": "resnet8"},
                "methods": {"ce": {}, "kd": {}},
                "train": {
                    "epochs": self.epochs,
                    "batch_size": 32,
                    "optimizer": {"lr": 0.05},
                    "precision": self.precision,
                    "schedule": {"name": self.schedule},
                    **average,
                },
                "cache": {"root": f"{self.folder}/cache", "outputs": ["logits"]},
                **more,
            }
        )


def main() -> None:
    """Run the grid and ASHA for each seed, and print."""
    obey({"cached": cached, "swept": swept, "repeated": repeated})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="/usr/share/datasets/fashion-mnist", help="the files of Fashion-MNIST")
    parser.add_argument("--images", type=int, default=2000, help="that a trial trains on")
    parser.add_argument("--held-out", type=int, default=2000, help="images that it is judged by")
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--reduction", type=int, default=3)
    parser.add_argument("--grace", type=int, default=2, help="epochs that ASHA lets every trial have")
    parser.add_argument("--ema", type=float, default=0.0, help="judge averages of the students, of this decay")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--schedule", choices=["cosine", "constant"], default="cosine", help="of the learning rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fresh", type=int, default=0, help="how many further seeds judge what was chosen")
    parser.add_argument("--folder", type=Path, help="where the sweeps are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = str((options.folder or Path(folder)).resolve())
        told = {name: getattr(options, name) for name in Task.__dataclass_fields__ if name != "folder"}
        task = Task(folder=kept, **told)
        found = measured(task, options)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


def measured(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the sweeps of each seed found, and what follows of all."""
    forwards = stage("cached", **asdict(task))
    stopping = {"name": "asha", "reduction": options.reduction, "grace": options.grace}
    rungs = rungs_of(task.epochs, options.reduction, options.grace)
    rows = []
    for seed in options.seeds:
        grid, asha = (
            stage("swept", **asdict(task), seed=seed, scheduler=scheduler) for scheduler in ({"name": "none"}, stopping)
        )
        rows.append({**compared(seed, grid, asha), "foretold": foretold(grid, rungs)})
        print(row_of(rows[-1]), file=sys.stderr, flush=True)
    regret, share = (statistics.mean(row[name] for row in rows) for name in ("regret", "share"))
    found = of_configurations(rows)
    fresh = judged_anew(found, rows[0]["values"], task, options.fresh) if options.fresh else None
    return {
        "seeds": rows,
        "regret": regret,
        "share": share,
        **found,
        "fresh": fresh,
        "met": {
            "single runs": regret <= REGRET and share <= SHARE,
            "means": found["asha_regret"] <= REGRET and share <= SHARE,
            **({"fresh seeds": fresh["asha_regret"] <= REGRET and share <= SHARE} if fresh else {}),
        },
        "forwards": {
            "cached": forwards,
            "live": sum(row["seen"] for row in rows),
            "in trials": sum(row["forwards"] for row in rows),
        },
    }


def compared(seed: int, grid: Mapping[str, Any], asha: Mapping[str, Any]) -> dict[str, Any]:
    """Hold ASHA's choice against the grid's best, both by what the grid found."""
    assert all(grid["trials"][name]["values"] == trial["values"] for name, trial in asha["trials"].items())
    metrics = {name: trial["metric"] for name, trial in grid["trials"].items()}
    return {
        "seed": seed,
        "metrics": metrics,
        "values": {name: trial["values"] for name, trial in grid["trials"].items()},
        "choice": asha["best_trial"],
        "best": max(metrics.values()),
        "chosen": metrics[asha["best_trial"]],
        "regret": max(metrics.values()) - metrics[asha["best_trial"]],
        "spread": statistics.pstdev(metrics.values()),
        "grid_epochs": grid["epochs"],
        "asha_epochs": asha["epochs"],
        "share": asha["epochs"] / grid["epochs"],
        "same": all(
            trial["metric"] == metrics[name] for name, trial in asha["trials"].items() if trial["status"] == "completed"
        ),
        "grid_seconds": grid["seconds"],
        "asha_seconds": asha["seconds"],
        "seen": grid["seen"] + asha["seen"],
        "forwards": grid["forwards"] + asha["forwards"],
    }


def of_configurations(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the best configuration, by its mean over all seeds, has over ASHA's choices and over single grids' ones."""
    worth = {name: statistics.mean(row["metrics"][name] for row in rows) for name in rows[0]["metrics"]}
    choices = {
        "asha": [row["choice"] for row in rows],
        "grid": [max(row["metrics"], key=row["metrics"].__getitem__) for row in rows],
    }
    lost = {who: [max(worth.values()) - worth[name] for name in names] for who, names in choices.items()}
    means = {f"{who}_regret": statistics.mean(values) for who, values in lost.items()}
    return {"worth": worth, "choices": choices, "lost": lost, **means}


def judged_anew(
    found: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]], task: Task, seeds: int
) -> dict[str, Any]:
    """Train what was chosen with seeds that chose nothing; the best mean's metric less choices', seed by seed."""
    best = max(found["worth"], key=found["worth"].__getitem__)
    chosen = {best, *found["choices"]["asha"], *found["choices"]["grid"]}
    metrics = {name: stage("repeated", **asdict(task), values=values[name], seeds=seeds) for name in sorted(chosen)}
    short = {name: [a - b for a, b in zip(metrics[best], metrics[name], strict=True)] for name in metrics}
    told: dict[str, Any] = {"best": best, "metrics": metrics}
    for who, names in found["choices"].items():
        of_seeds = [statistics.mean(of_names) for of_names in zip(*(short[name] for name in names), strict=True)]
        told[f"{who}_regret"] = statistics.mean(of_seeds)
        told[f"{who}_error"] = statistics.stdev(of_seeds) / seeds**0.5
    return told


def rungs_of(epochs: int, reduction: int, grace: int) -> list[int]:
    """Epochs after which ASHA decides."""
    rungs = [grace]
    while rungs[-1] * reduction < epochs:
        rungs.append(rungs[-1] * reduction)
    return rungs


def foretold(grid: Mapping[str, Any], rungs: Sequence[int]) -> dict[int, float]:
    """Epoch of each rung -> correlation over the grid's trials between their values there and at the end.

    Where it is near 0, whoever decides at that rung decides by chance.
    """
    ends = [trial["metric"] for trial in grid["trials"].values()]
    return {
        rung: statistics.correlation([trial["curve"][rung - 1] for trial in grid["trials"].values()], ends)
        for rung in rungs
    }


def row_of(row: Mapping[str, Any]) -> str:
    """One line of the table."""
    return (
        f"{row['seed']:>4}{row['best']:>12.2f}{row['chosen']:>15.2f}{row['regret']:>8.2f}"
        f"{row['grid_epochs']:>13}{row['asha_epochs']:>13}{row['share']:>8.1%}"
        f"{row['grid_seconds']:>14.0f} s{row['asha_seconds']:>14.0f} s   {'yes' if row['same'] else 'NO'}"
    )


def show(found: Mapping[str, Any]) -> None:
    """Print the table."""
    print(
        "seed  grid's best  ASHA's choice  regret  grid epochs  ASHA epochs  share  grid training  ASHA training  same"
    )
    for row in found["seeds"]:
        print(row_of(row))
    print(f"by the runs of each seed ASHA's choice is {found['regret']:.2f} points short of the best, on average")
    print("by configurations' means over the seeds (the best has", end=" ")
    print(f"{max(found['worth'].values()):.2f}), one grid's choice and ASHA's are short by")
    for row, grid, asha in zip(found["seeds"], found["lost"]["grid"], found["lost"]["asha"], strict=True):
        print(f"{row['seed']:>4}{grid:>12.2f}{asha:>12.2f}")
    print(
        f"mean{found['grid_regret']:>12.2f}{found['asha_regret']:>12.2f}, for {found['share']:.1%} of the epochs",
    )
    if fresh := found["fresh"]:
        for name, metrics in fresh["metrics"].items():
            spread = statistics.stdev(metrics)
            print(f"{len(metrics)} fresh seeds of {name}: {statistics.mean(metrics):.2f}, each run +- {spread:.2f}")
        grid, asha = (f"{fresh[f'{who}_regret']:.2f} +- {fresh[f'{who}_error']:.2f}" for who in ("grid", "asha"))
        print(f"by these {fresh['best']}, the best mean, is above one grid's choice by {grid}, above ASHA's by {asha}")
    judged = ", ".join(f"by {how} {'met' if met else 'MISSED'}" for how, met in found["met"].items())
    print(f"wanted {REGRET} for {SHARE:.0%}: {judged}")
    for row in found["seeds"]:
        told = ", ".join(f"{value:.2f} after {rung} epochs" for rung, value in row["foretold"].items())
        print(f"seed {row['seed']}: a trial's value and its last one correlate by {told}")
    counted = found["forwards"]
    print(
        f"images through the teacher: {counted['cached']} for the cache and {counted['in trials']} in all trials; "
        f"without a cache {counted['live']}"
    )


def cached(**given: Any) -> int:
    """Train a teacher and build its cache; return how many images went through it for that, now or before."""
    from raydistill import build_cache, train_teacher

    task = Task(**given)
    experiment = replace(task, ema=0.0).experiment("cache")
    if not Path(f"{task.folder}/teacher/_SUCCESS").is_file():
        total = task.images + task.held_out
        subset = min(4 * total, TRAINING_IMAGES)
        more = {"name": "teacher", "data.subset": subset, "data.validation": 0.1, "train.epochs": 4}
        train_teacher(experiment.override(more))
    told = Path(task.folder) / "forwards.json"
    report = build_cache(experiment)
    before = json.loads(told.read_text()) if told.is_file() else 0
    told.write_text(json.dumps(before + report.forwards))
    return before + report.forwards


def swept(*, seed: int, scheduler: dict[str, Any], **given: Any) -> dict[str, Any]:
    """Run a sweep, or what is left of it."""
    task = Task(**given)
    tune = {
        "samples": 1,
        "concurrent": SLOTS,
        "scheduler": scheduler,
        "space": {key: {"grid": values} for key, values in GRID.items()},
    }
    stopping = "grid" if scheduler["name"] == "none" else "asha-{reduction}-{grace}".format(**scheduler)
    experiment = task.experiment(f"{stopping}-{seed}", seed=seed, tune=tune)
    result = finished(experiment)
    trials, spent, seconds = {}, 0, 0.0
    for path in sorted((experiment.folder / "trials").iterdir()):
        record, history = json.loads((path / "trial.json").read_text()), history_of(path)
        curve = [epoch["val/top1"] for epoch in history]
        trials[path.name] = {**{key: record[key] for key in ("values", "status")}, "metric": curve[-1], "curve": curve}
        spent, seconds = spent + len(history), seconds + sum(epoch["seconds"] for epoch in history)
    return {
        "best_trial": result["best_trial"],
        "trials": trials,
        "epochs": spent,
        "seconds": seconds,
        "seen": spent * task.images,
        "forwards": result["teacher_forwards"],
    }


def finished(experiment: Any) -> Mapping[str, Any]:
    """Run a sweep, or what is left of it, and return its result."""
    import raydistill
    from raydistill.training.run_folder import CONFIG

    return raydistill.tune(experiment, resume=(experiment.folder / CONFIG).is_file())


def repeated(*, values: Mapping[str, float], seeds: int, **given: Any) -> list[float]:
    """Train one configuration with so many seeds that no grid had, by a sweep that repeats its only finalist."""
    import pandas as pd

    told = "-".join(f"{value:g}" for value in values.values()) or "as-it-stands"
    described = Task(**given).experiment(f"fresh-{told}-{seeds}", seed=FRESH).override(dict(values))
    own = described.methods["kd"].weight
    tune = {
        "samples": 1,
        "concurrent": SLOTS,
        "scheduler": {"name": "none"},
        "repeats": seeds,
        "finalists": 1,
        "space": {"methods.kd.weight": {"grid": [own]}},
    }
    experiment = described.override({"tune": tune})
    finished(experiment)
    return list(pd.read_csv(experiment.folder / "finalists.csv").sort_values("seed")["val/top1"])


if __name__ == "__main__":
    main()
