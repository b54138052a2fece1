"""The running average of the student's weights, which is validated and exported in its place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from raydistill.train_config import EmaConfig


class AveragedStudent(nn.Module):
    """An exponential moving average of a network, in evaluation mode and without gradients.

    After step t, counted from 0: average <- d_t average + (1 - d_t) student, d_t = min(decay, (1 + t) / (10 + t)), or
    d_t = decay without warm-up. It starts as the student is after the first step, d_0 = 0, so that neither initial
    weights nor what a stage before distillation changed stays in it. The statistics of batch-norms are averaged as the
    weights are, and counters copied.

    Weights are the same on all workers, since the student's are. So are statistics with ``scale.sync_batch_norm``;
    without it a worker has those of its own part of the batches, and rank 0's are exported, as the student's would be.
    """

    def __init__(self, student: nn.Module, config: EmaConfig) -> None:
        """Copy the student, whose mode and gradients stay as they are."""
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False).eval()
        self._config = config

    def decay(self, step: int) -> float:
        """d_t of a step, counted from 0."""
        if not step:
            return 0.0
        return min(self._config.decay, (1 + step) / (10 + step)) if self._config.warmup else self._config.decay

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int) -> None:
        """Move towards the student as it is after a step."""
        pairs = list(zip(_tensors(self.network), _tensors(student), strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in averaged], [its for _, its in averaged], 1.0 - self.decay(step))
        for mine, its in pairs:
            if not mine.is_floating_point():
                mine.copy_(its)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
