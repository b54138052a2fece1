"""What the sections about images are made of; those about anything else stand on ``raydistill.section``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Frozen; unknown keys and non-finite numbers are forbidden."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
