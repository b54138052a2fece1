"""A sweep from its beginning to its winner: Ray Tune around trials that share images and teacher outputs."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from raydistill.cluster import await_room, quiet_tune
from raydistill.config import Experiment, flatten, load_experiment
from raydistill.errors import ConfigError, RunError, last_line
from raydistill.training.cpus import spare_cpus
from raydistill.training.run_folder import CONFIG, RunFolder, claimed
from raydistill.training.tracking import check_trackers, tracked
from raydistill.training.trainer import Watch, prepare_while_ray_starts, watched
from raydistill.tune_config import TuneConfig
from raydistill.tuning.agenda import Agenda
from raydistill.tuning.budget import Budget
from raydistill.tuning.space import check_space, covering, parse_space
from raydistill.tuning.suggesting import Suggestions
from raydistill.tuning.trial import Sweep, run_trial
from raydistill.tuning.trial_folder import read_state, trials_of, write_state
from raydistill.tuning.warm_start import earlier_trials

STATE = "ray_tune"
MAY_CHANGE = {"samples", "budget", "repeats", "finalists"}
"""Keys of ``tune`` that may be others when a sweep goes on: they do not change what was tried before."""


def tune(experiment: Experiment, *, resume: bool = False, watch: Watch = lambda folder: None) -> dict[str, Any]:
    """Run the experiment's sweep and return ``run``, ``best_config``, ``best_metric``, ``trials``, ``stopped_early``.

    Every trial is a run folder of its own under ``trials/``, what is trained anew with other seeds under
    ``finalists/``; ``best.yaml`` is the best one's experiment, ready to run.

    Raises:
        InputError: where the experiment, its space, data or cache are wrong; nothing is written then.
        RunError: where no trial came to an end.
    """
    check_space(experiment)
    _require_no_pauses_of_groups(experiment)
    check_trackers(experiment)
    earlier = earlier_trials(experiment)
    with claimed(experiment.folder, resume=resume, backup=experiment.backup) as folder:
        if resume:
            _require_the_same(experiment, folder)
        if resume and folder.succeeded and not _asks_for_more(experiment, folder):
            return {**folder.result(), "run": str(folder.path), "best_config": str(folder.path / "best.yaml")}
        from raydistill.training.material import from_arrays  # as late as all that brings torch
        from raydistill.tuning.conclusion import conclude

        arrays = prepare_while_ray_starts(covering(experiment), {}, partial(_await_trials, experiment))
        folder.begin(experiment, resume=resume)
        folder.list_skipped(arrays["train"]["skipped"])
        before = read_state(folder.path)
        slots = before["slots"] if before else slots_of(experiment, arrays)
        train, sweep = from_arrays(arrays).train, _shared(experiment, arrays)
        shape, num_classes = train.shape, train.num_classes
        del arrays, train  # of what Ray holds now, no second copy is kept
        budget = Budget(
            _tune(experiment).budget, gpus_per_trial=_gpus(experiment), hours_before=before.get("hours", 0.0)
        )
        agenda = Agenda(experiment, Suggestions(experiment, earlier), budget)
        write_state(folder.path, slots, agenda.total, budget.hours)
        with tracked(experiment, folder, kind="tune"):
            try:
                watched(partial(_run_trials, experiment, sweep, agenda, slots), folder, watch)
            finally:
                write_state(folder.path, slots, agenda.total, budget.hours)
            for trial in trials_of(folder.path):
                trial.forget_checkpoints()
            result = {**conclude(experiment, folder, shape, num_classes), "epochs_spent": budget.epochs}
            folder.write_result(result)
        watch(folder)
        folder.succeed()
        return result


def _tune(experiment: Experiment) -> TuneConfig:
    assert experiment.tune is not None
    return experiment.tune


def _require_the_same(experiment: Experiment, folder: RunFolder) -> None:
    """Refuse to go on with another sweep than the one that began."""

    def fixed(experiment: Experiment) -> dict[str, Any]:
        config, tune = experiment.tune, {}
        if config is not None:  # what one trial of a population does depends on all others
            tune = config.model_dump(exclude=set() if config.scheduler.generation else MAY_CHANGE)
        return flatten({**experiment.to_dict(), "output": None, "backup": None, "track": None, "tune": tune})

    before, now = fixed(load_experiment(folder.path / CONFIG)), fixed(experiment)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise ConfigError(
            f"{folder.path}: --resume goes on with the sweep that began, but {', '.join(changed)} changed; "
            "undo that, or give the sweep another name=..."
        )


def _require_no_pauses_of_groups(experiment: Experiment) -> None:
    """Refuse to pause trials with workers of their own."""
    scheduler = _tune(experiment).scheduler
    if experiment.scale.workers > 1 and scheduler.pauses:
        raise ConfigError(
            f"scale.workers = {experiment.scale.workers}: {scheduler.name} pauses trials, and each would keep its "
            "workers; set tune.scheduler.name=asha, or let more trials of one worker run at a time"
        )


def _asks_for_more(experiment: Experiment, folder: RunFolder) -> bool:
    """Whether a sweep that has ended is given more to try than it had."""
    return load_experiment(folder.path / CONFIG).tune != experiment.tune


def _await_trials(experiment: Experiment) -> None:
    """Wait for the nodes of as many trials as are to run at a time, or of one."""
    config, scale = _tune(experiment), experiment.scale
    cpus = config.cpus_per_trial if scale.workers == 1 else scale.cpus_per_worker or 1
    count = (config.concurrent or 1) * scale.workers
    await_room({"CPU": cpus, "GPU": _gpus(experiment) / scale.workers}, count)


def slots_of(experiment: Experiment, arrays: Mapping[str, Any]) -> int:
    """Return how many trials run at a time."""
    config, scale = _tune(experiment), experiment.scale
    import ray

    available = {"CPU": 0.0, **ray.cluster_resources()}
    free = available["CPU"] - spare_cpus(arrays["reads_ahead"], available["CPU"])
    cpus = config.cpus_per_trial if scale.workers == 1 else scale.workers * (scale.cpus_per_worker or 1)
    room = int(free / cpus)
    gpus = _gpus(experiment)
    if gpus:
        room = min(room, _shares(available.get("GPU", 0.0), gpus))
    if room < 1:
        raise RunError(
            f"tune: a trial needs {cpus:g} CPUs and {gpus:g} GPUs, but Ray has {free:g} and "
            f"{available.get('GPU', 0.0):g} to give; lower tune.cpus_per_trial or tune.gpus_per_trial"
        )
    return min(room, config.concurrent or room)


def _shares(available: float, each: float) -> int:
    """Return how many times so much of a GPU, or so many GPUs, can be had; no part lies on two of them."""
    rounding = 1e-9
    return int(available / each + rounding) if each >= 1.0 else int(available) * int(1.0 / each + rounding)


def _gpus(experiment: Experiment) -> float:
    """GPUs of one trial."""
    scale = experiment.scale
    if scale.workers == 1:
        return float(_tune(experiment).gpus_per_trial)
    return float(scale.workers) if scale.use_gpu is True else 0.0


def _shared(experiment: Experiment, arrays: Mapping[str, Any]) -> Sweep:
    """Hand the arrays to Ray, and return what all trials have in common."""
    import ray

    config = _tune(experiment)
    return Sweep(
        experiment.to_dict(),
        str(experiment.folder.resolve()),
        [ray.put(arrays)],
        arrays["reads_ahead"],
        pauses=config.scheduler.pauses,
        generation=config.scheduler.generation,
        metric=config.metric,
    )


def _run_trials(experiment: Experiment, sweep: Sweep, agenda: Agenda, slots: int, leave: threading.Event) -> None:
    """Run Ray Tune to the end, or until it is to ``leave``."""
    from ray import tune as ray_tune

    from raydistill.tuning.judging import Jobs, Leaving, judge_for

    config = _tune(experiment)
    root = Path(sweep.root)
    grouped = experiment.scale.workers > 1
    # Where workers of its own compute, a trial takes next to nothing, but Ray Tune does not take nothing.
    resources = {"memory": 1} if grouped else {"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial}
    shutil.rmtree(root / "logs" / STATE, ignore_errors=True)  # all that matters stands in the trials' folders
    live = agenda.total if config.scheduler.pauses else slots
    # Once Ray has begun all trials, it ends the processes of those that pause; so let it wait for one that never comes.
    awaited = 1 if config.scheduler.generation else 0

    def trial(job: dict[str, Any]) -> None:
        run_trial(job, sweep)

    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trial, resources),
        tune_config=ray_tune.TuneConfig(
            metric=config.metric,
            mode=config.mode,
            num_samples=agenda.total + awaited,
            search_alg=Jobs(agenda, live, config),
            scheduler=judge_for(experiment, _longest(experiment), agenda, live, root),
            max_concurrent_trials=live,  # without it Tune starts one process after the other
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(
            storage_path=str(root / "logs"),
            name=STATE,
            verbose=0,
            callbacks=[Leaving(leave)],
            failure_config=ray_tune.FailureConfig(max_failures=experiment.scale.max_failures),
        ),
    )
    quiet_tune()
    try:
        tuner.fit()
    except Exception as error:  # Ray wraps what its callbacks raise, and raises many kinds itself
        raise RunError(f"{root}: the sweep could not go on: {last_line(error)}; --resume tries again") from error


def _longest(experiment: Experiment) -> int:
    """Epochs of the longest trial."""
    swept: list[int] = [
        value for entry in parse_space(experiment) if entry.key == "train.epochs" for value in entry.extremes
    ]
    return max([experiment.train.epochs, *swept])
