"""Fields of methods that train something before distillation. Inherit in front of ``Method``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field


class Pretraining(BaseModel):
    """Length of the stage and its constant learning rate; ``pretrain_lr: null`` is the experiment's."""

    pretrain_epochs: Annotated[int, Field(ge=1)] = 30
    pretrain_lr: Annotated[float, Field(gt=0.0)] | None = None
