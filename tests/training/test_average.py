"""The running average of the student."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raydistill.config import Experiment
from raydistill.evaluation.classification import top_k_accuracy
from raydistill.evaluation.features import extract
from raydistill.models.weights import load_weights
from raydistill.models.zoo import build_model
from raydistill.train_config import EmaConfig
from raydistill.training.average import AveragedStudent
from raydistill.training.checkpoint import load_checkpoint
from raydistill.training.loop import fit, measure_top1
from raydistill.training.run import run
from raydistill.training.run_folder import RunFolder
from raydistill.training.session import Session
from raydistill.training.step import descend
from tests.conftest import digits
from tests.training.sessions import assert_equal_states, save_checkpoint, session_of

TRAIN = {"epochs": 2, "batch_size": 48}


def averaging(folder: Path, **ema: Any) -> Experiment:
    return digits(folder, train=TRAIN | {"ema": ema})


def test_decay_grows_up_to_what_was_asked_for() -> None:
    average = AveragedStudent(nn.Linear(2, 2), EmaConfig(decay=0.5))
    assert [average.decay(step) for step in (0, 1, 2, 8, 20)] == pytest.approx([0.0, 2 / 11, 3 / 12, 0.5, 0.5])
    assert AveragedStudent(nn.Linear(2, 2), EmaConfig(decay=0.9, warmup=False)).decay(1) == 0.9


def test_average_of_a_run_is_the_sum_of_its_students(tmp_path: Path) -> None:
    session = session_of(averaging(tmp_path, decay=0.6, warmup=False))
    student = session.distiller.student
    seen: list[dict[str, torch.Tensor]] = []
    for step in session.steps(0):
        descend(session, step)
        seen.append({name: value.clone() for name, value in student.state_dict().items()})
    weights = [0.6**3, 0.4 * 0.6**2, 0.4 * 0.6, 0.4]
    assert len(seen) == len(weights)
    averaged = session.student.state_dict()
    for name, value in averaged.items():
        if value.is_floating_point():
            expected = sum(weight * state[name].double() for weight, state in zip(weights, seen, strict=True))
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, seen[-1][name])
    assert not session.student.training and not any(value.requires_grad for value in session.student.parameters())


def test_the_average_is_validated_tested_and_exported(tmp_path: Path) -> None:
    experiment = averaging(tmp_path, decay=0.9)
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    session = session_of(experiment)
    run(session, folder, after_epoch=lambda metrics, session: None)
    exported = build_model("resnet8", 10, in_channels=1)
    load_weights(exported, folder.path / "student.safetensors")
    assert all(torch.equal(value, session.student.state_dict()[key]) for key, value in exported.state_dict().items())
    assert not torch.equal(exported.fc.weight, session.distiller.student.fc.weight)
    held_out = session.validation
    assert held_out.labels is not None
    top1 = top_k_accuracy(extract(exported, held_out, "logits"), held_out.labels, 1)
    assert session.history[-1]["val/top1"] == top1 == measure_top1(session, held_out, session.student)
    assert folder.result()["averaged"] is True


def test_training_itself_is_the_same_with_and_without(tmp_path: Path) -> None:
    with_average, without = session_of(averaging(tmp_path, decay=0.9)), session_of(digits(tmp_path, train=TRAIN))
    for session in (with_average, without):
        fit(session, lambda metrics, session: None)
    assert_equal_states(with_average, without)
    assert without.student is without.distiller.student


def test_a_resumed_average_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    experiment = averaging(tmp_path, decay=0.9)

    def keep_first(metrics: dict[str, float], session: Session) -> None:
        if session.epoch == 1:
            save_checkpoint(session, tmp_path)

    whole = session_of(experiment)
    fit(whole, keep_first)
    resumed = session_of(experiment)
    load_checkpoint(resumed, tmp_path)
    fit(resumed, lambda metrics, session: None)
    assert_equal_states(whole, resumed)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(resumed.student.state_dict()[name], value), name


def test_the_student_is_left_as_it_is() -> None:
    student = build_model("resnet8", 10).train()
    before = copy.deepcopy(student.state_dict())
    AveragedStudent(student, EmaConfig()).follow(student, 5)
    assert student.training and all(value.requires_grad for value in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
