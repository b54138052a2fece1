"""Workers that import what they need while the command still does so itself: either takes seconds.

Nothing here imports torch or Ray Train before a worker begins, so workers can be asked for as soon as Ray is there.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def quick_imports() -> Iterator[None]:
    """Look for no garbage meanwhile: all these objects stay, and a seventh of the time would go into it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _handed_on(name: str) -> Callable[..., Any]:
    def method(self: EarlyWorker, *arguments: Any, **options: Any) -> Any:
        return getattr(self.worker, name)(*arguments, **options)

    return method


class EarlyWorker:
    """Ray Train's worker, with all that it can be asked for, once its process has imported it, and torch."""

    def __init__(self) -> None:
        """Import."""
        with quick_imports():
            from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

            import raydistill.training.worker  # noqa: F401

        self.worker = RayTrainWorker()

    execute = _handed_on("execute")
    run_train_fn = _handed_on("run_train_fn")
    get_metadata = _handed_on("get_metadata")
    mark_preempt = _handed_on("mark_preempt")
    poll_status = _handed_on("poll_status")
    clear_result_queue = _handed_on("clear_result_queue")
    shutdown = _handed_on("shutdown")
    init_train_context = _handed_on("init_train_context")


class EarlyWorkers:
    """The workers of a run's first attempt. Those that nobody took are ended with the ``with`` block."""

    def __init__(self) -> None:
        """Begin with none."""
        self._placement: Any = None
        self._actors: list[Any] = []
        self._each: dict[str, float] = {}

    def __enter__(self) -> EarlyWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def start(self, count: int, each: Mapping[str, float]) -> None:
        """Ask for so many workers with ``each`` its resources; return at once."""
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._each = _asked_for(each)
        self._placement = placement_group([self._each] * count, strategy="PACK")
        worker = ray.remote(num_cpus=each["CPU"], num_gpus=each["GPU"])(EarlyWorker)
        self._actors = [
            worker.options(scheduling_strategy=PlacementGroupSchedulingStrategy(self._placement, position)).remote()
            for position in range(count)
        ]

    def fit(self, count: int, each: Mapping[str, float]) -> bool:
        """Whether there are so many, with such resources."""
        return len(self._actors) == count and self._each == _asked_for(each)

    def take(self) -> tuple[Any, list[Any]]:
        """Return the placement group and the workers, which who takes them ends."""
        placement, actors = self._placement, self._actors
        self._placement, self._actors = None, []
        return placement, actors

    def release(self) -> None:
        """End them, unless they were taken."""
        placement, _ = self.take()
        if placement is not None:
            from ray.util.placement_group import remove_placement_group

            remove_placement_group(placement)


def _asked_for(each: Mapping[str, float]) -> dict[str, float]:
    return {name: float(amount) for name, amount in each.items() if amount}
