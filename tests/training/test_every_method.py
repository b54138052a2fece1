"""Every registered method trains a real network through the real loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.config import Experiment
from raydistill.methods.registry import METHODS
from raydistill.training.loop import fit
from tests.conftest import digits, teaching
from tests.methods.cases import SMALL
from tests.training.sessions import session_of


def experiment_of(name: str, folder: Path, teacher: dict[str, Any], **sections: Any) -> Experiment:
    values: dict[str, Any] = {
        "data": {"name": "digits", "subset": 120, "validation": 0.2, "augment": {"crop": 1}},
        "teacher": teacher,
        "methods": {name: SMALL.get(name, {})},
        "train": {"epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.001}},
    }
    return digits(folder, **(values | sections))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("batch_size", [16, 2])
def test_trains(name: str, batch_size: int, tmp_path: Path, teacher_weights: Path) -> None:
    train = {"epochs": 1, "batch_size": batch_size, "optimizer": {"lr": 0.001}}
    data = {"name": "digits", "subset": 40, "validation": 0.2, "augment": {"crop": 1}}
    teacher = teaching(teacher_weights) | {"source": "live"}
    session = session_of(experiment_of(name, tmp_path, teacher, train=train, data=data))
    before = [value.clone() for value in session.distiller.student.parameters()]
    fit(session, lambda metrics, session: session.history.append(metrics))
    assert f"train/{name}" in session.history[0]
    after = session.distiller.student.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_trains_on_colour_images(name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from raydistill.models.weights import save_weights
    from raydistill.models.zoo import build_model

    weights = tmp_path / "colour.safetensors"
    save_weights(build_model("resnet14", 4), weights)
    data = {"name": "synthetic", "synthetic_size": 40, "synthetic_classes": 4, "synthetic_image_size": 16}
    teacher = {"model": "resnet14", "weights": str(weights), "source": "live"}
    train = {"epochs": 1, "batch_size": 16, "optimizer": {"lr": 0.001}}
    session = session_of(experiment_of(name, tmp_path, teacher, train=train, data=data))
    fit(session, lambda metrics, session: session.history.append(metrics))
    assert session.history[0]["train/loss"] == session.history[0]["train/loss"]
