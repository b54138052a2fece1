from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydistill.config import Experiment
from raydistill.errors import ConfigError
from raydistill.tuning.space import check_space, covering, parse_space
from tests.conftest import digits


def problem(tmp_path: Path, space: dict[str, Any], **tune: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_space(digits(tmp_path, tune={"space": space} | tune))
    return str(caught.value)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"train.lr": {"uniform": [0.0, 1.0]}}, "tune.space.train.lr: experiment: train.lr: unknown key"),
        ({"methods.ce.weight": {"unifrom": [0.0, 1.0]}}, "did you mean 'uniform'?"),
        ({"methods.ce.weight": {"uniform": [1.0, 0.0]}}, "low below high"),
        ({"methods.ce.weight": {"uniform": [1.0]}}, "low below high"),
        ({"methods.ce.weight": {"loguniform": [0.0, 1.0]}}, "above 0"),
        ({"methods.ce.weight": {"uniform": [-1.0, 1.0]}}, "must be greater than or equal to 0"),
        ({"methods.ce.weight": {"choice": [1.0, -1.0]}}, "methods.ce.weight = -1.0"),
        ({"methods.ce.weight": {"choice": []}}, "a list of values"),
        ({"methods.ce.weight": {"choice": [1], "grid": [1]}}, "give one of"),
        (
            {"methods.ce.weight": {"uniform": [0, 1], "loguniform": [1, 2]}},
            "uniform: null on the command line takes away",
        ),
        ({"methods": {"ce": {"weight": {"uniform": [0, 1]}}}}, "'tune.space={methods.ce.weight: ...}'"),
        ({"student.model": {"choice": ["resnet8", "resnet9"]}}, "unknown model 'resnet9'"),
        ({"methods.ce.weight": {"quniform": [0.0, 1.0]}}, "[low, high, step]"),
        ({"methods.ce.weight": {"quniform": [0.0, 1.0, 0.0]}}, "the step must be above 0"),
        ({"train.epochs": {"int": [1.5, 3]}}, "whole numbers"),
        ({"data.subset": {"choice": [100, 200]}}, "all trials share images"),
        ({"cache.views": {"choice": [0, 1]}}, "all trials share images"),
        ({"seed": {"choice": [0, 1]}}, "tune.repeats trains"),
        ({"methods.kd": {"choice": [True, False]}}, "no such method to switch"),
        ({"methods.kd": "auto"}, "'auto' stands for the ranges of a method in use: methods.ce"),
        ({"methods.ce.weight": {"uniform": [0.0, 1.0], "when": "sgd"}}, "when = 'sgd'"),
        (
            {"methods.ce.weight": {"uniform": [0.0, 1.0], "when": {"methods.ce.weight": 1.0}}},
            "its 'when' depends on itself",
        ),
    ],
)
def test_a_wrong_space_is_told_before_anything_starts(tmp_path: Path, space: dict[str, Any], expected: str) -> None:
    assert expected in problem(tmp_path, space)


def test_a_range_that_is_null_gives_way_to_another(tmp_path: Path) -> None:
    space = {"methods.ce.weight": {"loguniform": None, "uniform": [0.5, 1.0]}}
    (entry,) = parse_space(digits(tmp_path, tune={"space": space}))
    assert (entry.kind, entry.values) == ("uniform", (0.5, 1.0))


def test_a_grid_cannot_be_searched_by_tpe(tmp_path: Path) -> None:
    assert "use choice" in problem(tmp_path, {"methods.ce.weight": {"grid": [1.0]}}, search="tpe")


@pytest.mark.parametrize("search", ["tpe", "bohb"])
def test_a_search_that_learns_does_not_go_with_hyperband(tmp_path: Path, search: str) -> None:
    space = {"methods.ce.weight": {"uniform": [0.5, 1.0]}}
    with pytest.raises(ConfigError, match=f"search '{search}' learns .* use scheduler.name=asha"):
        digits(tmp_path, tune={"space": space, "search": search, "scheduler": {"name": "hyperband"}})


def test_every_kind_of_range_is_taken(tmp_path: Path) -> None:
    space = {
        "methods.ce.weight": {"uniform": [0.1, 1.0]},
        "train.optimizer.lr": {"loguniform": [0.01, 0.1]},
        "train.epochs": {"randint": [1, 3]},
        "train.optimizer.momentum": {"quniform": [0.1, 0.9, 0.1]},
        "student.model": {"choice": ["resnet8", "resnet14"]},
        "train.optimizer.name": {"grid": ["sgd", "adamw"]},
        "train.clip": {"qloguniform": [0.5, 4.0, 0.5]},
        "train.batch_size": {"logint": [16, 64]},
        "train.accumulate": {"int": [1, 2]},
        "methods.ce": {"choice": [True, {"weight": 0.5}]},
        "data.augment.flip": {"uniform": [0.0, 0.5]},
    }
    check_space(digits(tmp_path, tune={"space": space}))


def test_a_range_that_counts_with_other_values_only_is_tried_with_those(tmp_path: Path) -> None:
    conditional = {"multistep": {"choice": [[1], [2]], "when": {"train.schedule.name": "multistep"}}}
    space = {
        "train.schedule": {"choice": [{"name": "cosine"}, {"name": "multistep", "milestones": [1]}]},
        "train.schedule.floor": {"uniform": [0.0, 0.5], "when": {"train.schedule": {"name": "cosine"}}},
    }
    check_space(digits(tmp_path, tune={"space": space}))
    assert "unknown key" in problem(tmp_path, conditional)


def test_cached_views_stand_against_sweeping_what_they_were_made_with(tmp_path: Path) -> None:
    experiment = digits(
        tmp_path,
        methods={"kd": {}},
        teacher={"model": "resnet14", "weights": "teacher.safetensors"},
        cache={"views": 2},
        tune={"space": {"data.augment.flip": {"uniform": [0.0, 0.5]}}},
    )
    with pytest.raises(ConfigError, match=r"set cache\.views=0"):
        check_space(experiment)


def test_the_material_of_a_sweep_serves_every_trial(tmp_path: Path) -> None:
    experiment = digits(
        tmp_path,
        teacher={"model": "resnet14", "weights": "teacher.safetensors"},
        tune={"space": {"methods.other": {"choice": [{"name": "kd"}, {"name": "sp"}, None]}}},
    )
    assert not experiment.all_needs.teacher
    assert {"logits", "features/3"} <= set(wanted_of(covering(experiment)))


def test_a_method_that_the_space_alone_names_is_provided_for(tmp_path: Path) -> None:
    experiment = digits(
        tmp_path,
        teacher={"model": "resnet14", "weights": "teacher.safetensors"},
        methods={"kd": {}},
        tune={"space": {"methods.crd.weight": {"uniform": [0.5, 1.0]}}},
    )
    assert wanted_of(covering(experiment)) == {"logits", "embedding"}


def wanted_of(experiment: Experiment) -> set[str]:
    return {name for names in experiment.all_needs.teacher.values() for name in names}
