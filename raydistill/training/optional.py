"""What a session has only where the experiment asks for it, in and out of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from raydistill.training.precision import Probe
from raydistill.training.session import Session


def optional_state(session: Session) -> dict[str, Any]:
    """The averaged student, the scaler of gradients, and the precision that was found to be faster."""
    state: dict[str, Any] = {}
    if session.average is not None:
        state["average"] = session.average.state_dict()
    if session.scaler is not None:
        state["scaler"] = session.scaler.state_dict()
    if session.probe is not None:
        state["probe"] = asdict(session.probe)
    return state


def restore_optional_state(session: Session, state: Mapping[str, Any]) -> None:
    """Undo ``optional_state``; another measurement than the first must not change the rest of the run.

    Raises:
        KeyError: where the checkpoint lacks what the experiment asks for.
    """
    if session.average is not None:
        session.average.load_state_dict(state["average"])
    if session.scaler is not None:
        session.scaler.load_state_dict(state["scaler"])
    if session.probe is not None:
        session.probe = Probe(**state["probe"])
