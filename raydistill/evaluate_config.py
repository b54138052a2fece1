"""What an experiment says about its report card."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from raydistill.data.config import DataConfig
from raydistill.errors import did_you_mean
from raydistill.protocol_names import ALL, PROTOCOLS
from raydistill.section import Count, Section


def _known_protocol(name: str) -> str:
    if name not in (*PROTOCOLS, ALL):
        raise ValueError(f"must be one of {', '.join((*PROTOCOLS, ALL))}{did_you_mean(name, PROTOCOLS)}")
    return name


Protocol = Annotated[str, AfterValidator(_known_protocol), Field(description="a name of `raydistill list protocols`")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]


class EvaluateConfig(Section):
    """What ``raydistill eval`` measures.

    ``transfer`` names further data sets on which the networks' features are judged as they are: whatever of
    ``protocols`` needs no classifier of the network's own is measured there, too, fitted on their training images and
    judged by their test images.
    """

    protocols: Annotated[tuple[Protocol, ...], Field(min_length=1)] = ("top1", "top5", "knn", "nn1", "cost")
    transfer: dict[Label, DataConfig] = Field(default_factory=dict)
    k: Count = 20
    batch_size: Count = 256
