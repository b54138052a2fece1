"""Is a student better than what would have been had without it? Trains the controls, measures all and says so."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raydistill import display
from raydistill.config import Experiment, load_experiment
from raydistill.errors import ConfigError, DataError
from raydistill.evaluation.card_files import PREDICTIONS
from raydistill.progress import part
from raydistill.training.run_folder import CONFIG, RunFolder

SMOOTHING = 0.1
"""Label smoothing of the second control, as Szegedy et al. 2016 published it."""
VERDICT, COSTS = "top1", "cost"
"""Protocols: the one that a verdict rests upon, and the one that is the same for all runs of a network."""


def judge_runs(paths: Sequence[Path], *, seeds: int, output: Path) -> dict[str, Any]:
    """Compare students with the teacher, themselves trained alone and alone with smoothed labels, over several seeds.

    Whatever is missing is trained beside the given runs, with as many epochs on the same images: ``<name>-alone`` and
    ``<name>-smoothed``, and with further seeds ``<name>-seed<n>``. Finished runs are kept, so an interrupted
    comparison goes on where it was.

    Args:
        paths: folders of finished students.
        seeds: how many there shall be of each, from the given run's own on.
        output: the report.

    Returns:
        ``verdict``: sentences; ``runs``: all folders; ``report``: the page.

    Raises:
        DataError: where a folder holds no finished student.
        ConfigError: where a student has no trained classifier, or ``seeds`` is less than 1.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: must be at least 1")
    experiments = [_student(path) for path in paths]
    from raydistill.evaluation.card import examine_run, write_card
    from raydistill.reporting.page import write_report
    from raydistill.reporting.runs import load_runs
    from raydistill.reporting.summary import sentences
    from raydistill.reporting.tables import comparison

    controls = [
        (one, RunFolder(path).result().get("seconds", 1.0))
        for path, experiment in zip(paths, experiments, strict=True)
        for one in counterparts(experiment, seeds)
    ]
    runs = [*paths, *_trained(controls)]
    with display.working("judge") as progress:
        unmeasured = [run for run in runs if not (run / PREDICTIONS).is_file()]
        for number, run in enumerate(unmeasured):
            measuring = part(progress, 0.8 * number / len(unmeasured), 0.8 * (number + 1) / len(unmeasured))
            protocols = _protocols(run, with_costs=run in paths)
            write_card(run, examine_run(run, protocols, progress=measuring))
        records = load_runs(runs)
        return {
            "verdict": sentences(records, comparison(records)),
            "runs": [str(run) for run in runs],
            "report": str(write_report(runs, output, progress=part(progress, 0.8, 1.0))),
        }


def counterparts(experiment: Experiment, seeds: int) -> Iterator[Experiment]:
    """Give the runs that an experiment's run is compared with: its further seeds, and the controls for all of them."""
    for seed in range(experiment.seed, experiment.seed + seeds):
        suffix = "" if seed == experiment.seed else f"-seed{seed}"
        if suffix:
            yield experiment.model_copy(update={"name": f"{experiment.name}{suffix}", "seed": seed})
        for name, options in (("alone", {}), ("smoothed", {"label_smoothing": SMOOTHING})):
            yield _alone(experiment, options, name=f"{experiment.name}-{name}{suffix}", seed=seed)


def _alone(experiment: Experiment, options: dict[str, float], **names: Any) -> Experiment:
    """Return the experiment of the same student with nothing but the labels to learn from."""
    return experiment.override(
        {
            **names,
            "methods": {"ce": options},
            "teacher": None,
            "ensemble": [],
            "peers": [],
            "tune": None,
            "train.agreement": [],
        }
    )


def _student(path: Path) -> Experiment:
    if not RunFolder(path).succeeded or not (path / "student.safetensors").is_file():
        raise DataError(f"{path}: no finished run of a student; train it, or resume it with --resume")
    experiment = load_experiment(path / CONFIG)
    if not experiment.needs.trains_classifier:
        raise ConfigError(
            f"{path}: its methods train no classifier, and controls are judged by theirs; compare features by "
            "`raydistill eval --protocol knn --protocol linear`"
        )
    return experiment


def _protocols(run: Path, *, with_costs: bool) -> list[str]:
    """Return what is measured of a run: costs of one of the same network say nothing new, and take longest."""
    asked = dict.fromkeys((VERDICT, *load_experiment(run / CONFIG).evaluate.protocols))
    return [name for name in asked if with_costs or name != COSTS]


def _trained(controls: Sequence[tuple[Experiment, float]]) -> list[Path]:
    """Return the folders of the runs; trains those that are not finished, and says how long that will take.

    With each comes how many seconds the run took that it is to be compared with.
    """
    from raydistill.training.trainer import train

    waiting = [(one, seconds) for one, seconds in controls if not (_begun(one) and RunFolder(one.folder).succeeded)]
    reckoned = [seconds for _, seconds in waiting]
    started = time.monotonic()
    for number, (one, _) in enumerate(waiting):
        pace = (time.monotonic() - started) / sum(reckoned[:number]) if number else 1.0
        left = display.duration(pace * sum(reckoned[number:]))
        display.tell(f"{one.name}: run {number + 1} of {len(waiting)} to train, about {left} left")
        with display.training(one, one.train.epochs) as watch:
            train(one, resume=_begun(one), watch=watch)
    return [one.folder for one, _ in controls]


def _begun(experiment: Experiment) -> bool:
    """Whether the run's folder holds the same experiment already."""
    config = experiment.folder / CONFIG
    return config.is_file() and load_experiment(config).to_dict() == experiment.to_dict()
