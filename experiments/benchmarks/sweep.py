"""What a sweep costs: time beside the training of its trials, memory beside one data set, epochs beside the grid's.

    python experiments/benchmarks/sweep.py --part overhead [--trials 32] [--seconds 2] [--json]
    python experiments/benchmarks/sweep.py --part memory [--trials 16] [--images 70000] [--json]
    python experiments/benchmarks/sweep.py --part compute [--seeds 0 1 2] [--fresh 16] [--folder FOLDER] [--json]

``overhead``: trials of about two seconds each on two cores, two at a time, none stopped early; how all images that is,
a calibration tells. The whole of ``raydistill.tune``, which starts Ray and imports torch, is to take at most 1.35 times
the trials' own seconds over the slots, and 20 s. What the slots did meanwhile follows from the times at which the
trials' files were written.

``memory``: so many trials alive at once, each of which has seen all images and teacher rows. Proportional set size
(PSS) counts a page of n processes as an nth of a page each, so the sum over all processes is what the machine holds.
The same sweep with a quarter of the images shows what of it is data.

``compute``: ASHA against the full grid, on Fashion-MNIST, with the same seeds and so the same trials, and the share of
the grid's epochs that ASHA took. How far ASHA's choice is from the grid's best is told by the runs of that one seed,
and by what configurations are worth, which is their mean over the grids of all seeds. The best of 28 runs owes much to
its seed, so the configuration that one grid would choose is held against the best mean, too. What chose should not
judge: with ``--fresh`` all configurations that were chosen are trained anew with so many further seeds, and compared
seed by seed. Sweeps that are finished are not repeated where ``--folder`` still has them, and one that was interrupted
goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SLOTS = 2
FACTOR, ALLOWANCE_S, EPOCHS_OF_OVERHEAD = 1.35, 20.0, 4
CALIBRATION_IMAGES = 2560

MIB = 2**20
WIDTH, SIDE, FEWER = 512, 32, 4
AT_MOST_OF_DATA = 1.25

REGRET, SHARE = 0.2, 0.25
FRESH = 1000  # further seeds begin behind it
GRID = {
    "methods.kd.weight": [0.3, 0.9, 3.0],
    "methods.kd.temperature": [2.0, 4.0, 8.0],
    "train.optimizer.lr": [0.005, 0.02, 0.08],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["overhead", "memory", "compute"], required=True)
    parser.add_argument("--root", default="/usr/share/datasets/fashion-mnist", help="the files of Fashion-MNIST")
    parser.add_argument("--trials", type=int, help="of overhead (32) and memory (16)")
    parser.add_argument("--seconds", type=float, default=2.0, help="overhead: training of one trial")
    parser.add_argument("--images", type=int, help="of memory (70000) and, held-out ones included, compute (2000)")
    parser.add_argument("--epochs", type=int, default=27, help="compute")
    parser.add_argument("--reduction", type=int, default=3, help="compute")
    parser.add_argument("--grace", type=int, default=2, help="compute: epochs that ASHA lets every trial have")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="compute")
    parser.add_argument("--fresh", type=int, default=0, help="compute: how many further seeds judge what was chosen")
    parser.add_argument("--ema", type=float, help="compute: judge the students' averages, of this decay, everywhere")
    parser.add_argument("--folder", type=Path, help="compute: where the sweeps are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--stage", choices=sorted(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--given", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(STAGES[options.stage](**options.given)), flush=True)
        os._exit(0)  # a sweep that is left in its middle must not look for another Ray
    with tempfile.TemporaryDirectory() as folder:
        show, found = PARTS[options.part](options, folder)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


def stage(name: str, **given: Any) -> Any:
    """Run a stage in a process of its own, on two cores; what it prints last is what it found.

    Ray's workers find the networks in this file.
    """
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, __file__, "--part", "overhead", "--stage", name, "--given", json.dumps(given)]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:SLOTS])  # children inherit it
    environment = {**os.environ, "PYTHONPATH": paths}
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(process.stdout.splitlines()[-1])


def overhead(options: argparse.Namespace, folder: str) -> tuple[Any, dict[str, Any]]:
    """Calibrate, then time a sweep."""
    rate = stage("calibrate", root=options.root, folder=folder)
    images = max(128, int(rate * options.seconds / EPOCHS_OF_OVERHEAD))
    return show_overhead, stage(
        "overhead", root=options.root, folder=folder, images=images, trials=options.trials or 32
    )


def show_overhead(found: Mapping[str, Any]) -> None:
    """Print the table."""
    print(f"{found['trials']} trials, {EPOCHS_OF_OVERHEAD} epochs of {found['images']} images each, {SLOTS} slots")
    for name, seconds in found["seconds"].items():
        print(f"{name:<52}{seconds:>8.1f} s")
    print("met" if found["met"] else "MISSED")


def plain(root: str, folder: str, images: int, epochs: int) -> dict[str, Any]:
    """A student without a teacher on so all images; a tenth more is held out."""
    return {
        "name": "overhead",
        "output": folder,
        "data": {"name": "fashion_mnist", "root": root, "subset": int(images / 0.9), "validation": 0.1},
        "student": {"model": "resnet8"},
        "methods": {"ce": {}},
        "train": {"epochs": epochs},
    }


def calibrate(root: str, folder: str) -> float:
    """Images a second of the second epoch, in one thread."""
    import torch

    from raydistill.config import parse_experiment
    from raydistill.training.assembly import assemble
    from raydistill.training.loop import fit
    from raydistill.training.material import prepare

    torch.set_num_threads(1)
    experiment = parse_experiment(plain(root, folder, CALIBRATION_IMAGES, 2))
    seconds: list[float] = []
    session = assemble(experiment, prepare(experiment), device=torch.device("cpu"))
    fit(session, lambda metrics, session: seconds.append(metrics["seconds"]))
    return CALIBRATION_IMAGES / seconds[-1]


def timed(root: str, folder: str, images: int, trials: int) -> dict[str, Any]:
    """Time a sweep from the call, before which nothing heavy is imported."""
    import raydistill
    from raydistill.config import parse_experiment

    tune = {
        "samples": trials - 1,
        "concurrent": SLOTS,
        "scheduler": {"name": "none"},
        "space": {"train.optimizer.lr": {"loguniform": [0.01, 0.1]}},
    }
    experiment = parse_experiment({**plain(root, folder, images, EPOCHS_OF_OVERHEAD), "tune": tune})
    first_step: list[float] = []

    def watch(folder: Any) -> None:
        if not first_step and next((folder.path / "trials").glob("*/logs/progress.json"), None):
            first_step.append(time.time())

    called = time.time()
    result = raydistill.tune(experiment, watch=watch)
    returned = time.time()
    made = list((Path(result["run"]) / "trials").glob("*/trial.json"))
    assert len(made) == trials == result["completed"], result
    begins = sorted((path.parent / "config.yaml").stat().st_mtime for path in made)
    ends = sorted(path.stat().st_mtime for path in made)
    training = sum(epoch["seconds"] for path in made for epoch in history_of(path.parent))
    # The trial that is the (slots + k)th to begin takes the place of the one that is the kth to end.
    gaps = sum(begins[SLOTS:]) - sum(ends[:-SLOTS])
    bound = FACTOR * training / SLOTS + ALLOWANCE_S
    return {
        "trials": trials,
        "images": images,
        "seconds": {
            "training, all trials": training,
            "training / slots": training / SLOTS,
            "raydistill.tune, call to return": returned - called,
            f"allowed: {FACTOR} x training / slots + {ALLOWANCE_S:.0f} s": bound,
            "call to the first trial's folder": begins[0] - called,
            "call to the first step done": first_step[0] - called,
            "per slot: within trials, beside training": (sum(ends) - sum(begins) - training) / SLOTS,
            "per slot: between trials": gaps / SLOTS,
            "mean between two trials": gaps / max(1, trials - SLOTS),
            "last trial's end to return": returned - ends[-1],
        },
        "met": returned - called <= bound,
    }


def history_of(trial: Path) -> list[dict[str, Any]]:
    """Epochs of a trial."""
    path = trial / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def memory(options: argparse.Namespace, folder: str) -> tuple[Any, dict[str, Any]]:
    """Weigh the same sweep twice, and a process that has imported torch alone."""
    trials, images = options.trials or 16, options.images or 70_000
    found = {}
    for name, count in (("few", images // FEWER), ("many", images)):
        given = {"folder": f"{folder}/{name}", "images": count, "trials": trials}
        stage("rows", **given)  # in a Ray of its own, which holds images too
        found[name] = stage("memory", **given)
    data = found["many"]["data"] - found["few"]["data"]
    grown = found["many"]["trials and store"] - found["few"]["trials and store"]
    return show_memory, {
        "trials": trials,
        **found,
        "torch alone": stage("torch"),
        "data": data,
        "grown": grown,
        "copies": trials * data,
        "met": grown <= AT_MOST_OF_DATA * data,
    }


def show_memory(found: Mapping[str, Any]) -> None:
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
            "teacher": {"model": "sweep:teacher", "batch_size": 512},
            "student": {"model": "sweep:student"},
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


def compute(options: argparse.Namespace, folder: str) -> tuple[Any, dict[str, Any]]:
    """Run the grid and ASHA for each seed."""
    given = {
        "root": options.root,
        "folder": str((options.folder or Path(folder)).resolve()),
        "images": options.images or 2000,
        "epochs": options.epochs,
        "ema": options.ema,
        "reduction": options.reduction,
        "grace": options.grace,
    }
    forwards = stage("cache", **given)
    rows = []
    for seed in options.seeds:
        grid, asha = (stage("sweep", **given, seed=seed, scheduler=name) for name in ("none", "asha"))
        rows.append({**compared(seed, grid, asha), "foretold": foretold(grid, options)})
        print(row_of(rows[-1]), file=sys.stderr, flush=True)
    regret, share = (statistics.mean(row[name] for row in rows) for name in ("regret", "share"))
    found = of_configurations(rows)
    fresh = judged_anew(found, rows[0]["values"], given, options.fresh) if options.fresh else None
    return show_compute, {
        "seeds": rows,
        "regret": regret,
        "share": share,
        **found,
        "fresh": fresh,
        "met": (fresh or found)["asha_regret"] <= REGRET and share <= SHARE,
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
    found: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any], seeds: int
) -> dict[str, Any]:
    """Train what was chosen with seeds that chose nothing; the best mean's metric less choices', seed by seed."""
    best = max(found["worth"], key=found["worth"].__getitem__)
    chosen = {best, *found["choices"]["asha"], *found["choices"]["grid"]}
    metrics = {name: stage("repeated", **given, values=values[name], seeds=seeds) for name in sorted(chosen)}
    short = {name: [a - b for a, b in zip(metrics[best], metrics[name], strict=True)] for name in metrics}
    told: dict[str, Any] = {"best": best, "metrics": metrics}
    for who, names in found["choices"].items():
        of_seeds = [statistics.mean(of_names) for of_names in zip(*(short[name] for name in names), strict=True)]
        told[f"{who}_regret"] = statistics.mean(of_seeds)
        told[f"{who}_error"] = statistics.stdev(of_seeds) / seeds**0.5
    return told


def foretold(grid: Mapping[str, Any], options: argparse.Namespace) -> dict[int, float]:
    """Epoch of each rung -> correlation over the grid's trials between their values there and at the end.

    Where it is near 0, whoever decides at that rung decides by chance.
    """
    rungs, ends = [options.grace], [trial["metric"] for trial in grid["trials"].values()]
    while rungs[-1] * options.reduction < options.epochs:
        rungs.append(rungs[-1] * options.reduction)
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


def show_compute(found: Mapping[str, Any]) -> None:
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
    print(f"wanted {REGRET} for {SHARE:.0%}: {'met' if found['met'] else 'MISSED'}")
    for row in found["seeds"]:
        told = ", ".join(f"{value:.2f} after {rung} epochs" for rung, value in row["foretold"].items())
        print(f"seed {row['seed']}: a trial's value and its last one correlate by {told}")
    counted = found["forwards"]
    print(
        f"images through the teacher: {counted['cached']} for the cache and {counted['in trials']} in all trials; "
        f"without a cache {counted['live']}"
    )


def distilled(root: str, folder: str, images: int, epochs: int, ema: float | None) -> dict[str, Any]:
    """Distillation from a cached resnet14; 70 % of the images are held out, for a finer metric."""
    average = {} if ema is None else {"ema": {"decay": ema}}
    return {
        "output": folder,
        "data": {"name": "fashion_mnist", "root": root, "subset": images, "validation": 0.7},
        "teacher": {"model": "resnet14", "weights": f"{folder}/teacher/model.safetensors"},
        "student": {"model": "resnet8"},
        "methods": {"ce": {}, "kd": {}},
        "train": {"epochs": epochs, "batch_size": 32, "optimizer": {"lr": 0.05}, **average},
        "cache": {"root": f"{folder}/cache", "outputs": ["logits"]},
    }


def cached(root: str, folder: str, images: int, epochs: int, **of_sweep: float | None) -> int:
    """Train a teacher and build its cache; return how all images went through it for that, now or before."""
    from raydistill import build_cache, train_teacher
    from raydistill.config import parse_experiment

    experiment = parse_experiment({"name": "teacher", **distilled(root, folder, images, epochs, None)})
    if not Path(f"{folder}/teacher/_SUCCESS").is_file():
        more = {"data.subset": 4 * images, "data.validation": 0.1, "train.epochs": 4}
        train_teacher(experiment.override(more))
    told = Path(folder) / "forwards.json"
    report = build_cache(experiment)
    before = json.loads(told.read_text()) if told.is_file() else 0
    told.write_text(json.dumps(before + report.forwards))
    return before + report.forwards


def swept(
    *,
    root: str,
    folder: str,
    images: int,
    epochs: int,
    ema: float | None,
    reduction: int,
    grace: int,
    seed: int,
    scheduler: str,
) -> dict[str, Any]:
    """Run a sweep, or what is left of it."""
    from raydistill.config import parse_experiment

    kind, stopping = "grid", {}
    if scheduler == "asha":
        kind, stopping = f"asha-{reduction}-{grace}", {"reduction": reduction, "grace": grace}
    name = f"{kind}-{images}-{epochs}-{seed}{averaged(ema)}"
    tune = {
        "samples": 1,
        "concurrent": SLOTS,
        "scheduler": {"name": scheduler, **stopping},
        "space": {key: {"grid": values} for key, values in GRID.items()},
    }
    described = distilled(root, folder, images, epochs, ema)
    experiment = parse_experiment({"name": name, "seed": seed, "tune": tune, **described})
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
        "seen": spent * round(0.3 * images),
        "forwards": result["teacher_forwards"],
    }


def averaged(ema: float | None) -> str:
    """What names of sweeps say of the students' averages."""
    return "" if ema is None else f"-ema{ema}"


