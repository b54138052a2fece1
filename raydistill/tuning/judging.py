"""Ray Tune's side of a sweep: its searcher takes jobs from the agenda, its scheduler judges them in their turn.

Ray's own schedulers decide; ``Judge`` stands before one of them. Tune does not keep what schedulers know over a restart
(ray-project/ray#30838). Here nothing needs to be kept: a sweep that goes on lets all trials report anew what stands in
their folders, in the same order, and so comes to the same decisions.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from raydistill.config import Experiment
from raydistill.errors import RunError
from raydistill.training.run_folder import RunFolder
from raydistill.tune_config import BudgetConfig, SchedulerConfig, TuneConfig
from raydistill.tuning.agenda import Agenda
from raydistill.tuning.population import EPOCH, Population
from raydistill.tuning.trial import REFUSED
from raydistill.tuning.trial_folder import TrialFolder
from raydistill.tuning.turns import AsTheyCome, Turns

PATIENCE_S = 120.0
"""How long reports wait for that of a trial which has lost its process and finds no room for a new one."""


class Jobs(Searcher):  # type: ignore[misc]  # Ray has no types
    """Hands the agenda's jobs to Ray Tune, as many at a time as there are slots."""

    def __init__(self, agenda: Agenda, slots: int, config: TuneConfig) -> None:
        """Begin with all slots free."""
        super().__init__(metric=config.metric, mode=config.mode)
        self._agenda, self._slots = agenda, slots
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next job as a trial's configuration; None where it has to wait."""
        if self._agenda.finished():
            return str(Searcher.FINISHED)
        if len(self._numbers) >= self._slots or not self._agenda.ready():
            return None
        job = self._agenda.take()
        self._numbers[trial_id] = job.number
        return job.to_dict()

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell the agenda how a job ended."""
        number = self._numbers.pop(trial_id, None)
        if number is not None:
            result = result or {}
            metric = None if error else result.get(self.metric)
            self._agenda.end(number, metric, whole=bool(result.get("final")))

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: see above."""

    def restore(self, checkpoint_path: str) -> None:
        """There is nothing to restore."""


