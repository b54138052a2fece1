"""Ray Train around the loop: workers, checkpoints, recovery, and what the user sees meanwhile."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from raydistill.cluster import await_room, ensure_ray, joins_another, most_resources, object_store_bytes
from raydistill.config import Experiment
from raydistill.errors import InputError, RunError, last_line, named_error
from raydistill.reachable import require_reachable
from raydistill.required import require_weights
from raydistill.training.cpus import cpus_each, spare_cpus
from raydistill.training.early import EarlyWorkers, quick_imports
from raydistill.training.exhaustion import memory_advice
from raydistill.training.run_folder import PROFILE, RunFolder, claimed
from raydistill.training.tracking import check_trackers, tracked

Watch = Callable[[RunFolder], None]

STUDENT_WEIGHTS = "student.safetensors"
RAY_STATE = "ray_train"
POLL_S = 0.25
LEAVING_S = 10.0
"""An interrupt waits at most so long for the work to let go; workers that are being started are not left before."""
FAILED_STARTS = 10
"""A run ends when its workers could not be started so often: each time Ray waits a minute for lost nodes to return."""
RAY_HEAD_START_S = 1.5
"""Importing torch holds the interpreter's lock, so Ray first gets the time to launch its processes, or to be joined."""


def train(
    experiment: Experiment,
    *,
    resume: bool = False,
    watch: Watch = lambda folder: None,
    folder: Path | None = None,
    weights: str = STUDENT_WEIGHTS,
    kind: str = "train",
    profile: bool = False,
) -> dict[str, Any]:
    """Train one student with Ray Train and return what stands in the run's ``result.json``, with ``run``.

    ``watch`` is called a few times a second while the workers train. With ``profile`` some steps of rank 0 are recorded
    in ``logs/profile/``.

    Raises:
        InputError: where the experiment, its data, weights or cache are wrong; nothing is written then.
        RunError: where the run failed.
    """
    check_trackers(experiment)
    claim = claimed(folder or experiment.folder, resume=resume, backup=experiment.backup)
    with claim as run_folder, EarlyWorkers() as early:
        if resume and run_folder.succeeded:
            return {**run_folder.result(), "run": str(run_folder.path)}
        marks = {"called": time.time()}
        starts = partial(_await_workers, experiment), partial(_start_early, experiment, early)
        arrays = prepare_while_ray_starts(experiment, marks, *starts)
        import ray

        run_folder.begin(experiment, resume=resume)
        skipped = arrays["train"]["skipped"]
        run_folder.list_skipped(skipped)
        material, reads_ahead = ray.put(arrays), arrays["reads_ahead"]
        workers = Workers(experiment, run_folder, material, reads_ahead, weights, profile, marks, early=early)
        del arrays  # of what Ray holds now, no second copy is kept
        with tracked(experiment, run_folder, kind=kind):
            try:
                workers.train(watch)
            except InputError:  # what only the assembled parts could tell; nothing was trained, so nothing is left
                if not run_folder.history() and not run_folder.pretraining():
                    shutil.rmtree(run_folder.path)
                raise
            result = {"kind": kind, "run": str(run_folder.path), **run_folder.result(), "skipped_images": len(skipped)}
            if profile and (recorded := run_folder.path / "logs" / PROFILE).is_dir():
                result["profile"] = str(recorded)
            run_folder.write_result(result)
        watch(run_folder)
        run_folder.succeed()
        return result


