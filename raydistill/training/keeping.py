"""Keeps the state of a run: a step only copies it to the host's memory, a thread behind writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType

import torch

from raydistill.threads import thread_beside
from raydistill.train_config import CheckpointConfig
from raydistill.training.checkpoint import State, snapshot
from raydistill.training.due import Due
from raydistill.training.meter import Meter
from raydistill.training.session import Session
from raydistill.training.shelf import METRIC, Shelf


class Keeper:
    """Keeps nothing, as in the trials of a sweep."""

    def due(self, meter: Meter) -> bool:
        """Return whether the state shall be kept after this step, which is not the epoch's last one."""
        return False

    def keep(self, session: Session, meter: Meter) -> None:
        """Keep the state within an epoch."""

    def keep_stage_epoch(self, session: Session) -> None:
        """Keep the state after an epoch of a stage before distillation."""

    def keep_epoch(self, session: Session) -> None:
        """Keep the state after an epoch, whose metrics are in the session's history, if that is due."""

    def finish(self) -> None:
        """Wait until all is written; raise what went wrong."""


class CheckpointKeeper(Keeper):
    """Keeps checkpoints on a shelf; to be used alike on every rank, of which the first one writes.

    One checkpoint at a time is being written: where the next is due before, the step waits, so that no more than one
    copy of the state is held. What the thread met is raised at the next call.
    """

    def __init__(self, shelf: Shelf, config: CheckpointConfig, due: Due) -> None:
        """Start with nothing to write."""
        self._shelf, self._config, self._due = shelf, config, due
        self._over = False
        self._pool = thread_beside("checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> CheckpointKeeper:
        """Keep what is due."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish; where the run failed already, let its own error stand."""
        with contextlib.suppress(Exception) if error is not None else contextlib.nullcontext():
            self.finish()
        self._pool.shutdown()

    def due(self, meter: Meter) -> bool:
        """See ``Keeper``; what is due with the epoch's last step waits for the validation."""
        self._over = self._due.after_step()
        return self._over and not meter.full

    def keep(self, session: Session, meter: Meter) -> None:
        """See ``Keeper``; the ranks meet here."""
        session.under_way = meter.state()
        self._keep(session)
        session.under_way = None

    def keep_stage_epoch(self, session: Session) -> None:
        """See ``Keeper``; always."""
        self._keep(session)

    def keep_epoch(self, session: Session) -> None:
        """See ``Keeper``."""
        last = session.epoch == session.experiment.train.epochs
        if self._over or last or session.epoch % self._config.epochs == 0:
            self._keep(session, session.history[-1].get(METRIC))

    def finish(self) -> None:
        """See ``Keeper``."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _keep(self, session: Session, top1: float | None = None) -> None:
        self._over = False
        self._due.restart()
        if session.rank == 0:
            self.finish()
            trained = [name for name, _ in session.distiller.named_parameters()]
            self._writing = self._pool.submit(self._write, snapshot(session), trained, session.steps_done, top1)

    def _write(self, state: State, trained: Sequence[str], step: int, top1: float | None) -> None:
        if not _finite(state, trained):  # never in a sound one's place; the lookout says what happened
            return
        self._shelf.put(state, step, top1)
        self._shelf.thin(self._config.keep, best=self._config.best)


def _finite(state: State, trained: Sequence[str]) -> bool:
    """Whether all losses of the epoch under way are, and all that is ``trained``: a gradient alone may be broken."""
    sums = (state["under_way"] or {"sums": {}})["sums"]
    weights = [state["distiller"][name] for name in trained]
    return all(bool(torch.isfinite(values).all()) for values in [*sums.values(), *weights])
