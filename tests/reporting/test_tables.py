"""Comparison over seeds and the words it may use."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.reporting.runs import RunRecord, load_runs
from raydistill.reporting.summary import sentences
from raydistill.reporting.tables import comparison, display, flatten, to_markdown
from tests.reporting.folders import config_of, make_demo, make_run, make_sweep

scores = st.lists(st.floats(10, 90), min_size=1, max_size=5)


def _records(top1s: list[float], methods: tuple[str, ...], name: str = "run", epochs: int = 8) -> list[RunRecord]:
    return [
        RunRecord(
            path=Path(f"{name}-{'-'.join(methods)}-{seed}"),
            kind="train",
            name=name,
            seed=seed,
            student="resnet8",
            methods=methods,
            top1=top1,
            config=config_of(name, seed, methods, epochs=epochs),
            environment={},
            result={"epochs": epochs},
        )
        for seed, top1 in enumerate(top1s)
    ]


def _row(frame: pd.DataFrame, role: str) -> dict[str, object]:
    (row,) = frame[frame["role"] == role].to_dict("records")
    return row


@given(scores, scores)
def test_means_spreads_and_verdicts(alone: list[float], distilled: list[float]) -> None:
    row = _row(comparison(_records(alone, ("ce",)) + _records(distilled, ("ce", "kd"))), "distilled")
    assert row["n"] == len(distilled)
    assert row["mean"] == pytest.approx(statistics.fmean(distilled))
    assert row["difference"] == pytest.approx(statistics.fmean(distilled) - statistics.fmean(alone), abs=1e-9)
    if min(len(alone), len(distilled)) < 2:
        assert math.isnan(float(str(row["difference_std"])))
        assert row["verdict"] == "no difference shown"
        return
    spread = math.hypot(statistics.stdev(alone), statistics.stdev(distilled))
    assert row["difference_std"] == pytest.approx(spread, abs=1e-9)
    difference = float(str(row["difference"]))
    if abs(abs(difference) - spread) > 1e-6:
        expected = "better" if difference > spread else "worse" if -difference > spread else "no difference shown"
        assert row["verdict"] == expected


def test_demo_has_teacher_alone_and_best_first(tmp_path: Path) -> None:
    frame = comparison(load_runs(make_demo(tmp_path)))
    assert frame["role"].tolist() == ["teacher", "student alone", "distilled", "distilled"]
    assert frame["label"].tolist() == ["wrn_16_2", "resnet8: ce", "resnet8: ce + crd", "resnet8: ce + kd"]
    assert frame["n"].tolist() == [1, 3, 3, 3]
    assert frame["verdict"].tolist() == ["", "", "better", "better"]


def test_the_teacher_may_come_from_a_card(tmp_path: Path) -> None:
    card = {"student": {"top1": 60.0}, "teacher": {"top1": 77.0}}
    runs = [make_run(tmp_path / str(seed), 60.0, seed=seed, card=card) for seed in range(2)]
    row = _row(comparison(load_runs(runs)), "teacher")
    assert (row["label"], row["mean"], row["n"]) == ("wrn_16_2", 77.0, 1)


def test_other_settings_are_not_other_seeds() -> None:
    short, long = _records([60.0], ("ce",), "short", epochs=2), _records([70.0], ("ce",), "long", epochs=9)
    assert comparison(short + long)["n"].tolist() == [1, 1]


def test_the_same_seed_twice_is_one_seed() -> None:
    twice = _records([60.0], ("ce",), "a") + _records([62.0], ("ce",), "b")
    row = _row(comparison(twice), "student alone")
    assert (row["n"], row["mean"]) == (1, 61.0)


def test_no_comparison_across_epochs_or_data() -> None:
    frame = comparison(_records([60.0, 61.0], ("ce",), epochs=2) + _records([70.0, 71.0], ("ce", "kd"), epochs=9))
    row = _row(frame, "distilled")
    assert math.isnan(float(str(row["difference"])))
    assert row["verdict"] == ""


def test_another_baseline_may_be_named() -> None:
    records = _records([60.0, 61.0], ("ce", "kd")) + _records([70.0, 71.0], ("ce", "crd"))
    frame = comparison(records, baseline=["ce", "kd"])
    assert _row(frame, "student alone")["label"] == "resnet8: ce + kd"
    assert _row(frame, "distilled")["verdict"] == "better"


@pytest.mark.parametrize(
    ("alone", "distilled", "words"),
    [
        ([60.0, 60.2], [65.0, 65.2], "it is better"),
        ([65.0, 65.2], [60.0, 60.2], "it is worse"),
        ([60.0, 64.0], [61.0, 65.0], "no difference is shown"),
        ([60.0], [65.0], "at least two seeds"),
        ([], [65.0], "no student alone"),
    ],
)
def test_summary_claims_no_more_than_the_seeds_allow(alone: list[float], distilled: list[float], words: str) -> None:
    records = _records(alone, ("ce",)) + _records(distilled, ("ce", "kd"))
    text = " ".join(sentences(records, comparison(records)))
    assert words in text
    assert ("better" in text) == (words == "it is better")


def test_sweeps_and_unmeasured_runs_take_no_part(tmp_path: Path) -> None:
    runs = load_runs([make_sweep(tmp_path / "sweep"), make_run(tmp_path / "blind", None)])
    frame = comparison(runs)
    assert frame.empty
    text = " ".join(sentences(runs, frame))
    assert "not compared: blind" in text
    assert "16 trials: 10 completed, 5 stopped early, 1 failed" in text


def test_markdown() -> None:
    frame = pd.DataFrame({"a|b": ["x|y", "two\nlines"], "n": [1, 2], "mean": [1.005, math.nan]})
    assert to_markdown(frame).splitlines() == [
        "| a\\|b | n | mean |",
        "| --- | --- | --- |",
        "| x\\|y | 1 | 1.00 |",
        "| two lines | 2 | \N{EN DASH} |",
    ]
    assert to_markdown(display(comparison(_records([60.0], ("ce",))))).startswith("| Role | Network | Seeds |")


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}


def _saying(record: RunRecord, right: int, of: int = 100) -> RunRecord:
    return replace(record, top1=100.0 * right / of, rightness=pd.Series([1.0] * right + [0.0] * (of - right)))


def _all_saying(methods: tuple[str, ...], percent: tuple[int, int], of: int) -> list[RunRecord]:
    records = zip(_records([0, 0], methods), percent, strict=True)
    return [_saying(record, right * of // 100, of) for record, right in records]


@pytest.mark.parametrize(("of", "verdict"), [(100, "no difference shown"), (4000, "better")])
def test_what_a_few_test_images_decide_is_no_difference(of: int, verdict: str) -> None:
    alone = _all_saying(("ce",), (80, 81), of)
    distilled = _all_saying(("ce", "kd"), (82, 83), of)
    row = _row(comparison(alone + distilled), "distilled")
    low, high = row["interval"]
    assert low < row["difference"] < high
    assert (low > 0) == (of == 4000)
    assert row["verdict"] == verdict
    said = " ".join(sentences(alone + distilled, comparison(alone + distilled)))
    assert ("the interval holds 0" in said) == (of == 100)


def test_an_interval_needs_what_all_runs_say_of_the_same_images() -> None:
    alone, (one, other) = _records([80, 81], ("ce",)), _records([82, 83], ("ce", "kd"))
    saying = [_saying(record, 80) for record in alone]
    for distilled in ([one, other], [_saying(one, 82), other], [_saying(one, 82), _saying(other, 83, of=99)]):
        frame = comparison(saying + distilled)
        assert _row(frame, "distilled")["interval"] is None
        assert "95 % interval" not in display(frame)
    frame = display(comparison([*saying, _saying(one, 82), _saying(other, 83)]))
    assert "95 % interval" in frame
    assert "| +" in to_markdown(frame)
