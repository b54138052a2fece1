"""Importances: what decides comes first, noise is called noise, and too little is left out."""

from __future__ import annotations

import random
from pathlib import Path

from raydistill.reporting.importance import LEAST_TRIALS, honest_words, importances
from raydistill.reporting.runs import load_run
from tests.reporting.made_sweeps import make_search, sweep_of

SPACE = {"a": {"uniform": [0, 1]}, "b": {"choice": ["x", "y"]}}


def test_the_key_that_decides_comes_first(tmp_path: Path) -> None:
    sweep = load_run(make_search(tmp_path / "sweep")).sweep
    assert sweep is not None
    found = importances(sweep)
    assert found is not None
    assert found.keys[0] == "train.optimizer.lr"
    # A conditional key has its place too.
    assert set(found.keys) == set(sweep.keys)
    assert (found.completed + found.stopped, found.stopped) == (29, 16)
    assert found.explained > 0.3
    assert "From 29 trials, 16 of them stopped early and ranked by their last value" in honest_words(found)
    assert importances(sweep) == found


def test_noise_is_no_evidence(tmp_path: Path) -> None:
    noise = random.Random(0)
    cells = {"a": [str(noise.random()) for _ in range(24)], "b": [noise.choice("xy") for _ in range(24)]}
    found = importances(sweep_of(tmp_path / "sweep", SPACE, cells, [noise.gauss(60, 1) for _ in range(24)]))
    assert found is not None
    assert not found.is_evidence
    assert "no evidence" in honest_words(found)


def test_the_absence_of_a_key_is_not_its_effect(tmp_path: Path) -> None:
    noise = random.Random(1)
    space = {"on": {"choice": [True, False]}, "tau": {"uniform": [0, 1], "when": {"on": True}}}
    switched = [number % 2 == 0 for number in range(40)]
    cells = {"on": [str(on) for on in switched], "tau": [str(noise.random()) if on else "" for on in switched]}
    metric = [60 + 5 * on + noise.gauss(0, 1) for on in switched]
    found = importances(sweep_of(tmp_path / "sweep", space, cells, metric))
    assert found is not None
    assert found.keys[0] == "on"
    assert found.means[0] > 5 * found.means[1]


def test_too_few_trials_or_keys_have_none(tmp_path: Path) -> None:
    few = LEAST_TRIALS - 1
    cells = {"a": [f"0.{number}" for number in range(few)], "b": ["x", "y", *"x" * (few - 2)]}
    assert importances(sweep_of(tmp_path / "few", SPACE, cells)) is None
    one = {"a": [f"0.{number}" for number in range(9)], "b": ["x"] * 9}
    assert importances(sweep_of(tmp_path / "one", SPACE, one)) is None
    same = {"a": [f"0.{number}" for number in range(9)], "b": ["x", "y"] * 4 + ["x"]}
    assert importances(sweep_of(tmp_path / "same", SPACE, same, [60.0] * 9)) is None
    assert importances(sweep_of(tmp_path / "enough", SPACE, same)) is not None
