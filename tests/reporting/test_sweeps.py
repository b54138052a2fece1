"""Reading sweeps: today's layout, earlier ones, and what a cell of ``trials.csv`` may hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydistill.errors import DataError
from raydistill.reporting.runs import load_run
from raydistill.reporting.sweeps import Sweep
from raydistill.reporting.swept import SweptKey, swept_keys
from tests.reporting.folders import make_sweep
from tests.reporting.made_sweeps import EPOCHS, RUNGS, make_search, say, sweep_of


def _read(path: Path) -> Sweep:
    sweep = load_run(path).sweep
    assert sweep is not None
    return sweep


def _key(sweep: Sweep, name: str) -> SweptKey:
    (found,) = [key for key in swept_keys(sweep) if key.key == name]
    return found


def test_todays_layout_is_read_whole(tmp_path: Path) -> None:
    sweep = _read(make_search(tmp_path / "sweep"))
    assert sweep.baseline is not None
    assert (sweep.baseline["trial"], sweep.baseline["train.optimizer.lr"]) == ("0000", 0.05)
    assert (sweep.epochs, sweep.rungs) == (EPOCHS, RUNGS)
    assert sweep.finalists is not None
    assert len(sweep.finalists) == 9
    assert sweep.best is not None
    assert sweep.best["trial"] == sweep.result["best_trial"]
    assert sweep.trials["cause"].dropna().str.startswith("CUDA out of memory").sum() == 3


def test_an_earlier_layout_has_no_baseline(tmp_path: Path) -> None:
    sweep = _read(make_sweep(tmp_path / "sweep"))
    assert (sweep.baseline, sweep.rungs, sweep.finalists) == (None, (), None)
    assert sweep.trials["parameters"].isna().all()


def test_a_choice_that_failed_is_not_the_best(tmp_path: Path) -> None:
    path = make_search(tmp_path / "sweep")
    say(path, best_trial="0005")
    sweep = _read(path)
    assert sweep.best is not None
    assert sweep.best["val/top1"] == sweep.ended["val/top1"].max()


def test_half_a_line_is_forgiven_to_a_failed_trial_alone(tmp_path: Path) -> None:
    path = make_search(tmp_path / "sweep")
    (path / "trials" / "0005" / "metrics.jsonl").write_text('{"epoch": 1}\n{"ep')
    assert "0005" not in _read(path).histories
    (path / "trials" / "0001" / "metrics.jsonl").write_text('{"ep')
    with pytest.raises(DataError, match=r"0001.*metrics\.jsonl"):
        load_run(path)


def test_epochs_after_a_stop_do_not_count(tmp_path: Path) -> None:
    path = make_search(tmp_path / "sweep")
    stopped = _read(path).trials.query("status == 'stopped'").iloc[0]
    with (path / "trials" / stopped["trial"] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": int(stopped["epochs"]) + 1, "val/top1": 99.0}) + "\n")
    assert len(_read(path).histories[stopped["trial"]]) == stopped["epochs"]


@pytest.mark.parametrize(
    ("given", "cells", "names", "places"),
    [
        ({"choice": [True, False]}, ["True", "", "False"], ("true", "false"), [0, math.nan, 1]),
        ({"choice": [True, False]}, ["True", "True", "False"], ("true", "false"), [0, 0, 1]),
        # Empty cells make pandas read whole numbers as 256.0.
        ({"grid": [256, 64]}, ["64", "", "256"], ("64", "256"), [0, math.nan, 1]),
        # The baseline's value is between two of the grid.
        ({"grid": [1, 2, 8]}, ["4", "8", "1"], ("1", "4", "8"), [1, 2, 0]),
        ({"choice": ["NA", "None", "sgd"]}, ["sgd", "NA", "None"], ("NA", "None", "sgd"), [2, 0, 1]),
        ({"choice": [None, 0.1]}, ["0.1", "", "0.1"], ("null", "0.1"), [1, 0, 1]),
        ({"choice": [None, 0.1], "when": {"a": 1}}, ["0.1", "", "0.1"], ("0.1",), [0, math.nan, 0]),
        ({"uniform": [0, 1]}, ["0.25", "", "inf"], (), [0.25, math.nan, math.nan]),
        ({"uniform": [0, 1]}, ["0.25", "0.5", "1"], (), [0.25, 0.5, 1]),
    ],
)
def test_places_of_swept_values(
    tmp_path: Path, given: dict[str, Any], cells: list[str], names: tuple[str, ...], places: list[float]
) -> None:
    key = _key(sweep_of(tmp_path / "sweep", {"train.x": given}, {"train.x": cells}), "train.x")
    assert key.names == names
    assert key.places.tolist() == pytest.approx(places, nan_ok=True)
    assert not key.logarithmic


@pytest.mark.parametrize(
    ("given", "cells", "logarithmic"),
    [
        ({"loguniform": [0.01, 1]}, ["0.1", "0.5"], True),
        ({"qloguniform": [1, 64, 1]}, ["1", "2"], True),
        ({"logint": [1, 64], "when": {"a": True}}, ["", "2"], True),
        ({"loguniform": [0.01, 1]}, ["0.1", "0"], False),
        ({"int": [1, 64]}, ["1", "64"], False),
    ],
)
def test_which_axes_are_logarithmic(tmp_path: Path, given: dict[str, Any], cells: list[str], logarithmic: bool) -> None:
    assert _key(sweep_of(tmp_path / "sweep", {"a": given}, {"a": cells}), "a").logarithmic is logarithmic


def test_keys_of_a_ready_made_space_are_the_columns(tmp_path: Path) -> None:
    cells = {"methods.kd.temperature": ["1", "2"], "methods.kd.weight": ["0.01", "1"], "methods.kdx.a": ["1", "2"]}
    sweep = sweep_of(tmp_path / "sweep", {"methods.kd": "auto"}, cells)
    assert sweep.keys == ["methods.kd.temperature", "methods.kd.weight"]
    assert [key.logarithmic for key in swept_keys(sweep)] == [False, True]


def test_a_key_that_no_trial_set_has_no_axis(tmp_path: Path) -> None:
    assert swept_keys(sweep_of(tmp_path / "sweep", {"a": {"uniform": [0, 1]}}, {"a": ["", ""]})) == []


def test_rungs_need_asha(tmp_path: Path) -> None:
    path = make_search(tmp_path / "sweep", trials=2, finalists=False)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["tune"]["scheduler"]["name"] = "none"
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    assert _read(path).rungs == ()


def test_finalists_without_the_metric_are_damage(tmp_path: Path) -> None:
    path = make_search(tmp_path / "sweep")
    (path / "finalists.csv").write_text("trial,seed\n0001,0\n")
    with pytest.raises(DataError, match=r"finalists\.csv cannot be read: it has no column val/top1"):
        load_run(path)
    assert json.loads((path / "result.json").read_text())["tie"] is True
