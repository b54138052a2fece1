"""The report card of a real run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raydistill.errors import ConfigError, DataError
from raydistill.evaluation.card import evaluate_run
from raydistill.training.trainer import train
from tests.conftest import digits, teaching


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher_weights: Path, ray_session: None) -> Path:
    teacher = teaching(teacher_weights) | {"source": "live"}
    experiment = digits(tmp_path_factory.mktemp("card"), teacher=teacher, methods={"ce": {}, "kd": {}})
    return Path(train(experiment)["run"])


def test_student_and_teacher_are_measured(run: Path) -> None:
    card = evaluate_run(run)
    assert set(card) == {"student", "teacher"}
    for values in card.values():
        assert set(values) == {
            *("top1", "top5", "knn", "nn1"),
            *("parameters", "mult_adds", "latency_p50_ms", "latency_p95_ms"),
        }
        assert 0.0 <= values["top1"] <= values["top5"] <= 100.0
        assert 0.0 < values["latency_p50_ms"] <= values["latency_p95_ms"]
    assert card["teacher"]["parameters"] > card["student"]["parameters"]
    assert card["teacher"]["mult_adds"] > card["student"]["mult_adds"]


def test_the_card_agrees_with_the_runs_own_result(run: Path) -> None:
    from raydistill.training.run_folder import RunFolder

    assert evaluate_run(run, ["top1"])["student"] == {"top1": pytest.approx(RunFolder(run).result()["top1"])}


@pytest.mark.slow
def test_a_classifier_that_nobody_trained_is_not_measured(tmp_path: Path, ray_session: None) -> None:
    weights = tmp_path / "teacher.safetensors"
    from raydistill.models.weights import save_weights
    from raydistill.models.zoo import build_model

    save_weights(build_model("resnet14", 10, in_channels=1), weights)
    methods = {"compress": {"queue": 64, "queues": "1q"}}
    experiment = digits(tmp_path, teacher=teaching(weights) | {"source": "live"}, methods=methods)
    result = train(experiment)
    card = evaluate_run(result["run"], ["top1", "knn"])
    assert set(card["student"]) == {"knn"}
    assert result["top1"] == pytest.approx(card["student"]["knn"])


def test_what_cannot_be_measured_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        evaluate_run(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'top5'"):
        evaluate_run(run, ["topp5"])
    half = tmp_path / "half"
    shutil.copytree(run, half)
    (half / "_SUCCESS").unlink()
    with pytest.raises(DataError, match="half: no finished run"):
        evaluate_run(half)
