"""Controls: what a student must be better than."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydistill.errors import ConfigError, DataError
from raydistill.judge import counterparts, judge_runs
from raydistill.training.trainer import train
from tests.conftest import digits, teaching


def test_controls_have_the_same_budget_and_nothing_but_labels(tmp_path: Path) -> None:
    experiment = digits(
        tmp_path,
        name="kd",
        seed=3,
        teacher={"model": "resnet14", "weights": "teacher.safetensors"},
        methods={"ce": {"weight": 0.1}, "kd": {"weight": 0.9}},
        train={"epochs": 2, "agreement": ["cka"]},
    )
    found = {one.name: one for one in counterparts(experiment, 2)}
    assert list(found) == ["kd-alone", "kd-smoothed", "kd-seed4", "kd-alone-seed4", "kd-smoothed-seed4"]
    assert found["kd-seed4"].methods == experiment.methods
    for name, control in found.items():
        assert control.seed == (4 if name.endswith("seed4") else 3)
        assert (control.data, control.student) == (experiment.data, experiment.student)
        assert control.train.model_copy(update={"agreement": ("cka",)}) == experiment.train
        if name != "kd-seed4":
            assert control.teacher is None
            assert control.weights == {"ce": 1.0}
    smoothing = {name: one.to_dict()["methods"]["ce"]["label_smoothing"] for name, one in found.items()}
    assert smoothing == {**dict.fromkeys(found, 0.0), "kd-smoothed": 0.1, "kd-smoothed-seed4": 0.1}


def test_only_finished_students_are_judged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run of a student"):
        judge_runs([tmp_path], seeds=1, output=tmp_path / "report.html")
    with pytest.raises(ConfigError, match="--seeds 0: must be at least 1"):
        judge_runs([tmp_path], seeds=0, output=tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
    unlabelled = digits(tmp_path, methods={"compress": {"queue": 64}}, teacher={"model": "resnet14", "source": "live"})
    (tmp_path / "config.yaml").write_text(unlabelled.to_yaml())
    for name in ("student.safetensors", "_SUCCESS"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="its methods train no classifier"):
        judge_runs([tmp_path], seeds=1, output=tmp_path / "report.html")


@pytest.mark.slow
def test_a_verdict_is_reached_and_finished_runs_are_kept(
    tmp_path: Path, teacher_weights: Path, ray_session: None
) -> None:
    experiment = digits(tmp_path, teacher=teaching(teacher_weights) | {"source": "live"}, methods={"ce": {}, "kd": {}})
    run = Path(train(experiment)["run"])
    found = judge_runs([run], seeds=2, output=tmp_path / "report.html")
    names = [Path(one).name for one in found["runs"]]
    own = run.name
    assert names == [
        own,
        *(f"{own}-{control}" for control in ("alone", "smoothed")),
        *(f"{own}{control}-seed1" for control in ("", "-alone", "-smoothed")),
    ]
    said = " ".join(found["verdict"])
    assert "trained alone, reaches" in said
    assert "95 % interval over test images" in said
    assert "95 % interval" in Path(found["report"]).read_text()
    results = {one: json.loads((Path(one) / "result.json").read_text()) for one in found["runs"]}
    cards = {Path(one).name: json.loads((Path(one) / "card.json").read_text()) for one in found["runs"]}
    assert all("top1" in card["student"] for card in cards.values())
    assert [name for name, card in cards.items() if "latency_p50_ms" in card["student"]] == [own]
    times = {one: (Path(one) / "_SUCCESS").stat().st_mtime_ns for one in found["runs"]}
    again = judge_runs([run], seeds=2, output=tmp_path / "report.html")
    assert again == found
    assert times == {one: (Path(one) / "_SUCCESS").stat().st_mtime_ns for one in found["runs"]}
    assert results == {one: json.loads((Path(one) / "result.json").read_text()) for one in found["runs"]}
