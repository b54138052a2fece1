from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.utils.object_cache import _ObjectCache

from raydistill.config import Experiment
from raydistill.errors import ConfigError
from raydistill.training.checkpoint import adopt, restore, snapshot
from raydistill.tuning.population import Population, drawing_from, within
from raydistill.tuning.space import OF_THE_START, check_space, parse_space
from raydistill.tuning.suggesting import Suggestions
from raydistill.tuning.sweep import tune
from tests.conftest import digits
from tests.training.sessions import session_of

LR = "train.optimizer.lr"


def population(folder: Path, space: dict[str, Any], **sections: Any) -> Experiment:
    tuning = {"samples": 1, "scheduler": {"name": "pbt"}, "space": space}
    return digits(folder, **{"train": {"epochs": 4, "batch_size": 48}, "tune": tuning, **sections})


def test_numbers_with_a_fraction_may_change_while_a_student_trains(tmp_path: Path) -> None:
    check_space(
        population(
            tmp_path,
            {
                LR: {"loguniform": [1e-3, 1]},
                "train.optimizer.momentum": {"uniform": [0, 0.95]},
                "methods.ce.weight": {"choice": [1, 2, 4]},
                "methods.ce.label_smoothing": {"quniform": [0, 0.3, 0.1]},
            },
        )
    )


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"train.epochs": {"int": [3, 9]}}, "tune.space.train.epochs: pbt changes values while a student trains"),
        ({"train.batch_size": {"choice": [16, 48]}}, "this one is settled before"),
        ({"student.model": {"choice": ["resnet8", "resnet14"]}}, "this one is settled before"),
        ({"train.optimizer.nesterov": {"choice": [True, False]}}, "this one is settled before"),
        ({"train.optimizer.name": {"choice": ["sgd", "adamw"]}}, "this one is settled before"),
        ({"train.ema": {"choice": [{"decay": 0.9}, None]}}, "this one is settled before"),
        ({"train.clip": {"uniform": [0.5, 2]}}, "give trial 0 a number here"),
        ({LR: {"uniform": [0.1, 1], "when": {"train.precision": "fp32"}}}, "leave out 'when'"),
    ],
)
def test_what_is_settled_before_training_is_refused(tmp_path: Path, space: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        check_space(population(tmp_path, space))
    assert str(raised.value).count("\n") == 0


@pytest.mark.parametrize(
    ("method", "field"), [("ft", "rate"), ("ab", "pretrain_lr"), ("vid", "initial_variance")], ids=OF_THE_START
)
def test_numbers_that_count_at_the_start_alone_are_refused(tmp_path: Path, method: str, field: str) -> None:
    experiment = population(
        tmp_path,
        {f"methods.{method}.{field}": {"uniform": [0.1, 0.5]}},
        methods={method: {"weight": 1.0}},
        teacher={"model": "resnet14", "weights": "none"},
    )
    with pytest.raises(ConfigError, match="this one is settled before"):
        check_space(experiment)


@pytest.mark.parametrize(
    ("tuning", "sections", "said"),
    [
        ({"search": "tpe"}, {}, "cannot learn from values that pbt changes"),
        ({"repeats": 2}, {}, "leave one of the two out"),
        ({"scheduler": {"name": "pbt", "grace": 4}}, {}, "must be below train.epochs"),
        ({}, {"scale": {"workers": 2}}, "set scale.workers=1"),
    ],
)
def test_what_does_not_go_with_pbt_is_refused(
    tmp_path: Path, tuning: dict[str, Any], sections: dict[str, Any], said: str
) -> None:
    whole = {"samples": 1, "scheduler": {"name": "pbt"}, "space": {LR: {"uniform": [0.1, 1]}}, **tuning}
    with pytest.raises(ConfigError, match=said):
        check_space(digits(tmp_path, **{"train": {"epochs": 4, "batch_size": 48}, "tune": whole, **sections}))


def test_multiplied_values_go_back_into_their_ranges(tmp_path: Path) -> None:
    space = {
        LR: {"loguniform": [0.01, 0.1]},
        "train.optimizer.momentum": {"quniform": [0.0, 0.9, 0.1]},
        "methods.ce.weight": {"choice": [1.0, 2.0]},
    }
    ranges = parse_space(population(tmp_path, space))
    found = within(ranges, {LR: 0.12, "train.optimizer.momentum": 0.3 * 1.2, "methods.ce.weight": 2.0})
    assert found == pytest.approx({LR: 0.1, "train.optimizer.momentum": 0.4, "methods.ce.weight": 2.0})
    assert within(ranges, {**found, LR: 0.008})[LR] == 0.01


def test_drawing_follows_from_the_seed_and_leaves_no_trace() -> None:
    def drawn(seed: str) -> tuple[float, float]:
        with drawing_from(seed):
            return random.random(), float(np.random.random())

    random.seed(1)
    np.random.seed(1)
    expected = random.random(), float(np.random.random())
    random.seed(1)
    np.random.seed(1)
    assert drawn("0 1") == drawn("0 1") != drawn("0 2")
    assert (random.random(), float(np.random.random())) == expected


class Controller:
    """The part of Ray's controller that a scheduler sees; the trials are Ray's own, without processes."""

    def __init__(self, population: Population) -> None:
        self.population, self.trials = population, [_trial(number) for number in range(8)]
        self._tune_controller = SimpleNamespace(_actor_cache=_ObjectCache())
        for trial in self.trials:
            population.on_trial_add(self, trial)

    def get_trials(self) -> list[Trial]:
        return self.trials

    def report(self, number: int, epoch: int, metric: float) -> None:
        """Report and pause, as a trial does, with a checkpoint."""
        trial, result = self.trials[number], {"epoch": epoch, "val/top1": metric}
        trial.set_status(Trial.RUNNING)
        if self.population.on_trial_result(self, trial, result) == TrialScheduler.PAUSE:
            kept = _TrainingResult(Checkpoint.from_directory(f"/{number}"), result)
            trial.run_metadata.checkpoint_manager._latest_checkpoint_result = kept
            trial.set_status(Trial.PAUSED)

    def taken(self) -> dict[int, tuple[int, float]]:
        """Who took over from whom, and the new rate."""
        origins = [int(trial.checkpoint.path[1:]) for trial in self.trials if trial.status == Trial.PAUSED]
        paused = [trial for trial in self.trials if trial.status == Trial.PAUSED]
        return {
            trial.config["number"]: (origin, trial.config["values"][LR])
            for trial, origin in zip(paused, origins, strict=True)
            if origin != trial.config["number"]
        }


def _trial(number: int) -> Trial:
    values = {LR: 0.01 * number} if number else {}
    job = {"number": number, "folder": f"trials/{number:04d}", "values": values}
    return Trial("stub", config=job, stub=True)


def generation(folder: Path, order: Sequence[int], seed: int = 0, failing: int | None = None) -> Controller:
    """Eight trials at the end of their first epoch, of which trial 0 is the worst and the last ones are the best."""
    found = Population(population(folder, {LR: {"uniform": [0.0, 1.0]}}, seed=seed), more=lambda: False)
    found.set_search_properties("val/top1", "max")
    controller = Controller(found)
    for number in order:
        assert controller.taken() == {}
        if number == failing:
            controller.trials[number].set_status(Trial.ERROR)
        else:
            controller.report(number, 1, 10.0 * number)
        chosen = found.choose_trial_to_run(controller)
    assert chosen is not None  # the next generation began
    return controller


def test_decisions_follow_from_seed_and_metrics_and_not_from_the_order_of_reports(tmp_path: Path) -> None:
    controller = generation(tmp_path, range(8))
    taken = controller.taken()
    assert list(taken) == [1]  # trial 0 is as bad, but stays as it began
    ((origin, rate),) = taken.values()
    assert origin in (6, 7)
    assert 0.0 <= rate <= 1.0
    assert rate != 0.01 * origin
    assert controller.trials[1].config["folder"] == "trials/0001"
    assert generation(tmp_path, [5, 3, 7, 1, 0, 2, 6, 4]).taken() == taken
    assert any(generation(tmp_path, range(8), seed=seed).taken() != taken for seed in (1, 2, 3))


def test_a_trial_that_fails_does_not_hold_up_its_generation(tmp_path: Path) -> None:
    controller = generation(tmp_path, [0, 1, 2, 3, 4, 5, 7, 6], failing=6)
    ((origin, _),) = controller.taken().values()
    assert origin in (5, 7)


def test_another_trials_state_is_gone_on_from_with_own_rates(tmp_path: Path) -> None:
    def session(lr: float, decay: float, momentum: float) -> Any:
        sgd = {"name": "sgd", "lr": lr, "weight_decay": decay, "momentum": momentum}
        schedule = {"name": "cosine", "warmup": 1.0}
        return session_of(
            digits(tmp_path, train={"epochs": 4, "batch_size": 48, "optimizer": sgd, "schedule": schedule})
        )

    def one_step(session: Any) -> None:
        sum(value.square().sum() for value in session.student.parameters()).backward()
        session.optimizer.step()
        session.schedule.step()

    source, target, alone = session(0.1, 0.01, 0.9), session(0.02, 0.0, 0.5), session(0.02, 0.0, 0.5)
    for _ in range(7):
        one_step(source)
        alone.optimizer.step()
        alone.schedule.step()
    state = snapshot(source)
    adopt(target, state, tmp_path)
    for name, value in target.distiller.state_dict().items():
        assert torch.equal(value, source.distiller.state_dict()[name]), name
    (group,) = target.optimizer.param_groups
    (expected,) = alone.optimizer.param_groups
    assert {name: value for name, value in group.items() if name != "params"} == {
        name: value for name, value in expected.items() if name != "params"
    }
    assert target.schedule.state_dict()["base_lrs"] == [0.02]
    momenta = [part["momentum_buffer"] for part in target.optimizer.state_dict()["state"].values()]
    theirs = [part["momentum_buffer"] for part in source.optimizer.state_dict()["state"].values()]
    assert momenta
    assert all(torch.equal(mine, its) for mine, its in zip(momenta, theirs, strict=True))
    target.schedule.step()
    alone.schedule.step()
    assert group["lr"] == expected["lr"]
    restore(target, state, tmp_path)
    assert target.optimizer.param_groups[0]["weight_decay"] == 0.01


def lines(trial: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("ray_session")
def test_bad_trials_go_on_from_the_weights_of_good_ones(tmp_path: Path) -> None:
    experiment = digits(
        tmp_path,
        train={"epochs": 4, "batch_size": 48, "schedule": {"name": "constant"}},
        tune={
            "samples": 3,
            "scheduler": {"name": "pbt"},
            "space": {LR: {"loguniform": [1e-8, 0.06]}},
        },
    )
    at_first = [Suggestions(experiment).ask(number) for number in range(4)]
    result = tune(experiment)
    run = Path(result["run"])
    trials = [run / "trials" / f"{number:04d}" for number in range(4)]
    records = [json.loads((trial / "trial.json").read_text()) for trial in trials]
    histories = [lines(trial) for trial in trials]
    assert all(record["status"] == "completed" for record in records)
    assert records[0]["values"] == {}
    assert "changes" not in records[0]
    for record, history in zip(records[1:], histories[1:], strict=True):
        begun, first, *_ = record["changes"]
        assert begun == {"epoch": 0, "from_trial": None, "values": {}}
        assert first["from_trial"] == 0
        assert history[: first["epoch"]] == histories[0][: first["epoch"]]
        assert record["values"] == record["changes"][-1]["values"] != at_first[record["number"]]
        assert [line["epoch"] for line in history] == [1, 2, 3, 4]
        assert [line["lr"] for line in history] == pytest.approx([rate_in(record, epoch) for epoch in range(4)])
        assert history[-1]["val/top1"] > 50
    assert max(values[LR] for values in at_first[1:]) < 1e-3
    assert result["best_metric"] == max(history[-1]["val/top1"] for history in histories)
    best = int(result["best_trial"])
    assert result["schedule"][-1]["values"] == result["best_values"] == records[best]["values"]
    assert not list(run.glob("trials/*/checkpoints"))
    (run / "_SUCCESS").unlink()
    written = [(trial / "metrics.jsonl").stat().st_mtime_ns for trial in trials]
    assert tune(experiment, resume=True) == result
    assert [(trial / "metrics.jsonl").stat().st_mtime_ns for trial in trials] == written
    (run / "_SUCCESS").unlink()
    with pytest.raises(ConfigError, match=r"tune\.samples changed"):
        tune(experiment.override({"tune.samples": 4}), resume=True)


def rate_in(record: dict[str, Any], epoch: int) -> float:
    """The learning rate that the weights of a trial had in an epoch, counted from 0."""
    values = [change["values"] for change in record["changes"] if change["epoch"] <= epoch]
    return float(values[-1].get(LR, 0.05))
