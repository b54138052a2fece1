"""What int8 saves and costs, measured on the run's own test images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from raydistill.config import load_experiment
from raydistill.data.datasets import load_test
from raydistill.exporting import onnx_file
from raydistill.exporting.export import export_run
from tests.exporting.conftest import Exports
from tests.exporting.folders import make_trained_run


def test_the_file_is_smaller_and_what_it_costs_is_told(exported: Exports, run: Path) -> None:
    found = exported("onnx")["quantised"]
    small = Path(found["path"])
    assert small.stat().st_size == found["bytes"] < 0.5 * found["bytes_float"]
    assert found["bytes_float"] == exported("onnx")["bytes"]
    assert found["images"] == len(load_test(load_experiment(run / "config.yaml").data))
    assert found["embedding_cosine"] > 0.99
    assert json.loads((small.parent / "export.json").read_text())["quantised"]["bytes"] == found["bytes"]


def test_its_accuracies_are_those_of_the_two_files(exported: Exports, run: Path) -> None:
    test = load_test(load_experiment(run / "config.yaml").data)
    assert test.labels is not None
    found = exported("onnx")["quantised"]
    for key, path in (("top1_float", exported("onnx")["path"]), ("top1", found["path"])):
        logits = onnx_file.load(Path(path))(test.images / 255)["logits"]
        assert found[key] == pytest.approx(100 * (logits.argmax(1) == test.labels).float().mean().item(), abs=0.6)
    assert found["top1_float"] > 50.0
    assert abs(found["top1"] - found["top1_float"]) < 3.0


def test_it_takes_any_number_of_images_too(exported: Exports) -> None:
    predict = onnx_file.load(Path(exported("onnx")["quantised"]["path"]))
    for batch in (1, 7, 64):
        assert predict(torch.rand(batch, 1, 8, 8))["logits"].shape == (batch, 10)


def test_without_a_classifier_neighbours_judge(tmp_path: Path) -> None:
    teacher = {"model": "resnet14", "weights": "elsewhere/model.safetensors", "source": "live"}
    run = make_trained_run(tmp_path, teacher=teacher, methods={"compress": {"queue": 64, "queues": "1q"}})
    found = export_run(run, "onnx", quantised="int8")
    assert set(found["quantised"]) >= {"knn", "knn_float", "embedding_cosine"}
    assert "top1" not in found["quantised"]
    assert found["quantised"]["knn_float"] > 50.0
    assert abs(found["quantised"]["knn"] - found["quantised"]["knn_float"]) < 3.0
    assert set(onnx_file.load(Path(found["path"]))(torch.rand(2, 1, 8, 8))) == {"embedding"}
    card = Path(found["card"]).read_text()
    assert "No classifier was trained" in card
    assert "| k-NN (%) |" in card
    assert "- k-NN accuracy on the test images (%): 87.50" in card
