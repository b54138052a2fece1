"""The section ``tune`` of an experiment: what a sweep tries, when it gives up, and how it chooses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raydistill.section import Count, Positive, Section


class SchedulerConfig(Section):
    """When a sweep gives up on a trial. Times are epochs.

    ``asha`` compares at ``grace``, ``grace * reduction``, ... with what the others had there, and lets the best
    1 / ``reduction`` go on. ``hyperband`` waits for a whole bracket of trials before it compares. ``median`` stops
    what is worse than the median of the others' averages, after ``grace``. ``none`` lets all trials go to the end.

    ``pbt``, population based training, stops none: after every ``grace`` epochs the worst quarter of the trials go on
    from the weights of one of the best quarter, with values that are multiplied by 0.8 or 1.2 or drawn anew. It finds a
    schedule of values, which ``result.json`` has; ``best.yaml`` has those at its end and does not lead there again.

    ``in_order`` has trials judged as if all of them took equally long for an epoch: the same sweep then takes the same
    decisions on any machine, however often it was interrupted, and a trial may have to wait for a slower one. Where
    trials differ much in speed, as of several models, it is better off. ``hyperband`` pauses trials and takes
    them as they come; ``pbt`` waits for all of them in any case.
    """

    name: Literal["asha", "hyperband", "median", "pbt", "none"] = "asha"
    grace: Count = 1
    reduction: Annotated[int, Field(ge=2)] = 3
    in_order: bool = True

    @property
    def pauses(self) -> bool:
        """Whether many trials are under way, some of them paused."""
        return self.name in ("hyperband", "pbt")

    @property
    def generation(self) -> int | None:
        """Epochs after which trials take over weights from each other; None where they never do."""
        return self.grace if self.name == "pbt" else None


class BudgetConfig(Section):
    """A sweep that has spent one of these begins no trial any more, and ends those under way at their next epoch.

    ``epochs`` of all trials together; ``hours`` of the clock; ``gpu_hours`` of all trials, parts of GPUs as such. What
    the finalists need comes on top.
    """

    epochs: Count | None = None
    hours: Positive | None = None
    gpu_hours: Positive | None = None


class TuneConfig(Section):
    """A sweep.

    ``space`` maps dotted keys of the experiment to ranges such as ``{loguniform: [a, b]}``, and ``methods.<label>`` to
    ``auto``, the ranges that suit the method, or to ``{choice: [true, false]}``, which takes it in or out. With
    ``when``, a range counts only where other keys have certain values. Trial 0 is the experiment as it stands; then
    come ``samples`` trials, of every combination of the ``grid`` values if there are such.

    The metric is taken on held-out training images. With ``repeats`` above 1 the ``finalists`` best configurations are
    trained anew with so many seeds each, and the mean decides. The test images are looked at for the winner alone.

    ``search`` draws at ``random``, or learns: ``tpe`` from what trials ended with, however early, ``bohb`` from what
    they had after the most epochs that enough of them came to, with a third left to chance. ``hyperband`` begins all
    trials before one is judged, and so leaves nothing to learn from: BOHB goes with ``asha`` here.

    ``warm_start`` names folders of earlier sweeps: what they found good is tried first, and ``tpe`` and ``bohb`` learn
    from all they tried.
    """

    metric: str = "val/top1"
    mode: Literal["max", "min"] = "max"
    samples: Count = 16
    search: Literal["random", "tpe", "bohb"] = "random"
    scheduler: SchedulerConfig = SchedulerConfig()
    budget: BudgetConfig = BudgetConfig()
    warm_start: tuple[str, ...] = ()
    repeats: Count = 1
    finalists: Count = 3
    concurrent: Count | None = None
    cpus_per_trial: Positive = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0.0)] = 0.0
    space: Annotated[dict[str, dict[str, Any] | Literal["auto"]], Field(min_length=1)]

    @model_validator(mode="after")
    def _hyperband_begins_all_at_once(self) -> TuneConfig:
        if self.scheduler.name == "hyperband" and self.search != "random":
            raise ValueError(
                f"search '{self.search}' learns from other trials, but hyperband begins all before one is judged; "
                "use scheduler.name=asha, or search=random"
            )
        return self

    @model_validator(mode="after")
    def _pbt_changes_values_itself(self) -> TuneConfig:
        if self.scheduler.name == "pbt" and self.search != "random":
            raise ValueError(f"search '{self.search}' cannot learn from values that pbt changes; use search=random")
        if self.scheduler.name == "pbt" and self.repeats > 1:
            raise ValueError("repeats trains values anew, but pbt finds a schedule of them; leave one of the two out")
        return self
