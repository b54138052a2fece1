"""The experiments on Fashion-MNIST and ImageNet: a step of each, with all of its methods, on made-up images.

Students and teachers are the real networks, teachers untrained and live; those for ImageNet see small batches of small
images. The tables of papers are stepped through in tests/test_minis.py.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from raydistill.config import Experiment, load_experiment
from raydistill.models.zoo import build_model
from raydistill.training.material import prepare
from tests.test_experiments import FILES, PUBLISHED
from tests.test_minis import step_through

pytestmark = pytest.mark.slow

IMAGES = 64
SIDE = 64
CLASSES = 1000
FIXED = {"deit_small_16": 224, "torchvision/alexnet": 224}
"""Networks that take images of one size alone, or of no smaller."""


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[Path]:
    """A file for the teacher's weights, some of a gigabyte, that does not outlive its test."""
    path = tmp_path / "teacher.pth"
    yield path
    path.unlink(missing_ok=True)
    gc.collect()


def made_up(path: Path, weights: Path) -> Experiment:
    """The experiment on made-up images, its teacher from a checkpoint of the published layout."""
    experiment = load_experiment(path)
    teacher, known = experiment.teacher, experiment.data.known
    changes: dict[str, Any] = {"data": _data(experiment), "cache.views": 0, "tune": None}
    if known.shape is None:
        changes |= {"train.batch_size": 8, "train.accumulate": 1, "scale.workers": 1, "train.precision": "fp32"}
        drawing = [label for label, method in experiment.methods.items() if hasattr(method, "negatives")]
        changes |= {f"methods.{label}.negatives": IMAGES // 4 for label in drawing}
    if teacher is not None:
        classes, channels = (known.num_classes or CLASSES), (known.shape or (3,))[0]
        plain = build_model(teacher.model, classes, channels).state_dict
        torch.save(PUBLISHED.get(teacher.layout, lambda name: plain())(teacher.model), weights)
        changes |= {"teacher.weights": str(weights), "teacher.source": "live"}
    if getattr(experiment.methods.get("protocpc"), "prototypes_file", None):
        prototypes = weights.with_name("prototypes.safetensors")
        save_file({"prototypes.weight": torch.randn(3000, 128)}, prototypes)
        changes["methods.protocpc.prototypes_file"] = str(prototypes)
    return experiment.override(changes)


def _data(experiment: Experiment) -> dict[str, Any]:
    channels, side, _ = experiment.data.known.shape or (3, _side(experiment), 0)
    return {
        "name": "synthetic",
        "synthetic_size": IMAGES if experiment.data.known.shape is None else 6000,
        "synthetic_classes": experiment.data.known.num_classes or CLASSES,
        "synthetic_channels": channels,
        "synthetic_image_size": side,
        "validation": 0.1,
        "augment": experiment.data.augment.model_dump(mode="json"),
    }


def _side(experiment: Experiment) -> int:
    names = {experiment.student.model, *(teacher.model for teacher in experiment.teachers)}
    return max(FIXED.get(name, SIDE) for name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_experiment_takes_a_step(path: Path, weights: Path) -> None:
    experiment = made_up(path, weights)
    metrics = step_through(experiment, prepare(experiment))
    assert {f"train/{label}" for label, weight in experiment.weights.items() if weight} <= metrics.keys()
    assert all(map(math.isfinite, metrics.values()))
