"""The whole idea in one command, on images that come with scikit-learn."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from raydistill import display
from raydistill.config import Experiment, load_experiment
from raydistill.sweep_display import sweep as sweep_display


def run_demo(output: str) -> dict[str, Any]:
    """Train a teacher, cache it, sweep students, train the best one and the one without a teacher, and report.

    Returns:
        ``run``, ``report``, ``teacher_top1``, ``baseline_top1`` and ``student_top1``, in percent of the test images.
    """
    experiment = _experiment(Path(output) / "demo")
    from raydistill.reporting.page import write_report
    from raydistill.teachers.cache.build import build_cache
    from raydistill.training.teacher import train_teacher
    from raydistill.training.trainer import train
    from raydistill.tuning.sweep import tune

    assert experiment.teacher is not None and experiment.teacher.train is not None
    display.tell("1/5  a teacher is trained")
    large = experiment.override({"name": "teacher", "data.subset": None})
    with display.training(large, experiment.teacher.train.epochs) as watch:
        teacher = train_teacher(large, watch=watch)
    display.tell("2/5  its outputs are cached once")
    with display.rows("teacher") as progress:
        built = build_cache(experiment, progress=progress)
    display.tell(f"cache: {built.computed_rows} rows in {built.path}")
    display.tell("3/5  a sweep of students learns from the cache")
    with sweep_display(experiment) as watch:
        sweep = tune(experiment, watch=watch)
    display.tell("4/5  the best one is trained by itself")
    best = load_experiment(sweep["best_config"], ["name=student"])
    with display.training(best, best.train.epochs) as watch:
        student = train(best, watch=watch)
    display.tell("5/5  the same student without a teacher")
    alone = _without_teacher(best)
    with display.training(alone, alone.train.epochs) as watch:
        baseline = train(alone, watch=watch)
    folder = Path(experiment.output)
    runs = [Path(result["run"]) for result in (teacher, student, baseline, sweep)]
    with display.working("report") as progress:
        page = write_report(runs, folder / "report.html", progress=progress)
    return {
        "run": str(folder),
        "report": str(page),
        "teacher_top1": teacher["top1"],
        "baseline_top1": baseline["top1"],
        "student_top1": student["top1"],
    }


def _experiment(folder: Path) -> Experiment:
    """Return the demo's experiment with all its runs and its cache below one folder."""
    with as_file(files("raydistill") / "demo.yaml") as path:
        return load_experiment(
            path,
            [
                "name=sweep",
                f"output={folder}",
                f"cache.root={folder / 'cache'}",
                f"teacher.weights={folder / 'teacher' / 'model.safetensors'}",
            ],
        )


def _without_teacher(experiment: Experiment) -> Experiment:
    """Return the experiment with nothing but the labels to learn from."""
    labels = {label: method for label, method in experiment.methods.items() if not method.needs().teacher}
    return experiment.model_copy(update={"name": "alone", "methods": labels, "teacher": None})
