"""One step of the student's training: forward, backward, update."""

from __future__ import annotations

import contextlib

import torch

from raydistill.methods.base import Loss, Step
from raydistill.training.session import Session


def descend(session: Session, step: Step) -> Loss:
    """Train the student and the methods' heads on one batch; nothing here waits for the device."""
    with autocast(session):
        loss: Loss = session.model(step)
    session.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss.total)
    clip = session.experiment.train.clip
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(session.distiller.parameters(), clip)
    session.optimizer.step()
    session.schedule.step()
    session.distiller.after_step(loss.carry)
    return loss


def autocast(session: Session) -> contextlib.AbstractContextManager[object]:
    """Return the context of the forward pass in the experiment's precision."""
    if session.experiment.train.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(session.device.type, dtype=torch.bfloat16)
