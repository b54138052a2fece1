"""Whoever runs out of memory is told what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydistill.errors import RunError
from raydistill.training.exhaustion import memory_advice
from raydistill.training.trainer import train
from tests.conftest import digits, teaching


def test_the_host_and_the_device_are_told_apart() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    advice = memory_advice(caught.value)
    assert advice and "host's memory" in advice and "cache.read: stream" in advice
    assert "4000000000000000 bytes" in advice
    device = memory_advice(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore"))
    assert device and "device's memory" in device and "train.accumulate" in device and "more" not in device
    assert memory_advice(MemoryError()) is not None
    assert memory_advice(ValueError("shapes do not fit")) is None


def test_of_a_worker_that_ray_killed_the_text_says_so() -> None:
    text = "Rank 0:\nray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.\nhint"
    advice = memory_advice(RuntimeError(text))
    assert advice and "running low on memory" in advice and "hint" not in advice


@pytest.mark.usefixtures("ray_session")
def test_a_memory_that_does_not_fit_ends_the_run_with_advice(tmp_path: Path, teacher_weights: Path) -> None:
    teacher = teaching(teacher_weights) | {"source": "live"}
    with pytest.raises(RunError, match=r"the host's memory does not suffice .* less that a method keeps"):
        train(digits(tmp_path, teacher=teacher, methods={"seed": {"queue": 10**12}}))
