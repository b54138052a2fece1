"""The section ``scale`` of an experiment: how many workers, on what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raydistill.section import Count, Section


class ScaleConfig(Section):
    """Where the work runs.

    ``sync_batch_norm`` lets the student's batch-norms, and those of the methods' heads, take their statistics from the
    batches of all workers, so that these together compute what one would with the whole batch.

    With ``min_workers`` the number of workers is elastic: as many as the cluster has room for, from that to
    ``workers``. A run then goes on with fewer when nodes are lost, and from its last checkpoint with more when there
    are new ones; the global batch stays the same.
    """

    workers: Count = 1
    min_workers: Count | None = None
    sync_batch_norm: bool = False
    use_gpu: bool | Literal["auto"] = "auto"
    cpus_per_worker: Count | None = None
    max_failures: Annotated[int, Field(ge=0)] = 2

    @property
    def least_workers(self) -> int:
        """The number with which a run starts or goes on, if there is no room for more."""
        return self.workers if self.min_workers is None else self.min_workers

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> ScaleConfig:
        if self.least_workers > self.workers:
            raise ValueError(f"min_workers = {self.min_workers}: is more than workers = {self.workers}")
        return self
