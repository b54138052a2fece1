"""Which precision is faster on this machine: a short probe of the student's forward and backward pass."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raydistill.methods.collectives import gather_equal

REPEATS = 3
BUDGET_S = 1.0
"""No further repeat begins after so much time: some processors compute bfloat16 in software."""

LEAST_GAIN = 0.05
"""By less than this bfloat16 is not worth its rounding, and a measurement of this length can err as much."""


@dataclass(frozen=True)
class Probe:
    """What was chosen, and the shortest forward and backward pass in milliseconds."""

    chosen: str
    fp32_ms: float
    bf16_ms: float


def probe_precision(student: nn.Module, images: Tensor) -> Probe:
    """Measure the student in float32 and under autocast to bfloat16; it stays as it is.

    All ranks measure at the same time, as they will train, and take rank 0's figures.

    Args:
        student: in the training's memory format.
        images: [B, C, H, W] of a worker's micro-batch, likewise.
    """
    device = images.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seconds = [_seconds(copy.deepcopy(student), images, half=half) for half in (False, True)]
    figures = gather_equal(torch.tensor([seconds], dtype=torch.float32, device=device))
    single, half = (round(1e3 * value, 3) for value in figures[0].tolist())
    return Probe("bf16" if half < (1.0 - LEAST_GAIN) * single else "fp32", single, half)


def _seconds(student: nn.Module, images: Tensor, *, half: bool) -> float:
    """The shortest of some passes after a first one that is not counted."""
    student.train()
    _pass(student, images, half=half)
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < REPEATS and (not found or time.perf_counter() - began < BUDGET_S):
        started = time.perf_counter()
        _pass(student, images, half=half)
        found.append(time.perf_counter() - started)
    return min(found)


def _pass(student: nn.Module, images: Tensor, *, half: bool) -> None:
    student.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
        logits = student(images, outputs=("logits",))["logits"]
    logits.float().square().mean().backward()
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
