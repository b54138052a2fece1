"""Trains every experiment of this folder with several seeds and prints the README's table.

    python experiments/fashion-mnist/table.py            # all, seeds 0 to 2
    python experiments/fashion-mnist/table.py kd crd     # some

Finished runs are kept and only read, so an interrupted table goes on where it was. The teacher is trained and cached
first where that has not been done.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from raydistill import build_cache, load_experiment, train, train_teacher
from raydistill.display import rows, say, training
from raydistill.reporting.page import write_report
from raydistill.reporting.tables import comparison, display, load_runs, to_markdown

HERE = Path(__file__).parent
METHODS = ("alone", "kd", "crd", "compress", "cocord", "protocpc")


def main() -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=METHODS, help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    runs = [Path(teacher())]
    with rows("teacher") as progress:
        built = build_cache(load_experiment(HERE / "kd.yaml"), progress=progress)
    say(f"cache: {built.computed_rows} rows computed, {built.reused_rows} reused, {built.seconds:.0f} s")
    for seed in range(arguments.seeds):
        runs += [Path(student(method, seed)) for method in arguments.methods]
    print(to_markdown(display(comparison(load_runs(runs)))))
    print(f"\nreport: {write_report(runs, Path('runs/fashion-mnist.html'))}", file=sys.stderr)


def teacher() -> str:
    """Return the folder of the teacher's run, training it where it is missing."""
    experiment = load_experiment(HERE / "teacher.yaml")
    assert experiment.teacher is not None and experiment.teacher.weights is not None
    folder = Path(experiment.teacher.weights).parent
    if not (folder / "_SUCCESS").exists():
        with training(experiment, experiment.train.epochs) as watch:
            train_teacher(experiment, watch=watch)
    return str(folder)


def student(method: str, seed: int) -> str:
    """Return the folder of a student's run, training it where it is missing."""
    experiment = load_experiment(HERE / f"{method}.yaml", [f"seed={seed}", f"name=fashion-{method}-seed{seed}"])
    if (experiment.folder / "_SUCCESS").exists():
        top1 = json.loads((experiment.folder / "result.json").read_text())["top1"]
        say(f"{experiment.name}: {top1:.2f} % of the test images, from before")
        return str(experiment.folder)
    with training(experiment, experiment.train.epochs) as watch:
        result = train(experiment, watch=watch)
    say(f"{experiment.name}: {result['top1']:.2f} % of the test images in {result['seconds']:.0f} s")
    return str(experiment.folder)


if __name__ == "__main__":
    main()
