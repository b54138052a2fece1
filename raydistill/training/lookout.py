"""Looks out for what makes the rest of a run worthless: terms that are not finite, or out of all proportion."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raydistill.errors import DivergedError
from raydistill.evaluation.proportion import proportion_warnings
from raydistill.methods.base import Needs
from raydistill.methods.collectives import gather_rows
from raydistill.training.meter import Say, silent
from raydistill.training.session import Session

LOOK_EVERY = 64
"""Steps between two looks, for each of which the host waits for the device."""
NAMED_IDS = 8


class Lookout:
    """Follows the terms of one epoch; to be used alike on every rank, since all of them stop together."""

    def __init__(
        self,
        session: Session,
        epoch: int,
        needs: Needs,
        say: Say = silent,
        *,
        weights: Mapping[str, float] | None = None,
        where: str = "",
        remedy: str = "train.optimizer.lr or the term's weight",
    ) -> None:
        """Start before the first step.

        Args:
            session: whose batches these are.
            epoch: counted from 0.
            needs: what the batches were drawn for.
            say: told of what does not stop the run.
            weights: by which terms enter the loss; those of the objective, where they shall be compared.
            where: begins the message of what stops it.
            remedy: what that message says to lower.
        """
        self._session, self._epoch, self._needs, self._say = session, epoch, needs, say
        self._weights, self._where, self._remedy = weights or {}, where, remedy
        self._steps: list[int] = []
        self._terms: list[Mapping[str, Tensor]] = []
        self._said: set[str] = set()

    def see(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Note the terms of a step of the epoch, counted from 0; look at those of the last steps now and then."""
        self._steps.append(step)
        self._terms.append(terms)
        if (step + 1) % LOOK_EVERY == 0:
            self.look()

    def look(self) -> None:
        """Look at all that was noted since the last time.

        Raises:
            DivergedError: on all ranks, where a term of any of them is NaN or infinite. It names the terms, the first
                step with one, and samples of its batch; ``logs/diverged.json`` of the run holds them all.
        """
        if not self._terms:
            return
        names = list(dict.fromkeys(name for terms in self._terms for name in terms))
        absent = torch.zeros((), device=self._session.device)
        values = torch.stack(
            [torch.stack([terms.get(name, absent).float() for name in names]) for terms in self._terms]
        )
        broken = gather_rows((~values.isfinite()).byte().unsqueeze(0)).cpu().bool()  # [W, steps, terms]
        steps, self._steps, self._terms = self._steps, [], []
        if broken.any():
            first = int(broken.any(dim=2).any(dim=0).int().argmax())
            self._stop(steps[first], names, broken[:, first])
        if self._session.rank == 0:
            self._compare(dict(zip(names, values.mean(dim=0).tolist(), strict=True)))

    def _compare(self, means: Mapping[str, float]) -> None:
        shares = {label: weight * means[label] for label, weight in self._weights.items() if label in means}
        for warning in proportion_warnings(shares):
            if warning not in self._said:
                self._said.add(warning)
                self._say(f"epoch {self._epoch + 1}: {warning}")

    def _stop(self, step: int, names: list[str], broken: Tensor) -> None:
        """Raise what ``look`` says; ``broken`` is bool [W, terms] of the step."""
        session = self._session
        terms = [name for name, found in zip(names, broken.any(dim=0).tolist(), strict=True) if found]
        terms = [name for name in terms if name != "loss"] or terms
        ranks = broken.any(dim=1).nonzero().flatten().tolist()
        positions = torch.cat([session.positions_of(self._epoch, step, rank) for rank in ranks])
        ids = session.ids_of(positions)
        sources = self._broken_outputs(positions)
        found = {"epoch": self._epoch + 1, "step": step + 1, "terms": terms, "ids": ids, "teacher": sources}
        place = f"{self._where}epoch {self._epoch + 1}, step {step + 1} of {session.steps_per_epoch}"
        more = f", ... ({len(ids)} in logs/diverged.json)" if len(ids) > NAMED_IDS else ""
        shown = ", ".join(map(str, ids[:NAMED_IDS])) + more
        if sources:
            source, its_ids = next(iter(sources.items()))
            cause = f"There {source} is not finite for the ids {', '.join(map(str, its_ids[:NAMED_IDS]))}: look at it"
        else:
            cause = f"Lower {self._remedy}, or set train.clip"
        raise DivergedError(
            f"{place}: {', '.join(terms)} became NaN or infinite, with the batch of ids {shown}; the last good "
            f"checkpoint is kept. {cause}",
            found,
        )

    def _broken_outputs(self, positions: Tensor) -> dict[str, list[int]]:
        """What a teacher said of these samples that is not finite -> their ids."""
        session, found = self._session, dict[str, list[int]]()
        for number, teacher in enumerate(session.draw(positions, self._epoch, self._needs).teachers):
            for outputs in teacher.values():
                for name, rows in outputs.items():
                    bad = ~rows.flatten(1).isfinite().all(dim=1)
                    if bad.any():
                        found[f"the {name} of teacher {number}"] = session.ids_of(positions[bad.to(positions.device)])
        return found