@dataclass(frozen=True)
class Workers:
    """The workers of one run. ``material`` is Ray's reference to the arrays that they share.

    Only a ``final`` run looks at the test images; the trials of a sweep do not.
    """

    experiment: Experiment
    folder: RunFolder
    material: Any
    reads_ahead: bool
    weights: str = STUDENT_WEIGHTS
    profile: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)
    final: bool = True
    early: EarlyWorkers = field(default_factory=EarlyWorkers)

    def train(self, watch: Watch) -> None:
        """Train to the end, from the newest checkpoint on if there is one.

        Raises:
            InputError: what only the assembled parts could tell.
            RunError: where the run failed.
        """
        self.folder.forget_failure()
        self.folder.forget_attempts()
        resources, readers = _resources(self.experiment, reads_ahead=self.reads_ahead)
        job = {
            "experiment": self.experiment.to_dict(),
            "material": self.material,
            "folder": str(self.folder.path.resolve()),
            "weights": self.weights,
            "profile": self.profile,
            "marks": dict(self.marks),
            "readers": readers,
            "final": self.final,
        }
        watched(partial(self._run, job, resources), self.folder, watch)

    def _run(self, job: dict[str, Any], resources: Mapping[str, Any], leave: threading.Event) -> None:
        """Run the TorchTrainer and raise what its workers left word of, or Ray's own error."""
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError

        from raydistill.training.backend import GroupConfig, Trainer
        from raydistill.training.worker import train_in_worker

        trainer = Trainer(
            train_in_worker,
            train_loop_config=job,
            torch_config=cast(Any, GroupConfig()),
            scaling_config=ScalingConfig(**resources),
            run_config=RunConfig(
                storage_path=str((self.folder.path / "logs").resolve()),
                name=RAY_STATE,
                logging_config=LoggingConfig(log_level="CRITICAL"),
                failure_config=FailureConfig(
                    max_failures=self.experiment.scale.max_failures, controller_failure_limit=FAILED_STARTS
                ),
            ),
            leave=leave,
            early=self.early,
            explained=lambda: bool(self.folder.failure()),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            _raise_failure(self.folder)
            raise RunError(_account(self.experiment, self.folder, error)) from error
        except Exception as error:  # Ray's controller, or Ray itself, was lost
            _raise_failure(self.folder)
            reason = last_line(error)
            raise RunError(f"{self.folder.path}: Ray could not go on: {reason}; --resume tries again") from error
        _raise_failure(self.folder)


def prepare_while_ray_starts(
    experiment: Experiment,
    marks: dict[str, float],
    await_nodes: Callable[[], None],
    once_started: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Load and check the material while Ray's processes come up; return it as arrays.

    First the nodes come that have to, and where Ray has several, they are asked whether they see the run's files.

    Ray starts in this thread, because its processes die with the thread that started them.
    """
    require_weights(experiment)
    started: Future[None] = Future()
    head_start = None if joins_another() else RAY_HEAD_START_S

    def store_bytes() -> int:
        started.result()
        return object_store_bytes()

    def prepared() -> dict[str, Any]:
        with contextlib.suppress(TimeoutError):
            started.result(head_start)
        return _prepared_arrays(experiment, marks, store_bytes)

    with ThreadPoolExecutor(max_workers=1) as preparing:
        arrays = preparing.submit(prepared)
        try:
            ensure_ray()
            marks["ray_started"] = time.time()
            await_nodes()
            require_reachable(experiment, {"output": experiment.output})
            once_started()
        except BaseException as error:
            started.set_exception(error)  # so that nothing is read for a run that there will not be
            raise
        started.set_result(None)
        _start_coordinator()
        return arrays.result()


def _await_workers(experiment: Experiment) -> None:
    """Wait for the nodes of as many workers as a run begins with."""
    scale = experiment.scale
    count = scale.least_workers
    use_gpu = most_resources().get("GPU", 0.0) >= count if scale.use_gpu == "auto" else scale.use_gpu
    await_room({"CPU": scale.cpus_per_worker or 1, "GPU": int(use_gpu)}, count)


def _start_early(experiment: Experiment, early: EarlyWorkers) -> None:
    """Ask for the workers that a run has which reads nothing ahead; others are made once that is known."""
    resources, _ = _resources(experiment, reads_ahead=False)
    if isinstance(resources["num_workers"], int):
        early.start(resources["num_workers"], resources["resources_per_worker"])


def _start_coordinator() -> None:
    """Let Ray Train's coordinator come up while the data are read; later the controller would wait for its process."""
    with contextlib.suppress(ImportError):  # a private name: without it a start takes some seconds longer
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        get_or_create_autoscaling_coordinator()


def _prepared_arrays(experiment: Experiment, marks: dict[str, float], store_bytes: Callable[[], int]) -> dict[str, Any]:
    with quick_imports():
        import torch  # noqa: F401

        from raydistill.training.material import prepare, to_arrays

    arrays = to_arrays(prepare(experiment, store_bytes))
    with quick_imports():
        import ray.train.torch  # noqa: F401  takes seconds, as the start of Ray does

    marks["prepared"] = time.time()
    return arrays


def watched(work: Callable[[threading.Event], None], folder: RunFolder, watch: Watch) -> None:
    """Run ``work`` in a thread, so that this one shows progress and gets the user's interrupt.

    ``work`` is given an event, and has to end soon once that is set.
    """
    leave, over = threading.Event(), threading.Event()
    outcome: list[BaseException | None] = []

    def body() -> None:
        try:
            work(leave)
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)
        over.set()

    threading.Thread(target=body, daemon=True).start()
    try:
        # Not the thread is joined: Python 3.11 takes one for ended whose join was interrupted.
        while not over.wait(POLL_S):
            watch(folder)
        watch(folder)
    except BaseException:
        # A thread that asks Ray for something after its shutdown ends the process, with code 1 whatever it was to be.
        leave.set()
        over.wait(LEAVING_S)
        raise
    if outcome[0] is not None:
        raise outcome[0]


def _account(experiment: Experiment, folder: RunFolder, error: Exception) -> str:
    """Say how a run ended whose workers failed more often than they may."""
    reason, advice = str(error).strip().splitlines()[-1].strip(), memory_advice(error)
    attempts = folder.attempts()
    got_on = "" if len(set(attempts)) > 1 else "; none got as far as the next checkpoint"
    return (
        f"{folder.path}: the workers failed {max(1, len(attempts))} times, and scale.max_failures = "
        f"{experiment.scale.max_failures}{got_on}. The last time: {advice or reason}. --resume tries again"
    )


def _raise_failure(folder: RunFolder) -> None:
    failure = folder.failure()
    if failure:
        raise named_error(failure["kind"], failure["message"])


def _resources(experiment: Experiment, *, reads_ahead: bool) -> tuple[dict[str, Any], int]:
    """Share the CPUs that Ray has among the workers, and give each a GPU where there are enough.

    Returns:
        Arguments of ``ScalingConfig``, and for each worker the number of tasks that read ahead for it.
    """
    import ray

    scale, available = experiment.scale, {"CPU": 0.0, **ray.cluster_resources()}
    use_gpu = scale.use_gpu if scale.use_gpu != "auto" else available.get("GPU", 0) >= scale.least_workers
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = [
        (int(node.get("CPU", 0)) - spare_cpus(reads_ahead, node.get("CPU", 0)), int(node.get("GPU", 0)))
        for node in nodes
    ]
    cpus = scale.cpus_per_worker or cpus_each(rooms, scale.workers, use_gpu=bool(use_gpu))
    if cpus * scale.least_workers > available["CPU"]:
        raise RunError(
            f"scale: {scale.least_workers} workers with {cpus} CPUs each were asked for, but Ray has "
            f"{available['CPU']:.0f}; lower scale.workers or scale.cpus_per_worker"
        )
    elastic = scale.least_workers < scale.workers
    resources = {
        "num_workers": (scale.least_workers, scale.workers) if elastic else scale.workers,
        "use_gpu": use_gpu,
        "resources_per_worker": {"CPU": cpus, "GPU": int(use_gpu)},
    }
    spare = int(available["CPU"]) - cpus * scale.workers
    return resources, max(1, spare // scale.workers)
