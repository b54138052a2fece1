"""What every trial of a sweep runs. Whoever imports this imports torch only once a trial begins.

A process goes on to the next trial when one is over, so that only the first one pays for its start. A trial that begins
in a folder where it was under way before reports anew what stands there, and goes on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from raydistill.config import Experiment, parse_experiment
from raydistill.errors import DivergedError, InputError, first_line
from raydistill.files import is_refusal
from raydistill.train_config import CheckpointConfig
from raydistill.tuning.agenda import Job
from raydistill.tuning.descent import Descent
from raydistill.tuning.space import configured
from raydistill.tuning.trial_folder import TrialFolder


class Report(Protocol):
    """Hands an epoch's metrics to the sweep and waits for its verdict."""

    def __call__(self, metrics: Mapping[str, Any], final: bool, descent: Descent | None = None) -> None:
        """``final`` says whether it is the last one, ``descent`` what others can go on from."""


ATTEMPTS = 2
CHECKPOINT_MINUTES = 1.0
"""What a trial that dies loses at most."""
LETTING_GO_S = 30
REFUSED = "refused"
"""Key of a report that tells what the disk refused."""


@dataclass(frozen=True)
class Sweep:
    """What the trials of a sweep have in common. ``material`` holds Ray's reference to their shared arrays.

    After every ``generation`` epochs trials may go on from each other's checkpoints, if it is given.
    """

    experiment: Mapping[str, Any]
    root: str
    material: list[Any]
    reads_ahead: bool
    pauses: bool
    generation: int | None
    metric: str


def run_trial(config: Mapping[str, Any], sweep: Sweep) -> None:
    """Run one job, or what is left of it. What goes wrong with it is told by its folder, and does not end the process.

    A failure is tried once more, from the last checkpoint, unless it lies in the values: those that do not fit, or with
    which a loss becomes infinite. A disk that is full lies in no trial: the sweep is told, and ends.
    """
    from ray import tune as ray_tune

    job = Job(**config)
    folder = TrialFolder(Path(sweep.root) / job.folder)
    nothing = {"epoch": 0, sweep.metric: float("nan"), "final": True}

    def report(metrics: Mapping[str, Any], final: bool, descent: Descent | None = None) -> None:
        told = {**nothing, **metrics, "final": final}
        if descent is None:
            ray_tune.report(told)
            return
        with TemporaryDirectory() as left:
            descent.write(Path(left))
            ray_tune.report(told, checkpoint=ray_tune.Checkpoint.from_directory(left))

    try:
        _try(job, folder, sweep, report)
    except Exception as error:
        if not is_refusal(error):
            raise
        report({"epoch": len(folder.history()) + 1, REFUSED: first_line(error)}, True)


def _try(job: Job, folder: TrialFolder, sweep: Sweep, report: Report) -> None:
    """Run a job as ``run_trial`` says."""
    descent = _descent()
    for metrics, left in folder.generations():  # of a population that was interrupted; each is decided on once more
        if descent is None or left.epoch > descent.epoch:
            report(metrics, False, left)
    folder.claim(job, descent)
    for attempt in range(ATTEMPTS):
        try:
            _run(job, folder, sweep, report)
            return
        except Exception as error:
            if is_refusal(error):
                raise
            hopeless = isinstance(error, DivergedError | InputError)
            if hopeless or attempt + 1 == ATTEMPTS:
                folder.mark("failed", _cause(error))
                _forget_checkpoints(folder, sweep)
                break
            folder.note(f"trial {job.number} failed and is tried once more: {_cause(error)}")
        except SystemExit:  # the sweep's verdict
            if folder.record["status"] == "stopped":
                _forget_checkpoints(folder, sweep)
            raise
    report({"epoch": len(folder.history()) + 1}, True)


def _descent() -> Descent | None:
    """Return what this trial is to go on from: the last it left itself, or what the sweep put in its place."""
    from ray import tune as ray_tune

    checkpoint = ray_tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return Descent.read(Path(folder))


def _forget_checkpoints(folder: TrialFolder, sweep: Sweep) -> None:
    """Remove what a trial that is over will not go on from; in a population another one may."""
    if sweep.generation is None:
        folder.forget_checkpoints()


def _cause(error: BaseException) -> str:
    """Say in one line what went wrong."""
    from raydistill.training.exhaustion import memory_advice

    said = str(error).strip()
    return memory_advice(error) or (said.splitlines()[-1].strip() if said else type(error).__name__)


