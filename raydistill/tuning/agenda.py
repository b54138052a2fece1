"""What a sweep trains: its trials, and then the best of them anew with other seeds. No Ray here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from raydistill.config import Experiment
from raydistill.tuning.budget import Budget
from raydistill.tuning.selection import Ending, best_first
from raydistill.tuning.space import Values
from raydistill.tuning.suggesting import Suggestions

TRIALS = "trials"
FINALISTS = "finalists"


@dataclass(frozen=True)
class Job:
    """One run of a sweep. ``searching`` says whether it may be stopped early; finalists run to their end."""

    number: int
    trial: int
    folder: str
    values: Values
    seed: int
    searching: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Agenda:
    """Jobs one after the other: the same for the same seed, if their endings come in the same order."""

    def __init__(self, experiment: Experiment, suggestions: Suggestions, budget: Budget) -> None:
        """Begin with trial 0."""
        assert experiment.tune is not None
        self._experiment, self._config = experiment, experiment.tune
        self._suggestions, self.budget = suggestions, budget
        self._taken = 0
        self._live: dict[int, Job] = {}
        self._searched: dict[int, Job] = {}
        self._endings: dict[int, Ending] = {}
        self._finals: list[Job] | None = None

    @property
    def total(self) -> int:
        """Number of all jobs at most."""
        finals = self._config.finalists * self._config.repeats if self._config.repeats > 1 else 0
        return self._suggestions.total + finals

    def ready(self) -> bool:
        """Whether a job can begin now."""
        return self._searching() or bool(self._finalists())

    def finished(self) -> bool:
        """Whether no job will begin any more."""
        return not self._live and not self.ready()

    def take(self) -> Job:
        """Begin the next job; only where one is ``ready``."""
        if self._searching():
            number = self._taken
            job = Job(
                number, number, f"{TRIALS}/{number:04d}", self._suggestions.ask(number), self._experiment.seed, True
            )
        else:
            job = self._finalists().pop(0)
        self._taken += 1
        self._live[job.number] = job
        return job

    def report(self, number: int, epoch: int, metric: float) -> None:
        """A trial was judged after so many epochs."""
        self._suggestions.report(number, epoch, metric)

    def end(self, number: int, metric: float | None, *, whole: bool) -> None:
        """A job ended, ``whole`` if not before its last epoch; without a metric, it failed."""
        job = self._live.pop(number, None)
        if job is None or not job.searching:
            return
        self._suggestions.tell(number, metric)
        if metric is not None and math.isfinite(metric):
            self._searched[number], self._endings[number] = job, Ending(metric, whole)

    def _searching(self) -> bool:
        return self._finals is None and self._taken < self._suggestions.total and not self.budget.is_spent

    def _finalists(self) -> list[Job]:
        """Finalists that have not begun; none as long as a trial is under way."""
        if self._finals is None:
            if self._live or self._config.repeats == 1:
                return []
            best = best_first(self._endings, self._config.mode)[: self._config.finalists]
            self._finals = [
                Job(
                    number=self._taken + position,
                    trial=job.trial,
                    folder=f"{FINALISTS}/{job.trial:04d}-seed{seed}",
                    values=job.values,
                    seed=seed,
                    searching=False,
                )
                for position, (job, seed) in enumerate(
                    (self._searched[trial], self._experiment.seed + 1 + repeat)
                    for trial in best
                    for repeat in range(self._config.repeats)
                )
            ]
        return self._finals
