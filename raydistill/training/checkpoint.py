"""Everything that decides the rest of a run: taken from a session, written with a checksum, read without pickle.

The state of one process, rank 0, is that of all: they differ only in what they add up over an epoch, of which every
rank's part is kept, and in statistics of batch-norms, which no loss looks at.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from raydistill.errors import RunError, first_line
from raydistill.files import write_atomically
from raydistill.models.weights import refusal_of
from raydistill.training.checkpoint_files import FILE, RECORD, check_seal
from raydistill.training.optional import optional_state, restore_optional_state
from raydistill.training.session import Session

State = dict[str, Any]


def state_of(session: Session) -> State:
    """Student, heads and state of the methods, optimiser, schedule, random state, place in the run, metrics so far.

    ``under_way`` is what ``Meter.state`` says of an epoch that is not at its end. ``stages``, where there are any
    before distillation: their records and the optimiser of the one under way. The tensors are the session's own.
    """
    stages = {"stages": {"records": list(session.stage_records), "optimizer": session.stage_optimizer}}
    return {
        "distiller": session.distiller.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "schedule": session.schedule.state_dict(),
        "random": _random_state(session.device),
        "epoch": session.epoch,
        "under_way": session.under_way,
        "history": list(session.history),
        "teacher_forwards": [teacher.forwards for teacher in session.sources],
        "seconds": session.seconds,
        "energy_j": session.energy.joules,
        "phases": session.phases.seconds(),
        **optional_state(session),
        **(stages if session.stages else {}),
    }


def snapshot(session: Session) -> State:
    """Return a copy of the session's state in the host's memory, which further steps leave alone."""
    copied: State = _on_host(state_of(session))
    return copied


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: _on_host(part) for name, part in value.items()}
    return [_on_host(part) for part in value] if isinstance(value, list) else value


def write_state(state: State, folder: Path, **about: Any) -> None:
    """Write a state into a folder, and beside it a record with its checksum and what is said ``about`` it.

    Raises:
        RunError: with the path and the system's reason.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    write_atomically(folder / FILE, content)
    record = {**about, "bytes": len(content), "xxh3": xxhash.xxh3_128_hexdigest(content)}
    write_atomically(folder / RECORD, json.dumps(record) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a checkpoint; nothing of one that was written before there were records, or of a damaged."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def read_state(folder: Path, device: torch.device) -> State:
    """Return what ``write_state`` wrote, with tensors on ``device``.

    Raises:
        RunError: if the file is missing, cut off or changed.
    """
    try:
        content = (folder / FILE).read_bytes()
        _compare(content, folder)
        state: State = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:  # of a damaged file torch's reader raises all kinds
        raise RunError(f"checkpoint {folder} is damaged: {refusal_of(error)}") from None
    return state


def _compare(content: bytes, folder: Path) -> None:
    """Raise ``ValueError`` where a file is not what its record says; of old checkpoints there is none."""
    if not (folder / RECORD).exists():
        return
    check_seal(json.loads((folder / RECORD).read_text()), len(content), xxhash.xxh3_128_hexdigest(content))


def restore(session: Session, state: State, origin: Path) -> None:
    """Put a session into a state that was read from ``origin``.

    Raises:
        RunError: if the state belongs to another experiment.
    """
    try:
        session.distiller.load_state_dict(state["distiller"])
        session.optimizer.load_state_dict(state["optimizer"])
        session.schedule.load_state_dict(state["schedule"])
        restore_optional_state(session, state)
        stages = state["stages"] if session.stages else {"records": [], "optimizer": None}
        session.epoch, session.history = state["epoch"], state["history"]
        session.stage_records, session.stage_optimizer = stages["records"], stages["optimizer"]
        session.under_way = state.get("under_way")
        session.seconds_before = state.get("seconds", 0.0)
        session.energy.restart(state.get("energy_j"))
        session.phases.restart(state.get("phases"))
        for teacher, forwards in zip(session.sources, state.get("teacher_forwards", ()), strict=False):
            teacher.forwards = forwards
        _set_random_state(session.device, state.get("random", {}))
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"checkpoint {origin} cannot be continued from: {first_line(error)}") from None


def adopt(session: Session, state: State, origin: Path) -> None:
    """Go on from a state of a run with other values; learning rate, weight decay and the like are the session's own.

    Raises:
        RunError: if the two do not have the same shapes.
    """
    optimizer, schedule = session.optimizer, session.schedule
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    rates = list(schedule.base_lrs)
    restore(session, state, origin)
    schedule.base_lrs = rates
    for group, values, rate, factor in zip(optimizer.param_groups, own, rates, schedule.lr_lambdas, strict=True):
        group.update(values, lr=rate * factor(schedule.last_epoch))


def load_checkpoint(session: Session, folder: Path) -> None:
    """Continue a session from a folder that ``write_state`` wrote.

    Raises:
        RunError: if the file is damaged or belongs to another experiment.
    """
    restore(session, read_state(folder, session.device), folder)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """Of the process: views and negatives do not draw from it, but dropout and the like in a student do."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    if "cpu" in state:
        torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
