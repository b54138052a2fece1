"""One step of the student's training: forward, backward, update."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from raydistill.methods.base import Loss, Step
from raydistill.methods.collectives import rows_held
from raydistill.methods.state import averages_resting
from raydistill.training.compiling import new_micro_batch
from raydistill.training.micro_batches import MicroBatch, added, micro_batches, weighted, without_graph
from raydistill.training.phases import BACKWARD, OPTIMIZER
from raydistill.training.session import Session

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def descend(session: Session, step: Step) -> Loss:
    """Train the student and the methods' heads on one batch; nothing here waits for the device.

    With ``train.accumulate`` the gradient is the sum over micro-batches. To the methods each of these is a batch: what
    relates the samples of a batch relates its samples, queues, banks, centres and priors take it before the next one
    comes, and only what follows the student waits until the student has moved.

    Returns:
        This worker's part of the batch's loss and terms: their mean over the workers is the mean over the batch. Where
        gradients are clipped or scaled, ``gradient_norm`` is their norm before clipping. Scaled ones that overflow
        move nothing; they count as 0 there, and in the share ``skipped_steps`` as 1.
    """
    *before, last = micro_batches(step, session.rank)
    with session.phases(OPTIMIZER):
        session.optimizer.zero_grad(set_to_none=True)
    done: Loss | None = None
    for micro_batch in before:
        with rows_held(micro_batch.shares), _without_exchange(session.model):
            loss = _backward(session, micro_batch)
            with averages_resting():
                session.distiller.after_step(loss.carry)
        loss = without_graph(loss)
        done = loss if done is None else added(done, loss)
    with rows_held(last.shares):
        loss = _backward(session, last)
        with session.phases(OPTIMIZER):
            told = _update(session)
        session.distiller.after_step(loss.carry)
    loss = loss if done is None else added(done, loss)
    return replace(loss, terms={**loss.terms, **told}) if told else loss


def autocast(session: Session, *, scaled: bool = True) -> contextlib.AbstractContextManager[object]:
    """Return the context of the forward pass in the session's precision.

    Without ``scaled`` nothing multiplies the loss against gradients that underflow in float16: then float32 it is.
    """
    half = HALVES.get(session.precision)
    if half is None or (half is torch.float16 and not scaled):
        return contextlib.nullcontext()
    return torch.autocast(session.device.type, dtype=half)


def _backward(session: Session, micro_batch: MicroBatch) -> Loss:
    """Add the gradient of this worker's part of a micro-batch."""
    if session.experiment.train.compile == "cuda_graphs":
        new_micro_batch()
    with autocast(session):
        loss: Loss = session.model(micro_batch.step)
    loss = weighted(loss, micro_batch.weight)
    total = loss.total if session.scaler is None else session.scaler.scale(loss.total)
    with session.phases(BACKWARD):
        torch.autograd.backward(total)
    return loss


def _without_exchange(model: torch.nn.Module) -> contextlib.AbstractContextManager[object]:
    """Leave the workers' gradients apart; they are averaged with those of the step's last micro-batch."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def _update(session: Session) -> dict[str, Tensor]:
    """Move everything trained by the gradients, and the average after it; return what is to be told of them."""
    scaler = session.scaler
    if scaler is not None:
        scaler.unscale_(session.optimizer)
    told = _clip(session)
    if scaler is None:
        session.optimizer.step()
    else:
        scaler.step(session.optimizer)
        scaler.update()
    if session.average is not None:
        session.average.follow(session.distiller.student, session.schedule.last_epoch)
    session.schedule.step()
    return told


def _clip(session: Session) -> dict[str, Tensor]:
    parameters, limit = session.distiller.parameters(), session.experiment.train.clip
    if limit is not None:
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    elif session.scaler is not None:
        norm = torch.nn.utils.get_total_norm([value.grad for value in parameters if value.grad is not None])
    else:
        return {}
    if session.scaler is None:
        return {"gradient_norm": norm}
    finite = norm.isfinite()
    return {"gradient_norm": torch.where(finite, norm, 0.0), "skipped_steps": 1.0 - finite.to(norm.dtype)}
