"""Ray Tune around the loop: ASHA over validation metrics, one copy of images and cache for all trials of a node."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.config import Experiment, parse_experiment
from raydistill.errors import ConfigError, RunError
from raydistill.files import write_atomically
from raydistill.training.run_folder import RunFolder, claimed
from raydistill.training.tracking import check_trackers, tracked
from raydistill.training.trainer import Watch, prepare_while_ray_starts, spare_cpus, watched
from raydistill.tuning.space import check_space, domains

if TYPE_CHECKING:
    from raydistill.training.session import Session

STATE = "ray_tune"


def tune(experiment: Experiment, *, resume: bool = False, watch: Watch = lambda folder: None) -> dict[str, Any]:
    """Run the experiment's sweep and return ``run``, ``best_config``, ``best_metric``, ``trials``, ``stopped_early``.

    Every trial is a run folder of its own under ``trials/``; ``best.yaml`` is the best one's experiment, ready to run.

    Raises:
        InputError: where the experiment, its space, data or cache are wrong; nothing is written then.
        RunError: where no trial came to an end.
    """
    check_space(experiment)
    check_trackers(experiment)
    if experiment.scale.workers > 1:
        raise ConfigError(
            f"scale.workers = {experiment.scale.workers}: the trials of a sweep have one worker each; "
            "run more of them with tune.concurrent"
        )
    with claimed(experiment.folder, resume=resume) as folder:
        if resume and folder.succeeded:
            return folder.result()
        arrays = prepare_while_ray_starts(experiment, {})
        folder.begin(experiment, resume=resume)
        folder.list_skipped(arrays["train"]["skipped"])
        outcome: list[Any] = []
        with tracked(experiment, folder, kind="tune"):
            watched(lambda: outcome.append(_run_trials(experiment, folder, arrays, resume=resume)), folder, watch)
            result = _conclude(experiment, folder, outcome[0])
            folder.write_result(result)
        watch(folder)
        folder.succeed()
        return result


def _run_trials(experiment: Experiment, folder: RunFolder, arrays: Mapping[str, Any], *, resume: bool) -> Any:
    """Run Ray Tune to the end and return its grid of results."""
    import ray
    from ray import tune as ray_tune

    config = experiment.tune
    assert config is not None
    available = ray.cluster_resources()["CPU"]
    free = available - spare_cpus(arrays["reads_ahead"], available)
    concurrent = config.concurrent or (max(1, int(free / config.cpus_per_trial)) if free < available else None)
    root = folder.path.resolve()
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(
            partial(_trial, experiment=experiment.to_dict(), root=str(root / "trials")), arrays=arrays
        ),
        {"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial},
    )
    state = root / "logs" / STATE
    if resume and ray_tune.Tuner.can_restore(str(state)):
        return ray_tune.Tuner.restore(str(state), trainable, resume_errored=True).fit()
    return ray_tune.Tuner(
        trainable,
        param_space=domains(config.space),
        tune_config=ray_tune.TuneConfig(
            metric=config.metric,
            mode=config.mode,
            num_samples=config.samples,
            scheduler=_scheduler(experiment),
            search_alg=_searcher(experiment, concurrent),
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(storage_path=str(state.parent), name=STATE, verbose=0),
    ).fit()


def _scheduler(experiment: Experiment) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    assert experiment.tune is not None
    config = experiment.tune.scheduler
    if config.name == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epoch",
        max_t=experiment.train.epochs,
        grace_period=min(config.grace, experiment.train.epochs),
        reduction_factor=config.reduction,
    )


def _searcher(experiment: Experiment, concurrent: int | None) -> Any:
    from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

    config = experiment.tune
    assert config is not None
    if config.search == "random":
        return BasicVariantGenerator(random_state=experiment.seed, max_concurrent=concurrent or 0)
    from ray.tune.search.optuna import OptunaSearch

    searcher = OptunaSearch(seed=experiment.seed)
    return ConcurrencyLimiter(searcher, concurrent) if concurrent else searcher


def _trial(config: Mapping[str, Any], *, experiment: dict[str, Any], root: str, arrays: Mapping[str, Any]) -> None:
    """What every trial runs, in a process that goes on to the next trial: the loop itself, without a trainer."""
    import torch
    from ray import tune as ray_tune

    from raydistill.training.assembly import assemble
    from raydistill.training.material import from_arrays
    from raydistill.training.run import run

    context = ray_tune.get_context()
    resources = context.get_trial_resources().required_resources
    torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
    name = context.get_trial_id().rpartition("_")[2]
    chosen = parse_experiment(experiment).override({**config, "name": name, "output": root, "tune": None})
    folder = RunFolder(chosen.folder)
    folder.begin(chosen)
    write_atomically(folder.path / "trial.json", json.dumps(dict(config)))
    device = torch.device("cuda" if resources.get("GPU") else "cpu")
    session = assemble(chosen, from_arrays(arrays), device=device)

    def report(metrics: Mapping[str, float], session: Session) -> None:
        if session.epoch < chosen.train.epochs:
            ray_tune.report(dict(metrics))

    run(session, folder, after_epoch=report, final=False)
    folder.succeed()
    ray_tune.report(dict(session.history[-1]))  # the scheduler ends a trial at its last report, so all is written first


def _conclude(experiment: Experiment, folder: RunFolder, grid: Any) -> dict[str, Any]:
    """Write ``trials.csv`` and ``best.yaml`` and say which trial was best."""
    config = experiment.tune
    assert config is not None
    rows = [_row(experiment, result) for result in grid]
    _write_csv(folder.path / "trials.csv", rows)
    ended = [row for row in rows if row[config.metric] is not None and row["status"] != "failed"]
    if not ended:
        first = next((str(result.error) for result in grid if result.error), "no trial reported the metric")
        raise RunError(
            f"{folder.path}: all {len(rows)} trials failed or lack {config.metric}: {first.splitlines()[-1]}"
        )
    best = (max if config.mode == "max" else min)(ended, key=lambda row: row[config.metric])
    chosen = {key: best[key] for key in config.space}
    winner = experiment.override({**chosen, "name": f"{experiment.name}-best", "tune": None})
    write_atomically(folder.path / "best.yaml", winner.to_yaml())
    return {
        "kind": "tune",
        "run": str(folder.path),
        "name": experiment.name,
        "seed": experiment.seed,
        "best_config": str(folder.path / "best.yaml"),
        "best_metric": best[config.metric],
        "best_trial": best["trial"],
        "best_values": chosen,
        "metric": config.metric,
        "trials": len(rows),
        "stopped_early": sum(row["status"] == "stopped" for row in rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "teacher_forwards": sum(int((result.metrics or {}).get("teacher_forwards", 0)) for result in grid),
    }


def _row(experiment: Experiment, result: Any) -> dict[str, Any]:
    assert experiment.tune is not None
    metrics = result.metrics or {}
    epochs = metrics.get("epoch", 0)
    status = "failed" if result.error else "completed" if epochs == experiment.train.epochs else "stopped"
    return {
        "trial": str(metrics.get("trial_id", "")).rpartition("_")[2],
        "status": status,
        "epochs": epochs,
        experiment.tune.metric: metrics.get(experiment.tune.metric),
        "seconds": metrics.get("time_total_s"),
        "seed": experiment.seed,
        **{key: result.config[key] for key in experiment.tune.space},
    }


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
