"""Weights that are missing are told before Ray is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from raydistill.cli import app
from raydistill.errors import WeightsError
from raydistill.required import require_teachers, require_weights
from raydistill.training import trainer
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


def test_all_that_is_missing_is_told_together(tmp_path: Path) -> None:
    several = digits(tmp_path, teacher=TEACHER, ensemble=[TEACHER], methods={"ce": {}, "kd": {}})
    with pytest.raises(WeightsError, match=r"teacher\.weights = .*\nensemble\.0\.weights = absent\.safetensors"):
        require_weights(several)
    with pytest.raises(WeightsError, match=r"teacher\.weights = .*\nensemble\.0\.weights = "):
        require_teachers(several)


@pytest.mark.parametrize("command", ["build", "plan"])
def test_a_cache_without_its_teachers_weights_looks_for_no_images(tmp_path: Path, command: str) -> None:
    experiment = digits(tmp_path, teacher=TEACHER, methods={"ce": {}, "kd": {}})
    file = tmp_path / "experiment.yaml"
    file.write_text(experiment.override({"data": {"name": "fashion_mnist", "root": "nowhere"}}).to_yaml())
    answer = CliRunner().invoke(app, ["cache", command, str(file)])
    assert answer.exit_code == 2
    assert "teacher.weights = absent.safetensors: no such file; `raydistill teacher CONFIG` trains" in answer.stderr
