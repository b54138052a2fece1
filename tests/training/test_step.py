"""Micro-batches, clipping and half precision in a step of the optimiser."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.config import Experiment
from raydistill.errors import RunError
from raydistill.training.checkpoint import load_checkpoint
from raydistill.training.loop import fit
from raydistill.training.micro_batches import micro_batches
from raydistill.training.session import Session
from raydistill.training.step import autocast, descend
from tests.conftest import digits, teaching
from tests.methods.ranks import freeze_statistics
from tests.training.sessions import assert_equal_states, save_checkpoint, session_of

PLAIN = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
ROWS = {"ce": {"label_smoothing": 0.1}, "kd": {}, "reg": {}}


def experiment_of(folder: Path, weights: Path | None = None, methods: Any = None, **train: Any) -> Experiment:
    sections = {} if weights is None else {"teacher": teaching(weights) | {"source": "live"}}
    return digits(folder, methods=methods or {"ce": {}}, train={"epochs": 2, "batch_size": 48} | train, **sections)


def without_batch_statistics(experiment: Experiment) -> Session:
    """A session whose batch-norms see no batch, so that a loss is one of single rows."""
    session = session_of(experiment)
    freeze_statistics(session.distiller)
    return session


def weights_of(session: Session) -> Tensor:
    return torch.cat([value.detach().flatten() for value in session.distiller.parameters()])


@pytest.mark.parametrize("accumulate", [2, 5])
def test_micro_batches_add_up_to_the_batch(tmp_path: Path, teacher_weights: Path, accumulate: int) -> None:
    """Batches of 80 images in 2 and in 5 parts, and a last one of 32 in 1 and in 2; losses of single rows."""
    found = []
    for number in (1, accumulate):
        settings = {"accumulate": number, "drop_last": False, "batch_size": 80, "optimizer": {"lr": 0.01}}
        session = without_batch_statistics(experiment_of(tmp_path, teacher_weights, ROWS, **settings))
        losses = [descend(session, step) for epoch in (0, 1) for step in session.steps(epoch)]
        found.append((losses, weights_of(session), session.schedule.last_epoch))
    (whole, expected, steps), (parts, weights, other_steps) = found
    assert steps == other_steps == 6
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    for left, right in zip(parts, whole, strict=True):
        torch.testing.assert_close(left.total.detach(), right.total.detach(), rtol=1e-4, atol=0)
        assert left.terms.keys() == right.terms.keys()
        for name, value in right.terms.items():
            torch.testing.assert_close(left.terms[name], value, rtol=1e-4, atol=0)


def test_a_micro_batch_is_the_batch_of_the_methods(tmp_path: Path, teacher_weights: Path) -> None:
    """The loss of all pairs of rows is that of two halves; queues take both, averaged copies move once."""
    methods: dict[str, Any] = {"pkt": {"weight": 1.0}, "compress": {"queue": 64, "momentum": 0.9}}
    session = without_batch_statistics(
        experiment_of(tmp_path, teacher_weights, methods, accumulate=2, optimizer={"lr": 0.01})
    )
    step = next(iter(session.steps(0)))
    halves = [part.step for part in micro_batches(step, 0)]
    assert [len(half.columns["index"]) for half in halves] == [24, 24]
    parts = session.distiller.objective.parts
    assert parts["pkt"] is not None
    terms = [session.model(half).terms for half in halves]
    start = torch.cat([value.flatten() for value in parts["compress"]["key_network"].parameters()]).clone()
    loss = descend(session, step)
    torch.testing.assert_close(loss.terms["pkt"], (terms[0]["pkt"] + terms[1]["pkt"]) / 2, rtol=1e-4, atol=0)

    keys = torch.nn.functional.normalize(step.teacher[0]["embedding"], dim=1)
    torch.testing.assert_close(parts["compress"]["teacher_queue"].keys[:48], keys)
    moved = torch.cat([value.flatten() for value in parts["compress"]["key_network"].parameters()])
    student = torch.cat([value.detach().flatten() for value in session.distiller.student.parameters()])
    torch.testing.assert_close(moved, 0.9 * start + 0.1 * student, rtol=1e-4, atol=1e-6)


def test_a_step_without_shares_is_one_micro_batch(tmp_path: Path) -> None:
    session = session_of(experiment_of(tmp_path, accumulate=2))
    (part,) = micro_batches(session.draw(torch.arange(8), 0), 0)
    assert part.weight == 1.0 and len(part.step.columns["index"]) == 8


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_whole_gradient_is_clipped(tmp_path: Path, accumulate: int) -> None:
    settings = {"accumulate": accumulate, "optimizer": PLAIN, "schedule": {"name": "constant"}}
    free, clipped, loose = (
        without_batch_statistics(experiment_of(tmp_path, clip=clip, **settings)) for clip in (None, 1e-3, 1e6)
    )
    before = weights_of(free)
    step = next(iter(free.steps(0)))
    norms = {}
    for session in (free, clipped, loose):
        norms[id(session)] = descend(session, step).terms.get("gradient_norm")
    moved = weights_of(free) - before
    assert norms[id(free)] is None
    for session in (clipped, loose):
        torch.testing.assert_close(norms[id(session)], moved.norm(), rtol=1e-3, atol=0)
    torch.testing.assert_close(weights_of(loose), weights_of(free), rtol=1e-5, atol=1e-6)
    small = (weights_of(clipped) - before).double()
    torch.testing.assert_close(small.norm(), torch.tensor(1e-3, dtype=torch.float64), rtol=5e-2, atol=0)


def test_a_gradient_that_is_not_finite_is_told(tmp_path: Path) -> None:
    """It spoils the very last step of an epoch, whose own loss is still finite."""
    session = session_of(experiment_of(tmp_path, clip=1.0, epochs=1, batch_size=192))
    weight = next(session.distiller.student.parameters())
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RunError, match="epoch 1, step 1 of 1: gradient_norm became NaN or infinite"):
        fit(session, lambda metrics, session: None)


def test_half_precision_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, precision="fp16", clip=1.0, epochs=3)

    def keep_first(metrics: dict[str, float], session: Session) -> None:
        session.history.append(metrics)
        if session.epoch == 1:
            save_checkpoint(session, tmp_path)

    whole = session_of(experiment)
    with autocast(whole):
        assert whole.distiller.student(next(iter(whole.steps(0))).views[0])["logits"].dtype == torch.float16
    with autocast(whole, scaled=False):
        assert whole.distiller.student(next(iter(whole.steps(0))).views[0])["logits"].dtype == torch.float32
    whole = session_of(experiment)
    fit(whole, keep_first)
    assert whole.history[-1]["train/loss"] < whole.history[0]["train/loss"]
    assert 0.0 <= whole.history[-1]["train/skipped_steps"] < 1.0
    resumed = session_of(experiment)
    load_checkpoint(resumed, tmp_path)
    assert resumed.scaler is not None and whole.scaler is not None
    fit(resumed, lambda metrics, session: None)
    assert_equal_states(whole, resumed)
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()


def test_steps_that_overflow_are_counted_and_move_nothing(tmp_path: Path) -> None:
    session = session_of(experiment_of(tmp_path, precision="fp16"))
    session.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = weights_of(session)
    steps = session.steps(0)
    loss = descend(session, next(steps))
    assert float(loss.terms["skipped_steps"]) == 1.0 and float(loss.terms["gradient_norm"]) == 0.0
    assert torch.equal(weights_of(session), before)
    assert session.scaler.get_scale() == 2.0**59
    session.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    loss = descend(session, next(steps))
    assert float(loss.terms["skipped_steps"]) == 0.0 and float(loss.terms["gradient_norm"]) > 0.0
    moved = weights_of(session)
    assert moved.isfinite().all() and not torch.equal(moved, before)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_and_weights_may_lie_as_torch_usually_has_them(tmp_path: Path, channels_last: bool) -> None:
    data = {"name": "synthetic", "synthetic_size": 40}
    session = session_of(digits(tmp_path, data=data, train={"batch_size": 8, "channels_last": channels_last}))
    weights = [value for value in session.distiller.parameters() if value.ndim == 4 and min(value.shape) > 1]
    assert weights
    for tensor in (next(iter(session.steps(0))).views[0], *weights):
        assert tensor.is_contiguous(memory_format=torch.channels_last) is channels_last
        assert tensor.is_contiguous() is not channels_last
