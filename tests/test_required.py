"""Weights that are missing are told before Ray is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydistill.errors import WeightsError
from raydistill.training import trainer
from raydistill.training.required import require_weights
from tests.conftest import digits

TEACHER = {"model": "resnet14", "weights": "absent.safetensors"}


@pytest.mark.parametrize("source", ["cache", "live"])
def test_a_run_without_its_teachers_weights_starts_no_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(trainer, "ensure_ray", lambda: pytest.fail("Ray was started"))
    experiment = digits(tmp_path, teacher=TEACHER | {"source": source}, methods={"ce": {}, "kd": {}})
    said = r"teacher\.weights = absent\.safetensors: no such file; `raydistill teacher CONFIG` trains them"
    with pytest.raises(WeightsError, match=said):
        trainer.train(experiment)


def test_a_teacher_that_no_method_asks_needs_no_weights(tmp_path: Path) -> None:
    require_weights(digits(tmp_path, teacher=TEACHER, methods={"ce": {}}))


def test_a_published_checkpoint_is_not_said_to_be_trained_here(tmp_path: Path) -> None:
    published = {"model": "torchvision/resnet50", "weights": "moco.pth.tar", "layout": "moco_v2"}
    with pytest.raises(WeightsError, match=r"teacher\.weights = moco\.pth\.tar: no such file$"):
        require_weights(digits(tmp_path, teacher=published, methods={"compress": {}}))
