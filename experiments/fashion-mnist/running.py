"""Trains what is missing of a table: finished runs are kept and only read, so an interrupted table goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raydistill import load_experiment, train, train_teacher
from raydistill.config import Experiment
from raydistill.display import say, training

HERE = Path(__file__).parent


def teacher() -> str:
    """Return the folder of this table's teacher, training it where it is missing."""
    return taught(load_experiment(HERE / "teacher.yaml"))


def taught(experiment: Experiment) -> str:
    """Return the folder of a teacher's run, training it, or going on with it, where it is missing."""
    assert experiment.teacher is not None and experiment.teacher.weights is not None
    folder = Path(experiment.teacher.weights).parent
    if not (folder / "_SUCCESS").exists():
        with training(experiment, experiment.train.epochs) as watch:
            train_teacher(experiment, resume=_begun(folder), watch=watch)
    return str(folder)


def trained(experiment: Experiment) -> dict[str, Any]:
    """Return the result of a student's run, training it, or going on with it, where it is missing."""
    if (experiment.folder / "_SUCCESS").exists():
        result = json.loads((experiment.folder / "result.json").read_text())
        say(f"{experiment.name}: {_words(result)}, from before")
        return dict(result)
    with training(experiment, experiment.train.epochs) as watch:
        result = train(experiment, resume=_begun(experiment.folder), watch=watch)
    say(f"{experiment.name}: {_words(result)} in {result['seconds']:.0f} s")
    return result


def _begun(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _words(result: dict[str, Any]) -> str:
    # A student without labels has no classifier to be right with.
    return "trained" if result["top1"] is None else f"{result['top1']:.2f} % of the test images"
