"""What each of Ray Train's workers does. Whoever imports this imports torch."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero

from raydistill.config import Experiment, parse_experiment
from raydistill.errors import DivergedError, RaydistillError, RunError
from raydistill.training.assembly import assemble
from raydistill.training.checkpoint import load_checkpoint, restore
from raydistill.training.due import Due
from raydistill.training.exhaustion import memory_advice
from raydistill.training.keeping import CheckpointKeeper
from raydistill.training.material import from_arrays
from raydistill.training.profiling import Profiler, TorchProfiler
from raydistill.training.run import run
from raydistill.training.run_folder import CHECKPOINTS, PROFILE, RunFolder
from raydistill.training.session import Session
from raydistill.training.shelf import Shelf

FRUITLESS_ATTEMPTS = 5
"""A run ends when so many attempts in a row died between the same checkpoint and the next one, whatever
``scale.max_failures`` allows."""


def train_in_worker(job: dict[str, Any]) -> None:
    """What every worker runs: assemble, continue from the last checkpoint, train."""
    context = ray.train.get_context()
    folder = RunFolder(Path(job["folder"]))
    try:
        _train(job, folder)
    except DivergedError as error:  # all ranks do, and would again at the same place
        if context.get_world_rank() == 0:
            folder.write_failure("RunError", str(error))
            folder.write_diverged(error.found)
    except RaydistillError as error:  # also of one rank alone, such as an image that it was to read
        folder.write_failure(type(error).__name__, str(error))
        if context.get_world_size() > 1:  # the other ranks would wait for this one for ever
            raise
    except (OSError, MemoryError, RuntimeError) as error:
        advice = memory_advice(error)
        lost = isinstance(error, ConnectionError | TimeoutError)  # another worker, which may be there again
        if advice is None and (lost or not isinstance(error, OSError)):
            raise
        if context.get_world_rank() == 0 or advice is not None:
            folder.write_failure("RunError", advice or str(error))
        if context.get_world_size() > 1:  # the other ranks would wait for this one for ever
            raise


def _train(job: dict[str, Any], folder: RunFolder) -> None:
    started, context = time.time(), ray.train.get_context()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    experiment = parse_experiment(job["experiment"])
    material = from_arrays(ray.get(job["material"]))
    session = assemble(
        experiment,
        material,
        device=ray.train.torch.get_device(),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        readers=job["readers"],
        wrap=partial(_wrap, experiment),
    )
    shelf = Shelf(folder.path / CHECKPOINTS)
    if not _continue(session, shelf, folder):
        return
    folder.note_start({**job["marks"], "worker_started": started, "assembled": time.time(), "pid": os.getpid()})
    config = experiment.train.checkpoint
    profiled = job["profile"] and session.rank == 0
    with CheckpointKeeper(shelf, config, Due(config, session.device)) as keeper:
        run(
            session,
            folder,
            after_epoch=_report,
            after_stage_epoch=_report,
            keeper=keeper,
            profiler=TorchProfiler(folder.path / "logs" / PROFILE, folder.note) if profiled else Profiler(),
            weights=job["weights"],
            final=job["final"],
        )


def _continue(session: Session, shelf: Shelf, folder: RunFolder) -> bool:
    """Put all ranks where the newest sound checkpoint was taken; False where rank 0 left word why the run ends."""
    chosen: str | None = None
    if session.rank == 0:
        folder.forget_failure()
        try:
            chosen = _choose_and_continue(session, shelf, folder)
        except RunError as error:
            folder.write_failure("RunError", str(error))
    if session.world_size > 1:  # it takes an actor of Ray Train's, which begins after the workers
        chosen = broadcast_from_rank_zero(chosen)
    if chosen and session.rank != 0:
        load_checkpoint(session, shelf.folder / chosen)
    return chosen is not None


def _choose_and_continue(session: Session, shelf: Shelf, folder: RunFolder) -> str:
    """Return the name of the checkpoint from which this session now goes on, empty where there is none."""
    taken = shelf.take(session.device, folder.note)
    if taken is not None:
        restore(session, taken[1], shelf.folder / taken[0])
    attempts = folder.begin_attempt(session.steps_done, session.world_size)
    place = f"step {session.steps_done % session.steps_per_epoch} of epoch {session.epoch + 1}"
    if len(attempts) > FRUITLESS_ATTEMPTS and len(set(attempts[-FRUITLESS_ATTEMPTS - 1 :])) == 1:
        raise RunError(
            f"{folder.path}: {FRUITLESS_ATTEMPTS} times in a row the workers died between {place} and the next "
            "checkpoint. See Ray's logs for the reason; or keep checkpoints more often: train.checkpoint.steps"
        )
    if len(attempts) > 1:
        workers = f"{session.world_size} worker" + ("s" if session.world_size > 1 else "")
        folder.note(
            f"workers were lost, or their number changed; attempt {len(attempts)}, with {workers}, goes on from {place}"
        )
    return "" if taken is None else taken[0]


def _wrap(experiment: Experiment, module: Any) -> Any:
    """Wrap for distributed training without copying rank 0's buffers over the others at each step."""
    options: dict[str, Any] = {"forward_sync_buffers": False}
    if not experiment.needs.trains_classifier:  # its weights get no gradient then
        options["find_unused_parameters"] = True
    return ray.train.torch.prepare_model(module, move_to_device=False, parallel_strategy_kwargs=options)


def _report(metrics: Mapping[str, Any], session: Session) -> None:
    """Tell Ray Train of an epoch; checkpoints are the run's own matter."""
    ray.train.report(dict(metrics))
