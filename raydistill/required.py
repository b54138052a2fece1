"""The weights that a command begins from, looked for before anything is started, imported or read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raydistill.config import Experiment
from raydistill.errors import WeightsError
from raydistill.network_config import TeacherConfig


def require_weights(experiment: Experiment) -> None:
    """Raise ``WeightsError`` where files of weights are missing that a run reads; a cached teacher's name its cache."""
    given = {"student.weights": experiment.student.weights}
    given |= {f"peers.{number}.weights": peer.weights for number, peer in enumerate(experiment.peers)}
    if experiment.all_needs.teacher:
        running = experiment.teachers
    else:
        running = experiment.teachers[:1] if experiment.agreement else ()
    _require(given | _of_teachers(running), experiment)


def require_teachers(experiment: Experiment) -> None:
    """Raise ``WeightsError`` where files of the teachers' weights are missing, from which caches are built."""
    _require(_of_teachers(experiment.teachers), experiment)


def _of_teachers(teachers: Sequence[TeacherConfig]) -> dict[str, str | None]:
    return {
        "teacher.weights" if not number else f"ensemble.{number - 1}.weights": teacher.weights
        for number, teacher in enumerate(teachers)
    }


def _require(given: Mapping[str, str | None], experiment: Experiment) -> None:
    lines = []
    for key, path in given.items():
        if path is not None and not Path(path).is_file():
            ours = key == "teacher.weights" and experiment.teachers[0].layout is None
            advice = "; `raydistill teacher CONFIG` trains them" if ours else ""
            lines.append(f"{key} = {path}: no such file{advice}")
    if lines:
        raise WeightsError("\n".join(lines))