def finished(experiment: Any) -> Mapping[str, Any]:
    """Run a sweep, or what is left of it, and return its result."""
    import raydistill
    from raydistill.training.run_folder import CONFIG

    return raydistill.tune(experiment, resume=(experiment.folder / CONFIG).is_file())


def repeated(
    *,
    root: str,
    folder: str,
    images: int,
    epochs: int,
    ema: float | None,
    values: Mapping[str, float],
    seeds: int,
    **of_sweep: int,
) -> list[float]:
    """Train one configuration with so many seeds that no grid had, by a sweep that repeats its only finalist."""
    import pandas as pd

    from raydistill.config import parse_experiment

    told = "-".join(f"{value:g}" for value in values.values()) or "as-it-stands"
    name = f"fresh-{told}-{images}-{epochs}-{seeds}{averaged(ema)}"
    described = parse_experiment({"name": name, "seed": FRESH, **distilled(root, folder, images, epochs, ema)})
    described = described.override(dict(values))
    own = described.methods["kd"].weight
    tune = {
        "samples": 1,
        "concurrent": SLOTS,
        "scheduler": {"name": "none"},
        "repeats": seeds,
        "finalists": 1,
        "space": {"methods.kd.weight": {"grid": [own]}},
    }
    experiment = parse_experiment({**described.to_dict(), "tune": tune})
    finished(experiment)
    return list(pd.read_csv(experiment.folder / "finalists.csv").sort_values("seed")["val/top1"])


PARTS = {"overhead": overhead, "memory": memory, "compute": compute}
STAGES = {
    "calibrate": calibrate,
    "overhead": timed,
    "rows": rows,
    "memory": weighed,
    "torch": torch_alone,
    "cache": cached,
    "sweep": swept,
    "repeated": repeated,
}

if __name__ == "__main__":
    main()
