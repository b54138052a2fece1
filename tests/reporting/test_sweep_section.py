"""What the page says about a sweep, and that no sweep breaks it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.reporting.page import write_report
from raydistill.reporting.pareto import fronts
from raydistill.reporting.runs import load_run
from raydistill.reporting.sweep_section import sweep_section
from raydistill.reporting.sweep_words import finalist_table, sweep_sentences
from raydistill.reporting.swept import swept_keys
from tests.reporting.made_sweeps import SPACE, leave_sweep, make_search, say
from tests.reporting.test_page import Page


def _said(path: Path) -> str:
    sweep = load_run(path).sweep
    assert sweep is not None
    return " ".join(sweep_sentences(sweep)).replace("\N{NO-BREAK SPACE}", " ")


def test_sentences_of_a_sweep_with_finalists(tmp_path: Path) -> None:
    path = make_search(tmp_path / "sweep")
    sweep = load_run(path).sweep
    assert sweep is not None
    assert sweep.best is not None
    assert sweep.baseline is not None
    said = _said(path)
    spent = int(sweep.trials["epochs"].sum())
    assert "32 trials: 13 completed, 16 stopped early, 3 failed." in said
    assert f"{spent} of the 576 epochs that all of them would have taken to the end ({100 * spent / 576:.0f} %)" in said
    gain = sweep.best["val/top1"] - sweep.baseline["val/top1"]
    assert f"That is {gain:.2f} above the baseline's {sweep.baseline['val/top1']:.2f}" in said
    first, second = finalist_table(sweep).to_dict("records")[:2]
    assert first["trial"] == sweep.best["trial"]
    assert f"{first['trial']} has {first['mean']:.2f} ± {first['std']:.2f} (mean of 3 seeds)" in said
    assert f"it is a tie with {second['trial']}." in said
    assert "test images" not in said
    say(path, tie=False, top1=63.456)
    said = _said(path)
    assert "tie" not in said
    assert "On the test images, on which the best one alone was measured, it reaches 63.46 %." in said


def test_one_run_each_is_called_so(tmp_path: Path) -> None:
    said = _said(make_search(tmp_path / "sweep", finalists=False))
    assert "one run each" in said
    assert "tune.repeats" in said


def test_a_finalist_that_failed_is_named(tmp_path: Path) -> None:
    path = make_search(tmp_path / "sweep")
    lines = (path / "finalists.csv").read_text().splitlines()
    trial = lines[1].split(",")[0]
    told = ["trial,seed,val/top1,cause", f"{trial},0,,killed by the kernel", *(f"{line}," for line in lines[2:])]
    (path / "finalists.csv").write_text("\n".join(told))
    sweep = load_run(path).sweep
    assert sweep is not None
    failed = sweep_section("sweep", sweep)["failed"]
    assert failed["Trial"].tolist() == ["0005", "0016", "0027", f"{trial} again, seed 0"]
    assert failed["Cause"].tolist()[-1] == "killed by the kernel"
    counts = dict(zip(finalist_table(sweep)["trial"], finalist_table(sweep)["n"], strict=True))
    assert counts[trial] == 2


def test_a_minimised_metric_has_the_lowest_as_best(tmp_path: Path) -> None:
    sweep = load_run(make_search(tmp_path / "sweep", mode="min", finalists=False)).sweep
    assert sweep is not None
    assert sweep.best is not None
    assert f"Best: trial {sweep.best['trial']}, val/top1 {sweep.ended['val/top1'].min():.2f} (stopped" in " ".join(
        sweep_sentences(sweep)
    )


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_page_shows_what_was_learned(tmp_path: Path, mode: str) -> None:
    run = make_search(tmp_path / "sweep", mode=mode, finalists=mode == "max")
    text = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join(page.words)
    # Legend, five swept keys, importances, parallel coordinates, two costs, trials over epochs, best so far.
    assert page.tags.count("svg") == 12
    for heading in ("Failed trials", "Each swept value", "Importance", "All trials at once", "Accuracy against cost"):
        assert heading in words
    assert ("Finalists over seeds" in words) == (mode == "max")
    assert words.count("CUDA out of memory") == 3
    assert "stopped after 2 epochs" in words
    assert "rung 6" in words
    assert "0000 (baseline)" in words
    assert "272,474" in words
    assert "comparison" not in page.ids
    assert len(text) < 400_000


cell = st.sampled_from(["", "nan", "inf", "-inf", "0", "-1", "1e-5", "3", "4.0", "True", "False", "None", "<b>", "$x$"])
status = st.sampled_from(["completed", "completed", "stopped", "failed", "running", ""])
score = st.sampled_from(["", "nan", "inf", "10", "61.5", "61.5", "62.25", "-3", "x"])
row = st.fixed_dictionaries(
    {
        "status": status,
        "epochs": st.sampled_from(["", "0", "2", "6", "18"]),
        "val/top1": score,
        "seconds": st.sampled_from(["", "nan", "0", "12.5"]),
        "cause": st.sampled_from(["", "NA", "killed <by> the kernel"]),
        "parameters": st.sampled_from(["", "10", "2000"]),
        "latency_ms": st.sampled_from(["", "nan", "0", "1.5"]),
        **dict.fromkeys(SPACE, cell),
    }
)
needed = {"status", "epochs", "val/top1"}


@st.composite
def tables(draw: st.DrawFn, most: int) -> list[dict[str, Any]]:
    rows = draw(st.lists(row, min_size=1, max_size=most))
    gone = draw(st.sets(st.sampled_from(sorted(set(rows[0]) - needed)), max_size=3))
    kept = [{name: value for name, value in row.items() if name not in gone} for row in rows]
    return [{"trial": f"{number:04d}", **row} for number, row in enumerate(kept)]


@given(tables(most=6), st.sampled_from(["max", "min"]))
@settings(deadline=None, max_examples=40)
def test_no_cell_breaks_the_words_and_tables(rows: list[dict[str, Any]], mode: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sweep = load_run(leave_sweep(Path(folder) / "sweep", SPACE, rows, mode)).sweep
    assert sweep is not None
    assert f"{len(rows)} trial" in sweep_sentences(sweep)[0]
    for key in swept_keys(sweep):
        assert key.places.index.equals(sweep.ended.index)
    assert set(fronts(sweep)["trial"]) <= set(sweep.ended["trial"])


@given(tables(most=14), st.sampled_from(["max", "min"]))
@settings(deadline=None, max_examples=4)
def test_no_cell_breaks_the_page(rows: list[dict[str, Any]], mode: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = leave_sweep(Path(folder) / "sweep", SPACE, rows, mode)
        Page(write_report([run], Path(folder) / "report.html").read_text(encoding="utf-8"))
