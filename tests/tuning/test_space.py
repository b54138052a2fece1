from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydistill.errors import ConfigError
from raydistill.tuning.space import check_space
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
        ({"student.model": {"choice": ["resnet8", "resnet9"]}}, "unknown model 'resnet9'"),
    ],
)
def test_a_wrong_space_is_told_before_anything_starts(tmp_path: Path, space: dict[str, Any], expected: str) -> None:
    assert expected in problem(tmp_path, space)


def test_a_grid_cannot_be_searched_by_tpe(tmp_path: Path) -> None:
    assert "use choice" in problem(tmp_path, {"methods.ce.weight": {"grid": [1.0]}}, search="tpe")


def test_every_kind_of_range_is_taken(tmp_path: Path) -> None:
    space = {
        "methods.ce.weight": {"uniform": [0.1, 1.0]},
        "train.optimizer.lr": {"loguniform": [0.01, 0.1]},
        "train.epochs": {"randint": [1, 3]},
        "train.optimizer.momentum": {"quniform": [0.1, 0.9, 0.1]},
        "student.model": {"choice": ["resnet8", "resnet14"]},
        "train.optimizer.name": {"grid": ["sgd", "adamw"]},
    }
    check_space(digits(tmp_path, tune={"space": space}))
