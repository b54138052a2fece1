"""The report card of a real run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file

from raydistill.errors import ConfigError, DataError
from raydistill.evaluation.card import evaluate_run, examine_run, write_card
from raydistill.models.zoo import build_model
from raydistill.reporting.page import write_report
from raydistill.reporting.runs import load_run
from raydistill.training.trainer import train
from tests.conftest import digits, teaching
from tests.data_room.files import write_image
from tests.data_room.published import halves, write_voc


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
            *("parameters", "mult_adds", "weight_bytes"),
            *("latency_p50_ms", "latency_p95_ms", "latency_batch64_p50_ms", "latency_batch64_p95_ms"),
            *("peak_memory_bytes", "peak_memory_batch64_bytes"),
        }
        assert 0.0 <= values["top1"] <= values["top5"] <= 100.0
        assert 0.0 < values["latency_p50_ms"] <= values["latency_p95_ms"]
    assert card["teacher"]["parameters"] > card["student"]["parameters"]
    assert card["teacher"]["mult_adds"] > card["student"]["mult_adds"]


def test_what_is_said_of_single_images_is_kept(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    card = examine_run(copy, ["all"])
    write_card(copy, card)
    assert json.loads((copy / "card.json").read_text()) == card.values
    said = pd.read_parquet(copy / "predictions.parquet")
    assert list(said) == ["id", "label", "student", "student confidence", "teacher", "teacher confidence"]
    for role in ("student", "teacher"):
        assert 100.0 * (said[role] == said["label"]).mean() == pytest.approx(card.values[role]["top1"])
        assert said[f"{role} confidence"].between(0.1, 1.0).all()
    assert 100.0 * (said["student"] == said["teacher"]).mean() == pytest.approx(card.values["student"]["agreement"])
    record = load_run(copy)
    assert record.correlation.to_numpy().mean() == pytest.approx(card.values["student"]["correlation_discrepancy"])
    assert record.rightness is not None
    assert 100.0 * record.rightness.mean() == pytest.approx(card.values["student"]["top1"])
    assert len(record.panels.neighbours) == 8
    assert len(record.panels.clusters) == 6
    assert "cka" not in card.values["teacher"]


def test_features_are_judged_on_other_images(run: Path) -> None:
    other = (
        "evaluate.transfer.other={name: synthetic, synthetic_size: 200, synthetic_classes: 4, synthetic_channels: 1}"
    )
    card = evaluate_run(run, ["top1", "nn1", "linear", "cost"], overrides=[other])
    for values in card.values():
        found = {name for name in values if name.startswith("other/")}
        assert found == {"other/nn1", "other/linear"}
        assert all(25.0 <= values[name] <= 100.0 for name in found)
    with pytest.raises(DataError, match="images of 3 channels, the networks were trained on 1"):
        evaluate_run(run, ["nn1"], overrides=["evaluate.transfer.other={name: synthetic, synthetic_size: 200}"])


def test_features_are_judged_on_images_of_several_classes(run: Path, tmp_path: Path) -> None:
    write_voc(tmp_path, *halves())
    data = f"{{name: voc07, root: {tmp_path}, modalities: {{student: luminance}}}}"
    card = evaluate_run(run, ["knn", "map"], overrides=[f"evaluate.transfer.voc07={data}"])
    for values in card.values():
        assert set(values) == {"knn", "voc07/map"}
        assert values["voc07/map"] == pytest.approx(100.0)


def test_a_finished_run_is_measured_as_it_is(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"student\.model=resnet20: a finished run is measured as it is"):
        evaluate_run(run, overrides=["student.model=resnet20"])
    assert evaluate_run(run, ["knn"], overrides=["evaluate.k=1"])["student"]["knn"] == pytest.approx(
        evaluate_run(run, ["nn1"])["student"]["nn1"]
    )


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
    with pytest.raises(DataError, match="there is no such folder"):
        evaluate_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="did you mean 'top5'"):
        evaluate_run(run, ["topp5"])
    half = tmp_path / "half"
    shutil.copytree(run, half)
    (half / "_SUCCESS").unlink()
    with pytest.raises(DataError, match="half: no finished run"):
        evaluate_run(half)


def test_images_without_labels_are_judged_by_what_needs_none(tmp_path: Path, ray_session: None) -> None:
    for number in range(60):
        write_image(tmp_path / "photos" / ("test" if number < 20 else "train") / f"{number}.png", value=4 * number)
    weights = tmp_path / "teacher.safetensors"
    save_file(build_model("resnet14", 10, in_channels=3).state_dict(), weights)
    experiment = digits(
        tmp_path,
        data={"name": "image_folder", "root": str(tmp_path / "photos"), "image_size": 8, "num_classes": 10},
        teacher=teaching(weights) | {"source": "live"},
        methods={"compress": {"queue": 16}},
    )
    result = train(experiment.override({"train.epochs": 1, "train.agreement": ["cka"]}))
    run = Path(result["run"])
    assert result["val_cka"] == pytest.approx(load_run(run).metrics[-1]["val/cka"])
    assert "val/cka over epochs" in write_report([run], tmp_path / "report.html").read_text()
    with pytest.raises(
        DataError, match=r"no labels, by which top1, .*knn.* --protocol neighbours .*evaluate\.transfer"
    ):
        evaluate_run(run)
    others = "{name: synthetic, synthetic_size: 60, synthetic_image_size: 8}"
    card = examine_run(run, ["neighbours", "knn"], overrides=[f"evaluate.transfer.other={others}"])
    assert {"neighbours@10", "other/knn"} == set(card.values["student"])
