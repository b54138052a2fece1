"""Ray Train's ``TorchTrainer`` without what costs a run seconds and gives it nothing.

Its controller has a process of its own, which is started and imports everything anew before the first worker is asked
for; here it runs in the process that waits for it anyway, and lets go when that wants to leave. Its own configuration
brings torch into the controller's process, and opens a port even for a worker that is alone. And it starts an actor
that removes the workers' resources should the controller be gone, of which it asks Ray's dashboard: without one that
actor can do nothing, and its end is waited for ten seconds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.torch.torch_trainer import TorchTrainer

from raydistill.cluster import has_dashboard
from raydistill.training.early import EarlyWorkers
from raydistill.training.interfaces import meet_at


@dataclass
class GroupConfig(BackendConfig):  # type: ignore[misc]  # Ray has no types
    """Stands in for ``TorchConfig``; ``backend`` is nccl or gloo, set by the trainer."""

    backend: str | None = None

    @property
    def backend_cls(self) -> type[Backend]:
        """What starts the group."""
        return GroupBackend

    @property
    def train_func_context(self) -> Any:
        """Sets the current device of each worker."""
        return self.of_ray().train_func_context

    def of_ray(self) -> Any:
        """Return the configuration that this stands for."""
        from ray.train.torch import TorchConfig

        return TorchConfig(backend=self.backend)


class Group(WorkerGroup):  # type: ignore[misc]
    """Workers of a controller that is no actor; the early ones, where there are such and they fit."""

    def __init__(self, early: EarlyWorkers, *arguments: Any) -> None:
        """Take Ray's own ``arguments``."""
        super().__init__(*arguments)
        self._early = early
        self._taken: list[Any] = []

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:
        if self._early.fit(worker_group_context.num_workers, worker_group_context.resources_per_worker):
            placement, self._taken = self._early.take()
            return DefaultPlacementGroupHandle(placement)
        self._early.release()  # before others ask for the same resources
        return super()._create_placement_group(scaling_config, worker_group_context)

    def _create_workers(
        self, num_workers: int, placement_group: Any, resources_per_worker: dict[str, float], **options: Any
    ) -> list[Any]:
        if not self._taken:
            return list(super()._create_workers(num_workers, placement_group, resources_per_worker, **options))
        actors, self._taken = self._taken, []
        try:
            described = ray.get([actor.get_metadata.remote() for actor in actors])
        except RayActorError as error:
            raise WorkerGroupStartupFailedError(f"a worker died as it began: {error}") from error
        workers = [
            Worker(actor, metadata, resources_per_worker, placement_group_bundle_index=position)
            for position, (actor, metadata) in enumerate(zip(actors, described, strict=True))
        ]
        return list(self._assign_worker_ranks(workers))

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        started = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,  # asked only for checkpoints reported to Ray Train, and there are none
                **{name: values[rank] for name, values in train_context_args.items()},
            )
            for rank, worker in enumerate(workers)
        ]
        ray.get(started)
        self._decorate_worker_log_file_paths(workers)


@dataclass(frozen=True)
class Groups:
    """Makes one group after the other, the first from early workers."""

    early: EarlyWorkers

    def create(self, train_run_context: Any, worker_group_context: Any, callbacks: list[Any]) -> Group:
        """Return a group that has begun."""
        group = Group(self.early, train_run_context, worker_group_context, callbacks)
        group._start()
        return group


class Controller(TrainController):  # type: ignore[misc]
    """Starts workers from the process that it is in, and ends them with ``KeyboardInterrupt`` once ``leave`` is set."""

    def __init__(self, leave: threading.Event, early: EarlyWorkers, **options: Any) -> None:
        """Take Ray's own ``options``."""
        super().__init__(**options)
        self._leave = leave
        self.worker_group_cls = Groups(early)

    async def _run_control_loop_iteration(self) -> None:
        if self._leave.is_set():
            if workers := self.get_worker_group():
                workers.abort()
            raise KeyboardInterrupt
        await super()._run_control_loop_iteration()


class UnlessExplained(DefaultFailurePolicy):  # type: ignore[misc]
    """Tries again as often as Ray Train does, but not where a worker left word of why it ended.

    An image that is missing would be missing again, after another start of all workers.
    """

    def __init__(self, explained: Callable[[], bool], failure_config: Any) -> None:
        """Take a function that says whether there is such word."""
        super().__init__(failure_config)
        self._explained = explained

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Decide whether the workers are started again."""
        return FailureDecision.RAISE if self._explained() else super().make_decision(training_failed_error)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Runs the controller here, and starts no actor that asks the dashboard where there is none."""

    def __init__(
        self,
        *arguments: Any,
        leave: threading.Event,
        early: EarlyWorkers,
        explained: Callable[[], bool],
        **options: Any,
    ) -> None:
        """Take Ray's own ``arguments`` and ``options``; training ends soon after ``leave`` is set."""
        super().__init__(*arguments, **options)
        self._leave, self._early, self._explained = leave, early, explained

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        options["failure_policy"] = UnlessExplained(self._explained, self.run_config.failure_config)
        controller = Controller(self._leave, self._early, **options)
        asyncio.run(controller.run())
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        if has_dashboard():
            return callbacks
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]


class GroupBackend(Backend):  # type: ignore[misc]
    """Leaves all to Ray Train's backend as soon as there are two workers."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Let the workers join."""
        if len(worker_group) > 1:
            worker_group.execute(_meet_here)
            config = backend_config.of_ray()
            config.backend_cls().on_start(worker_group, config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Let the workers part."""
        if len(worker_group) > 1:
            config = backend_config.of_ray()
            config.backend_cls().on_shutdown(worker_group, config)


def _meet_here() -> None:
    meet_at(ray.util.get_node_ip_address())
