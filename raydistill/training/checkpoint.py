"""Everything that decides the rest of a run, in one file that is written atomically and read without pickle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from raydistill.errors import RunError
from raydistill.files import write_atomically
from raydistill.training.optional import optional_state, restore_optional_state
from raydistill.training.session import Session

FILE = "state.pt"


def state_of(session: Session) -> dict[str, Any]:
    """Student, heads and state of the methods, optimiser, schedule, epoch and the metrics so far.

    ``stages``, where there are any before distillation: their records and the optimiser of the one under way.
    """
    stages = {"stages": {"records": session.stage_records, "optimizer": session.stage_optimizer}}
    return {
        "distiller": session.distiller.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "schedule": session.schedule.state_dict(),
        "epoch": session.epoch,
        "history": session.history,
        **optional_state(session),
        **(stages if session.stages else {}),
    }


def save_checkpoint(session: Session, folder: Path) -> None:
    """Write the session's state into a folder."""
    buffer = io.BytesIO()
    torch.save(state_of(session), buffer)
    write_atomically(folder / FILE, buffer.getbuffer())


def load_checkpoint(session: Session, folder: Path) -> None:
    """Continue a session from a folder that ``save_checkpoint`` wrote.

    Raises:
        RunError: if the file is damaged or belongs to another experiment.
    """
    try:
        state = torch.load(folder / FILE, map_location=session.device, weights_only=True)
        session.distiller.load_state_dict(state["distiller"])
        session.optimizer.load_state_dict(state["optimizer"])
        session.schedule.load_state_dict(state["schedule"])
        restore_optional_state(session, state)
        stages = state["stages"] if session.stages else {"records": [], "optimizer": None}
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"checkpoint {folder} cannot be continued from: {reason}") from None
    session.epoch = state["epoch"]
    session.history = state["history"]
    session.stage_records, session.stage_optimizer = stages["records"], stages["optimizer"]