class Leaving(Callback):  # type: ignore[misc]
    """Ends Ray Tune with ``KeyboardInterrupt`` once ``leave`` is set."""

    def __init__(self, leave: threading.Event) -> None:
        """Begin to look at it."""
        self._leave = leave

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ray Tune has come round again."""
        if self._leave.is_set():
            raise KeyboardInterrupt

    def __getstate__(self) -> dict[str, Any]:
        """Ray stores its callbacks, and nobody reads them."""
        return {}


class Judge(TrialScheduler):  # type: ignore[misc]
    """Lets a scheduler of Ray decide on reports whose turn it is; the others wait, and their trials with them."""

    def __init__(self, inner: TrialScheduler, turns: Turns, agenda: Agenda, root: Path) -> None:
        """``root`` is the sweep's folder."""
        self._inner, self._turns, self._agenda, self._root = inner, turns, agenda, root
        self._trials: dict[int, Trial] = {}
        self._reports: dict[int, Mapping[str, Any]] = {}
        self._offered: set[str] = set()
        self._waiting_since: float | None = None

    @property
    def metric(self) -> Any:
        """Ray asks for it."""
        return self._inner.metric

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Hand metric and mode on."""
        return bool(self._inner.set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial takes its place among the turns; one that begins again has it."""
        if trial.config["number"] in self._trials:
            _spare_second_failure(tune_controller, trial)
            return
        if trial.config["searching"]:
            self._inner.on_trial_add(tune_controller, trial)
        self._trials[trial.config["number"]] = trial
        self._turns.begin(trial.config["number"])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """Let a report go through that nothing hangs on; keep others until their turn has come.

        Raises:
            RunError: where the disk refused what the trial wrote.
        """
        if REFUSED in result:
            raise RunError(str(result[REFUSED]))
        number, epoch = trial.config["number"], int(result[EPOCH])
        final = bool(result["final"])
        if not self._turns.matters(number, epoch, final=final) or not (final or trial.config["searching"]):
            return str(TrialScheduler.CONTINUE)
        self._reports[number] = result
        self._turns.arrive(number, epoch)
        return self._judge_due(tune_controller, asking=number)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Judge whatever is due by now; called again and again.

        A new trial comes first: it goes on in the process of the one whose place it takes. Tune keeps but one that is
        idle, and ends that of the next trial which is stopped meanwhile.
        """
        if (new := self._not_offered_before(tune_controller)) is not None:
            return new
        self._judge_due(tune_controller)
        self._overtake(tune_controller)
        chosen: Trial | None = self._inner.choose_trial_to_run(tune_controller)
        return chosen

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> None:
        """A trial that was stopped, or came to its end, gives its slot back."""
        if trial.config["searching"]:
            if math.isfinite(result.get(self.metric, math.nan)):
                self._inner.on_trial_complete(tune_controller, trial, result)
            else:  # what failed is nothing to compare with
                self._inner.on_trial_error(tune_controller, trial)
        self._leave(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A trial whose process died is awaited again; where that happened too often, it is left."""
        if trial.should_recover():
            with contextlib.suppress(RunError):  # for want of a word no sweep shall end
                RunFolder(self._root).note(f"trial {trial.config['number']} was lost and begins again")
            self._reports.pop(trial.config["number"], None)
            self._turns.withdraw(trial.config["number"])
            return
        if trial.config["searching"]:
            self._inner.on_trial_error(tune_controller, trial)
        folder = TrialFolder(self._root / trial.config["folder"])
        if folder.record:
            folder.mark("failed", "its process died again and again; see Ray's logs for the reason")
        self._turns.leave(trial.config["number"])

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """A trial that is paused is stopped, or one that never ran is taken back."""
        self._inner.on_trial_remove(tune_controller, trial)
        self._leave(trial)

    def debug_string(self) -> str:
        """Ray shows it."""
        return str(self._inner.debug_string())

    def _not_offered_before(self, tune_controller: Any) -> Trial | None:
        """Return the trial to run next if Tune has not heard of it yet; one that finds no room blocks nothing."""
        chosen: Trial | None = self._inner.choose_trial_to_run(tune_controller)
        if chosen is None or chosen.trial_id in self._offered:
            return None
        self._offered.add(chosen.trial_id)
        return chosen

    def _judge_due(self, tune_controller: Any, asking: int | None = None) -> str:
        """Judge reports as long as one is due; return the verdict on the one that asks, if that is among them."""
        answer = str(TrialScheduler.NOOP)
        while (number := self._turns.due()) is not None:
            trial, decision = self._trials[number], self._decide(tune_controller, number)
            self._turns.judge(number, ended=decision == TrialScheduler.STOP)
            if number == asking:
                answer = decision
            else:
                _carry_out(tune_controller, trial, decision)
        return answer

    def _decide(self, tune_controller: Any, number: int) -> str:
        trial, result = self._trials[number], self._reports.pop(number)
        self._waiting_since = None
        comparable = math.isfinite(result[self.metric])
        if trial.config["searching"]:
            self._agenda.budget.note(number, int(result[EPOCH]), float(result.get("seconds") or 0.0))
            if comparable:
                self._agenda.report(number, int(result[EPOCH]), float(result[self.metric]))
        if result["final"]:
            return str(TrialScheduler.STOP)
        if not comparable or self._agenda.budget.is_spent:
            decision = str(TrialScheduler.STOP)
        else:
            decision = str(self._inner.on_trial_result(tune_controller, trial, result))
        if decision == TrialScheduler.STOP:
            TrialFolder(self._root / trial.config["folder"]).mark("stopped", epochs=int(result[EPOCH]))
        return decision

    def _leave(self, trial: Trial) -> None:
        """Give a trial's slot back, and say so in its folder where another's report is what stopped it."""
        folder = TrialFolder(self._root / trial.config["folder"])
        if folder.record.get("status") == "running":
            folder.mark("stopped", epochs=int(trial.last_result[EPOCH]))
            folder.forget_checkpoints()  # its process, which does so else, has ended
        self._turns.leave(trial.config["number"])

    def _overtake(self, tune_controller: Any) -> None:
        """Where the awaited trial has had no process for long, let the others go on without it."""
        if not self._reports:
            self._waiting_since = None
            return
        awaited = self._trials[self._turns.awaited()]
        if awaited.status == Trial.RUNNING:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > PATIENCE_S:
            self._turns.postpone(awaited.config["number"])
            self._judge_due(tune_controller)


