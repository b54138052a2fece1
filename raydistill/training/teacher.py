"""Teachers that are trained here: each as a student of the labels, with a seed and a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raydistill.config import Experiment, parse_experiment
from raydistill.errors import ConfigError
from raydistill.training.trainer import Watch, train

TEACHER_WEIGHTS = "model.safetensors"


def train_teacher(
    experiment: Experiment, *, resume: bool = False, watch: Watch = lambda folder: None
) -> dict[str, Any]:
    """Train the experiment's teachers by cross entropy, each into the folder of its ``weights`` where that is given.

    Returns what stands in the first one's ``result.json``, with ``weights``; of the others under ``ensemble``.
    """
    if experiment.teacher is None:
        from raydistill.teachers.network import NO_TEACHER

        raise ConfigError(NO_TEACHER)
    first, *others = [
        _train_teacher(experiment, number, resume=resume, watch=watch) for number in range(len(experiment.teachers))
    ]
    return {**first, "ensemble": others} if others else first


def _train_teacher(experiment: Experiment, number: int, *, resume: bool, watch: Watch) -> dict[str, Any]:
    beside = experiment.folder.with_name(f"{experiment.name}-teacher{number or ''}") / TEACHER_WEIGHTS
    path = Path(experiment.teachers[number].weights or beside)
    alone = _teacher_alone(experiment, number, path.parent)
    result = train(alone, resume=resume, watch=watch, folder=path.parent, weights=path.name, kind="teacher")
    return {**result, "weights": str(path)}


def _teacher_alone(experiment: Experiment, number: int, folder: Path) -> Experiment:
    """Return the experiment whose student is a teacher, learning from labels into ``folder``; each has its own seed."""
    teacher = experiment.teachers[number]
    train = teacher.train or experiment.train.model_copy(update={"agreement": ()})  # it has no teacher to agree with
    if teacher.layout is not None:
        raise ConfigError(f"teacher.layout = {teacher.layout}: the weights are a public checkpoint; nothing to train")
    if not folder.name:
        raise ConfigError(f"teacher.weights = {teacher.weights}: name a folder too, as in runs/teacher/...")
    return parse_experiment(
        {
            **experiment.to_dict(),
            "data": experiment.data.of_teacher.model_dump(mode="json"),
            "name": folder.name,
            "output": str(folder.parent),
            "seed": experiment.seed + number,
            "teacher": None,
            "ensemble": [],
            "peers": [],
            "student": {"model": teacher.model, "taps": teacher.taps},
            "methods": {"ce": {}},
            "train": train.model_dump(mode="json"),
            "tune": None,
        },
        origin="teacher.weights",
    )
