"""The stages that methods ask for before distillation: plain torch, no Ray.

A stage sees the batches and views of ordinary epochs, drawn for its own needs, and has an optimiser of its own. How
far a session is follows from ``stage_records``, which holds one record for each finished epoch of all its stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from raydistill.methods.base import Stage
from raydistill.methods.collectives import mean_over_ranks, rows_held, world_size
from raydistill.training.keeping import Keeper
from raydistill.training.lookout import Lookout
from raydistill.training.meter import Meter, Metrics, Progress, Say, silent
from raydistill.training.micro_batches import weighted, whole_batch
from raydistill.training.optimisation import build_optimizer
from raydistill.training.phases import BACKWARD, CHECKPOINT, DATA, OBJECTIVE, OPTIMIZER, STUDENT
from raydistill.training.session import Session
from raydistill.training.stalls import stalls_told
from raydistill.training.step import autocast

Record = dict[str, Any]
ReportStage = Callable[[Record, Session], None]

MOMENTUM = 0.9


def run_stages(
    session: Session,
    report: ReportStage,
    progress: Progress = lambda values: None,
    *,
    keeper: Keeper = Keeper(),  # noqa: B008  it has no state
    say: Say = silent,
) -> None:
    """Run what is left of the session's stages; ``report`` is called after each epoch with its record.

    A record has ``stage``, ``epoch`` counted from 1, ``train/loss``, ``train/<term>``, ``seconds`` and
    ``time/<phase>``. ``say`` is told what the user should know early.

    Raises:
        DivergedError: where a loss is not finite.
    """
    before = 0
    for label, stage in session.stages.items():
        done = len(session.stage_records) - before
        if done < stage.epochs:
            _StageRun(session, label, stage, progress, keeper, say).run(done, report)
        before += stage.epochs


@dataclass(frozen=True)
class _StageRun:
    """One stage of a session."""

    session: Session
    label: str
    stage: Stage
    progress: Progress
    keeper: Keeper
    say: Say

    def run(self, done: int, report: ReportStage) -> None:
        """Run the epochs after the ``done`` ones."""
        session, stage = self.session, self.stage
        with _training_alone(session.distiller, stage.trains):
            optimizer = self._build_optimizer()
            for epoch in range(done, stage.epochs):
                config = session.experiment.train
                meter = Meter(self._show, epoch, session.steps_per_epoch, config.batch_size, session.take_under_way())
                metrics = self._train_epoch(epoch, meter, optimizer)
                last = epoch + 1 == stage.epochs
                if last and stage.finish is not None:
                    stage.finish()
                self._note_optimizer(None if last else optimizer)
                record = {"stage": self.label, "epoch": epoch + 1, **metrics, "seconds": meter.seconds}
                record |= session.phases.result()
                session.stage_records.append(record)
                report(record, session)

    def _build_optimizer(self) -> torch.optim.Optimizer | None:
        """Return the stage's optimiser, in the state in which it stopped; None where there is nothing to train."""
        parameters = list(dict.fromkeys(parameter for module in self.stage.trains for parameter in module.parameters()))
        if not parameters:
            return None
        config = self.session.experiment.train.optimizer
        values = {"name": "sgd", "momentum": MOMENTUM, "nesterov": False, "lr": self.stage.lr or config.lr}
        optimizer = build_optimizer(config.model_copy(update=values), parameters)
        if self.session.stage_optimizer is not None:
            optimizer.load_state_dict(self.session.stage_optimizer)
        return optimizer

    def _train_epoch(self, epoch: int, meter: Meter, optimizer: torch.optim.Optimizer | None) -> Metrics:
        session, phases, needs = self.session, self.session.phases, self.stage.needs
        lookout = Lookout(
            session,
            epoch,
            needs,
            where=f"stage of methods.{self.label}, ",
            remedy="its pretrain_lr or train.optimizer.lr",
        )
        steps = phases.each(DATA, session.steps(epoch, needs, start=meter.count))
        for step in stalls_told(steps, self.say, lambda: session.place_of(epoch, meter.count)):
            part = whole_batch(step, session.rank)
            with rows_held(part.shares), autocast(session, scaled=False):
                with phases(STUDENT):
                    outputs = session.distiller.student_outputs(step, needs)
                with phases(OBJECTIVE):
                    loss = self.stage.loss(replace(step, student=outputs))
            loss = weighted(loss, part.weight)
            if optimizer is not None:
                _descend(loss.total, optimizer, session)
            terms = {"loss": loss.total.detach(), **{name: value.detach() for name, value in loss.terms.items()}}
            lookout.see(meter.count, terms)
            meter.add(terms)
            # What a stage with ``finish`` collects is in no checkpoint, so its epoch is not cut.
            if self.stage.finish is None and self.keeper.due(meter):
                self._note_optimizer(optimizer)
                with phases(CHECKPOINT):
                    self.keeper.keep(session, meter)
        lookout.look()
        return meter.result()

    def _note_optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        self.session.stage_optimizer = None if optimizer is None else optimizer.state_dict()

    def _show(self, values: Mapping[str, Any]) -> None:
        self.progress({**values, "stage": self.label, "epochs": self.stage.epochs})


@contextmanager
def _training_alone(distiller: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let nothing but these modules train for a while; all parameters' flags come back and no gradient stays behind."""
    kept = [(parameter, parameter.requires_grad) for parameter in distiller.parameters()]
    distiller.eval().requires_grad_(False)
    for module in modules:
        module.train().requires_grad_(True)
    try:
        yield
    finally:
        for parameter, trains in kept:
            parameter.requires_grad_(trains)
            parameter.grad = None


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer, session: Session) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    with session.phases(BACKWARD):
        torch.autograd.backward(loss)
        _average_gradients(parameters)
    with session.phases(OPTIMIZER):
        if (clip := session.experiment.train.clip) is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()


def _average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over the ranks in one exchange, as the wrapper of the distiller does in distillation."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not gradients:
        return
    means = mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    pieces = torch.split(means, [gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view(gradient.shape))
