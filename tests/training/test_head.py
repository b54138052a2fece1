"""Training the head of a student alone, and with a fresh one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.config import Experiment
from raydistill.errors import ConfigError
from raydistill.models.weights import load_weights, save_weights
from raydistill.models.zoo import build_model
from raydistill.training.checkpoint import load_checkpoint
from raydistill.training.loop import fit
from raydistill.training.session import Session
from tests.conftest import digits, teaching
from tests.training.sessions import assert_equal_states, save_checkpoint, session_of

HEADS = {
    "resnet8": {"fc.weight", "fc.bias"},
    "torchvision/mobilenet_v3_small": {"classifier.3.weight", "classifier.3.bias"},
    "tests.models.foreign:convolutions": {"fc.weight", "fc.bias"},
}
TRAIN = {"epochs": 2, "batch_size": 48}
HARSH: dict[str, dict[str, Any]] = {
    "weight decay": {"optimizer": {"weight_decay": 0.5}},
    "average, clipping, micro-batches": {"ema": {"decay": 0.5, "warmup": False}, "clip": 0.1, "accumulate": 2},
    "lars in bf16": {"optimizer": {"name": "lars", "lr": 1.0}, "precision": "bf16"},
    "precision measured": {"optimizer": {"name": "adamw", "lr": 0.01}, "precision": "auto"},
}
"""Settings by which a frozen network could move all the same."""


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """Files of networks for seven classes, by their names."""
    paths = {model: tmp_path / f"{number}.safetensors" for number, model in enumerate(HEADS)}
    torch.manual_seed(3)
    for model, path in paths.items():
        save_weights(build_model(model, 7, in_channels=1), path)
    return {model: str(path) for model, path in paths.items()}


def probing(folder: Path, weights: dict[str, str], model: str = "resnet8", **sections: Any) -> Experiment:
    student = {"model": model, "weights": weights[model], "head": "fresh", "trains": "head"}
    return digits(folder, **({"student": student, "train": TRAIN} | sections))


@pytest.mark.parametrize("model", HEADS)
def test_the_head_learns_on_features_that_stay_bit_for_bit(tmp_path: Path, weights: dict[str, str], model: str) -> None:
    """Weights and running statistics, and what the network says of images while it is being trained."""
    session = session_of(probing(tmp_path, weights, model))
    before, seen = _copy(session.student), _embedding(session)
    given = build_model(model, 7, in_channels=1)
    load_weights(given, weights[model])
    losses = _fit(session)
    assert losses[1] < losses[0]
    session.model.train()
    assert torch.equal(seen, _embedding(session))
    assert {name for name, value in before.items() if not torch.equal(value, session.student.state_dict()[name])} == (
        HEADS[model]
    )
    for name, value in given.state_dict().items():
        assert name in HEADS[model] or torch.equal(value, before[name]), name


@pytest.mark.parametrize("case", HARSH)
def test_nothing_moves_what_is_frozen(tmp_path: Path, weights: dict[str, str], case: str) -> None:
    session = session_of(probing(tmp_path, weights, train=TRAIN | HARSH[case]))
    before = _copy(session.distiller.student)
    _fit(session)
    for network in (session.distiller.student, session.student):
        after = network.state_dict()
        assert {name for name, value in before.items() if not torch.equal(value, after[name])} == HEADS["resnet8"]


def test_a_deep_head_trains_with_its_own_norms_and_dropout(tmp_path: Path) -> None:
    path, model = tmp_path / "deep.safetensors", "tests.models.foreign:deep_head"
    save_weights(build_model(model, 7, in_channels=1), path)
    student = {"model": model, "weights": str(path), "taps": {"embedding": "body"}, "head": "fresh", "trains": "head"}
    session = session_of(digits(tmp_path, student=student))
    before = _copy(session.student)
    session.model.train()
    modes = {name for name, module in session.student.named_modules() if module.training}
    assert {name.partition(".")[0] for name in modes} == {"head"} and "head.3" in modes
    _fit(session)
    moved = {name for name, value in before.items() if not torch.equal(value, session.student.state_dict()[name])}
    assert {"head.0.weight", "head.4.running_mean"} <= moved
    assert all(name.startswith("head.") for name in moved)


def test_what_teaches_the_head_is_open(tmp_path: Path, weights: dict[str, str], teacher_weights: Path) -> None:
    """Methods have their own trained parts; the student's features stay."""
    methods = {"ce": {}, "kd": {}, "crd": {"negatives": 16, "dimension": 8}}
    teacher = teaching(teacher_weights) | {"source": "live"}
    session = session_of(probing(tmp_path, weights, methods=methods, teacher=teacher))
    before, parts = _copy(session.student), _copy(session.distiller.objective)
    _fit(session)
    assert {name for name, value in before.items() if not torch.equal(value, session.student.state_dict()[name])} == (
        HEADS["resnet8"]
    )
    assert any(not torch.equal(value, session.distiller.objective.state_dict()[name]) for name, value in parts.items())


def test_a_stage_that_trains_the_whole_student_is_refused(
    tmp_path: Path, weights: dict[str, str], teacher_weights: Path
) -> None:
    teacher = teaching(teacher_weights) | {"source": "live"}
    with pytest.raises(ConfigError, match=r"student.trains = 'head': methods.ab trains the whole student"):
        session_of(probing(tmp_path, weights, methods={"ce": {}, "ab": {}}, teacher=teacher))
    session_of(probing(tmp_path, weights, methods={"ce": {}, "ft": {}}, teacher=teacher))


@pytest.mark.parametrize("trains", ["all", "head"])
def test_a_checkpoint_goes_on_to_the_same_student(tmp_path: Path, weights: dict[str, str], trains: str) -> None:
    student = {"model": "resnet8", "weights": weights["resnet8"], "head": "fresh", "trains": trains}
    experiment = digits(tmp_path, student=student)
    whole = session_of(experiment)
    (tmp_path / "checkpoint").mkdir()

    def keep_first(metrics: Any, session: Session) -> None:
        if session.epoch == 1:
            save_checkpoint(session, tmp_path / "checkpoint")

    fit(whole, keep_first)
    resumed = session_of(experiment)
    load_checkpoint(resumed, tmp_path / "checkpoint")
    assert resumed.epoch == 1
    _fit(resumed)
    assert_equal_states(whole, resumed)


def test_a_fresh_head_follows_from_the_seed(tmp_path: Path, weights: dict[str, str]) -> None:
    heads = [session_of(probing(tmp_path, weights, seed=seed)).student.state_dict()["fc.weight"] for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert heads[0].shape[0] == 10


def test_a_network_without_a_head_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "backbone.safetensors", "tests.models.foreign:backbone"
    save_weights(build_model(model, 7), path)
    data = {"name": "synthetic", "synthetic_size": 60, "validation": 0.2}
    with pytest.raises(ConfigError, match="the network has no head"):
        session_of(digits(tmp_path, data=data, student={"model": model, "weights": str(path), "head": "fresh"}))


def _fit(session: Session) -> list[float]:
    losses: list[float] = []
    fit(session, lambda metrics, _: losses.append(metrics["train/loss"]))
    return losses


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def _embedding(session: Session) -> Tensor:
    """In the modes that the parts of the network have."""
    images = torch.linspace(-1.0, 1.0, 4 * 64).reshape(4, 1, 8, 8)
    found: Tensor = session.distiller.student(images, ("embedding",))["embedding"]
    return found