def _carry_out(tune_controller: Any, trial: Trial, decision: str) -> None:
    """Do what Ray does by itself with the verdict on a report that has just come."""
    if decision == TrialScheduler.STOP:
        tune_controller.stop_trial(trial)
    elif decision == TrialScheduler.PAUSE:
        tune_controller.pause_trial(trial)
    elif decision == TrialScheduler.CONTINUE:
        # Ray has no public name for it; the wrapper that schedulers get would warn of any other.
        tune_controller._tune_controller._schedule_trial_train(trial)


def _spare_second_failure(tune_controller: Any, trial: Trial) -> None:
    """Let a trial begin again whose process died just as it was handed on to it.

    Ray Tune fails such a trial twice, and the second time for good; unless it pauses by then, to go on as any other.
    """
    handed_on = tune_controller._tune_controller._resetting_trials  # Ray itself does not take it out of there
    if trial in handed_on:
        handed_on.remove(trial)
        tune_controller._set_trial_status(trial, Trial.PAUSED)


def judge_for(experiment: Experiment, epochs: int, agenda: Agenda, slots: int, root: Path) -> Judge:
    """Return the judge of an experiment's sweep, whose longest trial has so many epochs."""
    assert experiment.tune is not None
    config = experiment.tune.scheduler
    inner = Population(experiment, agenda.ready) if config.generation else _SCHEDULERS[config.name](config, epochs)
    kind: Callable[..., Turns] = Turns if _order_matters(experiment.tune) else AsTheyCome
    return Judge(inner, kind(stops_of(experiment.tune, epochs), slots, agenda.ready), agenda, root)


def _order_matters(config: TuneConfig) -> bool:
    """Whether reports are judged in an order of their own; without need, no trial waits for another."""
    scheduler = config.scheduler
    learns = scheduler.name != "none" or config.search != "random" or config.budget != BudgetConfig()
    return learns and scheduler.in_order and not scheduler.pauses


def stops_of(config: TuneConfig, epochs: int) -> list[int]:
    """Return the epochs at which reports are judged: all where scheduler or budget may end a trial at any."""
    limited = config.budget != BudgetConfig()
    if limited or config.scheduler.name not in ("asha", "none"):
        return list(range(1, epochs + 1))
    return rungs_of(config.scheduler, epochs) if config.scheduler.name == "asha" else [epochs]


def rungs_of(config: SchedulerConfig, epochs: int) -> list[int]:
    """Return the epochs at which ASHA compares trials, and the last one."""
    rungs = []
    rung = min(config.grace, epochs)
    while rung < epochs:
        rungs.append(rung)
        rung *= config.reduction
    return [*rungs, epochs]


def _asha(config: SchedulerConfig, epochs: int) -> TrialScheduler:
    return AsyncHyperBandScheduler(
        time_attr=EPOCH, max_t=epochs, grace_period=min(config.grace, epochs), reduction_factor=config.reduction
    )


def _hyperband(config: SchedulerConfig, epochs: int) -> TrialScheduler:
    return HyperBandScheduler(time_attr=EPOCH, max_t=epochs, reduction_factor=config.reduction)


def _median(config: SchedulerConfig, epochs: int) -> TrialScheduler:
    return MedianStoppingRule(time_attr=EPOCH, grace_period=config.grace)


def _none(config: SchedulerConfig, epochs: int) -> TrialScheduler:
    return FIFOScheduler()


_SCHEDULERS: Mapping[str, Callable[[SchedulerConfig, int], TrialScheduler]] = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
    "none": _none,
}
