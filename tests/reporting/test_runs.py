"""Reading run folders, and the one line that says what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raydistill.errors import DataError
from raydistill.reporting.runs import load_run, load_runs
from tests.reporting.folders import make_run, make_sweep


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    record = load_run(make_run(tmp_path / "kd", 71.2, ["ce", "kd"], seed=3, card={"student": {"top1": 71.2}}))
    assert (record.kind, record.name, record.seed, record.top1) == ("train", "kd", 3, 71.2)
    assert (record.student, record.methods, record.epochs) == ("resnet8", ("ce", "kd"), 8)
    assert len(record.metrics) == 8
    assert record.card == {"student": {"top1": 71.2}}
    assert record.environment["packages"]["torch"] == "2.15.0"


def test_card_metrics_and_environment_may_be_missing(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", 60.0)
    (path / "metrics.jsonl").unlink()
    (path / "environment.json").unlink()
    record = load_run(str(path))
    assert (record.metrics, record.card, record.environment) == ((), {}, {})


def test_what_the_student_was_worth_for_other_tasks_is_part_of_its_card(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", 60.0, card={"student": {"top1": 60.0}})
    (path / "detection.json").write_text(
        '{"student": {"voc/detection_ap": 50.0}, "fresh": {"voc/detection_ap": 30.0}, "settings": {}}'
    )
    (path / "segmentation.json").write_text('{"fresh": {"nyu_depth_v2/segmentation_miou": 10.0}}')
    assert load_run(path).card == {
        "student": {"top1": 60.0, "voc/detection_ap": 50.0},
        "fresh": {"voc/detection_ap": 30.0, "nyu_depth_v2/segmentation_miou": 10.0},
    }


def test_a_sweep_is_read_with_its_trials(tmp_path: Path) -> None:
    sweep = load_run(make_sweep(tmp_path / "sweep")).sweep
    assert sweep is not None
    assert sweep.trials["trial"].tolist()[:2] == ["00000", "00001"]
    assert sweep.keys == ["train.optimizer.lr", "methods.kd.temperature", "train.optimizer.name"]
    assert len(sweep.ended) == 15
    assert sweep.best is not None
    assert sweep.best["val/top1"] == sweep.ended["val/top1"].max()
    assert "00005" not in sweep.histories


def test_best_of_a_minimised_metric(tmp_path: Path) -> None:
    sweep = load_run(make_sweep(tmp_path / "sweep", mode="min")).sweep
    assert sweep is not None
    assert sweep.best is not None
    assert sweep.best["val/top1"] == sweep.ended["val/top1"].min()


def _empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("gone", lambda path: path.rename(path.with_name("else")), "no such directory"),
    ("other folder", _empty, "neither config.yaml nor result.json"),
    ("half-written", lambda path: (path / "_SUCCESS").unlink(), "has not finished"),
    ("no result", lambda path: (path / "result.json").unlink(), "result.json is missing"),
    ("no configuration", lambda path: (path / "config.yaml").unlink(), "config.yaml is missing"),
    ("torn result", lambda path: (path / "result.json").write_text('{"name":'), "result.json cannot be read"),
    ("list", lambda path: (path / "result.json").write_text("[1]"), "a mapping was expected, not list"),
    ("bad yaml", lambda path: (path / "config.yaml").write_text("a: [1\nb: }"), "config.yaml cannot be read"),
    ("torn epoch", lambda path: (path / "metrics.jsonl").write_text('{"epoch": 1}\n{"ep'), "metrics.jsonl"),
    ("binary", lambda path: (path / "environment.json").write_bytes(b"\xff\xfe\x00"), "environment.json"),
    ("bad card", lambda path: (path / "card.json").write_text('{"student": 3}'), "card.json"),
]


@pytest.mark.parametrize(("damage", "message"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE])
def test_damage_is_one_line_that_names_the_folder(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    path = make_run(tmp_path / "run", 60.0)
    damage(path)
    with pytest.raises(DataError, match=message) as caught:
        load_run(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("content", ["", "trial,status\n1,completed\n"])
def test_a_sweep_without_trials_is_damaged(tmp_path: Path, content: str) -> None:
    path = make_sweep(tmp_path / "sweep")
    (path / "trials.csv").write_text(content)
    with pytest.raises(DataError, match=r"trials\.csv"):
        load_run(path)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", 60.0)
    with pytest.raises(DataError) as caught:
        load_runs([tmp_path / "a", good, tmp_path / "b"])
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(DataError, match="no run folder given"):
        load_runs([])


def test_a_folder_given_twice_counts_once(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", 60.0)
    assert len(load_runs([path, tmp_path / "." / "run", str(path) + "/"])) == 1