def _run(job: Job, folder: TrialFolder, sweep: Sweep, report: Report) -> None:
    if folder.record["status"] in ("completed", "failed"):
        _tell_again(folder, sweep, report)
        return
    if folder.record["status"] == "stopped":  # and will be once more, unless the sweep has been given more to try
        for metrics in folder.history()[: folder.record["epochs"]]:
            report(metrics, False)
    experiment = parse_experiment(sweep.experiment)
    single = configured(experiment, job.values).as_trial()
    chosen = single.override(
        {
            "name": folder.path.name,
            "output": str(folder.path.parent),
            "seed": job.seed,
            "train.checkpoint": _keeping(sweep).model_dump(),
        }
    )
    folder.begin(chosen, resume=True)
    if chosen.scale.workers > 1:
        _train_in_group(chosen, folder, sweep, report)
    else:
        _train_here(job, chosen, folder, sweep, report)


def _keeping(sweep: Sweep) -> CheckpointConfig:
    """Return how often a trial keeps its state: after every epoch where it may be paused, else by the clock.

    After every generation it keeps two. Trials go on from the last but one until all have come to the last.
    """
    often = CheckpointConfig(keep=1, best=False)
    if sweep.generation is not None:
        return often.model_copy(update={"epochs": sweep.generation, "keep": 2})
    return often if sweep.pauses else often.model_copy(update={"epochs": 1_000_000, "minutes": CHECKPOINT_MINUTES})


def _tell_again(folder: TrialFolder, sweep: Sweep, report: Report) -> None:
    """Report what a trial that is over found."""
    *earlier, last = folder.history() or [{"epoch": 0}]
    if folder.record["status"] == "completed":
        for metrics in earlier:
            report(metrics, False)
        report(last, True)
        return
    if sweep.generation is None:  # a population would wait for the others where a trial failed at a generation's end
        for metrics in (*earlier, last):
            report(metrics, False)
    report({"epoch": last["epoch"] + 1}, True)


def _train_here(job: Job, chosen: Experiment, folder: TrialFolder, sweep: Sweep, report: Report) -> None:
    """Train in this process."""
    import ray
    import torch
    from ray import tune as ray_tune

    from raydistill.evaluation.cost import parameter_count
    from raydistill.training.assembly import assemble
    from raydistill.training.checkpoint import adopt, read_state, restore
    from raydistill.training.due import Due
    from raydistill.training.keeping import CheckpointKeeper
    from raydistill.training.material import from_arrays
    from raydistill.training.run import run
    from raydistill.training.run_folder import CHECKPOINTS
    from raydistill.training.session import Session
    from raydistill.training.shelf import Shelf

    resources = ray_tune.get_context().get_trial_resources().required_resources
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
    device = torch.device("cuda" if resources.get("GPU") else "cpu")
    session = assemble(chosen, from_arrays(ray.get(sweep.material[0])), device=device)
    folder.mark("running", parameters=parameter_count(session.student), pid=os.getpid())
    shelf = Shelf(folder.path / CHECKPOINTS)
    if (descent := _descent()) is not None:
        origin = Path(descent.checkpoint)
        adopt(session, read_state(origin, device), origin)
    elif (taken := shelf.take(device, folder.note)) is not None:
        restore(session, taken[1], shelf.folder / taken[0])
    for metrics in session.history[: chosen.train.epochs - 1]:
        report(metrics, False)

    def after_epoch(metrics: Mapping[str, Any], session: Session) -> None:
        if session.epoch == chosen.train.epochs:
            return
        left = None
        if sweep.generation and session.epoch % sweep.generation == 0:
            keeper.finish()
            checkpoint = shelf.at(session.steps_done)
            if not checkpoint.is_dir():  # what is not finite is not kept
                raise DivergedError(f"epoch {session.epoch}: a weight became NaN or infinite")
            left = Descent(job.number, session.epoch, str(checkpoint), folder.changes)
            folder.keep_generation(metrics, left)
        report(metrics, False, left)

    config = chosen.train.checkpoint
    with CheckpointKeeper(shelf, config, Due(config, device)) as keeper:
        run(session, folder, after_epoch=after_epoch, keeper=keeper, final=False)
    _complete(folder, sweep)
    report(session.history[-1], True)


def _train_in_group(chosen: Experiment, folder: TrialFolder, sweep: Sweep, report: Report) -> None:
    """Train with workers of Ray Train, and report what appears in the folder."""
    # Of a trial that is stopped the workers end first; Ray Tune is to wait for that before the next one begins here.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(LETTING_GO_S)
    from raydistill.training.run_folder import RunFolder
    from raydistill.training.trainer import Workers

    told = 0

    def watch(folder: RunFolder) -> None:
        nonlocal told
        for metrics in folder.history()[told:]:
            if metrics["epoch"] < chosen.train.epochs:
                report(metrics, False)
                told += 1

    watch(folder)  # the verdict on what is known needs no workers
    Workers(chosen, folder, sweep.material[0], sweep.reads_ahead, final=False).train(watch)
    watch(folder)
    _complete(folder, sweep)
    report(folder.history()[-1], True)


def _complete(folder: TrialFolder, sweep: Sweep) -> None:
    """All is written before the last report, at which the sweep ends the trial."""
    _forget_checkpoints(folder, sweep)
    folder.succeed()
    folder.mark("completed")
