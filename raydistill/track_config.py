"""The section ``track`` of an experiment: services that keep runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raydistill.section import Section


class WandbConfig(Section):
    """A run of Weights & Biases; needs the package ``wandb``, and its API key as ``wandb login`` keeps it.

    ``project`` and ``entity`` say where it goes. ``group`` puts runs together; of the trials of a sweep it is the
    sweep's name where not given. ``offline`` keeps all in the run's ``logs/wandb``, for ``wandb sync``; where ``mode``
    is not given, wandb's own settings decide, such as WANDB_MODE.
    """

    project: str = "raydistill"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] | None = None


class MlflowConfig(Section):
    """A run of MLflow; needs the package ``mlflow`` or ``mlflow-skinny``. The trials of a sweep are nested in its own.

    ``uri`` is that of the server or the data base, such as ``sqlite:///mlflow.db``; where it is not given, MLflow's own
    settings decide, such as MLFLOW_TRACKING_URI. ``experiment`` is made where there is none of that name; ``tags`` go
    to every run.
    """

    uri: str | None = None
    experiment: str = "raydistill"
    tags: dict[str, str] = Field(default_factory=dict)


class TrackConfig(Section):
    """Services that keep runs beside their folders; they get configuration, metrics, result and the smaller files."""

    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of those that are given."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)
