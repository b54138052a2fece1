"""Sessions of an experiment in this process, on the CPU and without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from raydistill.config import Experiment
from raydistill.training.assembly import assemble
from raydistill.training.checkpoint import snapshot, write_state
from raydistill.training.loop import fit
from raydistill.training.material import prepare
from raydistill.training.session import Session


def session_of(experiment: Experiment) -> Session:
    """The session that one worker of the experiment would have."""
    return assemble(experiment, prepare(experiment), device=torch.device("cpu"))


def trained(experiment: Experiment) -> Session:
    """The session after all epochs, with their metrics in its history."""
    session = session_of(experiment)
    fit(session, lambda metrics, session: session.history.append(metrics))
    return session


def save_checkpoint(session: Session, folder: Path) -> None:
    """Write the session's state as a worker does."""
    write_state(snapshot(session), folder)


def without_times(record: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's metrics but those that differ from one run to the next."""
    return {
        name: value
        for name, value in record.items()
        if name not in ("seconds", "images_per_s", "energy_j") and not name.startswith("time/")
    }


def assert_equal_states(left: Session, right: Session) -> None:
    """Assert that student, heads and the methods' state are the same bit for bit."""
    for name, value in left.distiller.state_dict().items():
        assert torch.equal(value, right.distiller.state_dict()[name]), name
