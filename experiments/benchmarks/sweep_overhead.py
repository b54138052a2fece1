"""What a sweep costs beside the training of its trials.

    python experiments/benchmarks/sweep_overhead.py [--trials 32] [--seconds 2] [--json]

Trials of about two seconds each on two cores, two at a time, none stopped early; how many images that is, a
calibration tells. The whole of ``raydistill.tune``, which starts Ray and imports torch, is to take at most 1.35 times
the trials' own seconds over the slots, and 20 s. What the slots did meanwhile follows from the times at which the
trials' files were written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from stages import SLOTS, history_of, obey, stage

FACTOR, ALLOWANCE_S, EPOCHS = 1.35, 20.0, 4
CALIBRATION_IMAGES = 2560


def main() -> None:
    """Calibrate, time a sweep, and print."""
    obey({"calibrate": calibrate, "timed": timed})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="/usr/share/datasets/fashion-mnist", help="the files of Fashion-MNIST")
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0, help="training of one trial")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rate = stage("calibrate", root=options.root, folder=folder)
        images = max(128, int(rate * options.seconds / EPOCHS))
        found = stage("timed", root=options.root, folder=folder, images=images, trials=options.trials)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['trials']} trials, {EPOCHS} epochs of {found['images']} images each, {SLOTS} slots")
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
    experiment = parse_experiment({**plain(root, folder, images, EPOCHS), "tune": tune})
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


if __name__ == "__main__":
    main()
