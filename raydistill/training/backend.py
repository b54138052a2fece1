"""Ray Train's ``TorchTrainer`` without what costs a run seconds and gives it nothing.

Its own configuration brings torch into the controller's process, for which every start waits, and opens a port even for
a worker that is alone. And it starts an actor that removes the workers' resources should the controller be gone, of
which it asks Ray's dashboard: without one that actor can do nothing, and its end is waited for ten seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from raydistill.cluster import has_dashboard


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


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Starts no actor that asks the dashboard where there is none."""

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
            config = backend_config.of_ray()
            config.backend_cls().on_start(worker_group, config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Let the workers part."""
        if len(worker_group) > 1:
            config = backend_config.of_ray()
            config.backend_cls().on_shutdown(worker_group, config)
