"""The networks that other tasks begin with: a run's student, or the same network with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from raydistill.errors import DataError
from raydistill.exporting.deployed import Description
from raydistill.exporting.subject import read_run
from raydistill.models.loading import build_described
from raydistill.models.taps import Tapped

COLOURS = {1: "L", 3: "RGB"}
"""Channels -> Pillow's mode of the images that a student takes."""


def beginning(run: Path, *, fresh: bool, seed: int) -> tuple[Tapped, Description]:
    """Return the network to begin with, whose weights may be trained, and what its images look like.

    Raises:
        DataError, ConfigError, WeightsError: where the student cannot be rebuilt, or sees neither grey nor colours.
    """
    subject = read_run(run)
    description = subject.description
    if description.image_shape[0] not in COLOURS:
        raise DataError(f"{run}: its student sees {description.image_shape[0]} channels, which no photograph has")
    network = subject.student
    if fresh:
        torch.manual_seed(seed)
        plain = subject.experiment.student.model_copy(update={"weights": None})
        network = build_described(plain, description.num_classes, description.image_shape[0])
    return network.requires_grad_(True), description
