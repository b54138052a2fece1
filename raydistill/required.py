"""The weights that a run begins from, looked for before anything is started or read."""

from __future__ import annotations

from pathlib import Path

from raydistill.config import Experiment
from raydistill.errors import WeightsError


def require_weights(experiment: Experiment) -> None:
    """Raise ``WeightsError`` for the first file of weights that is missing; a cached teacher's name its cache."""
    given = {"student.weights": experiment.student.weights}
    given |= {f"peers.{number}.weights": peer.weights for number, peer in enumerate(experiment.peers)}
    if experiment.all_needs.teacher:
        running = experiment.teachers
    else:
        running = experiment.teachers[:1] if experiment.agreement else ()
    for number, teacher in enumerate(running):
        given["teacher.weights" if not number else f"ensemble.{number - 1}.weights"] = teacher.weights
    for key, path in given.items():
        if path is not None and not Path(path).is_file():
            ours = key == "teacher.weights" and running[0].layout is None
            advice = "; `raydistill teacher CONFIG` trains them" if ours else ""
            raise WeightsError(f"{key} = {path}: no such file{advice}")
