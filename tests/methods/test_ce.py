"""Cross-entropy."""

from __future__ import annotations

import torch

from raydistill.methods.ce import CrossEntropy
from tests.methods.support import close, single_step


def test_value_of_uniform_logits() -> None:
    step = single_step({0: {"logits": torch.zeros(3, 7)}}, {}, columns={"label": torch.arange(3)})
    close(CrossEntropy().loss(step, {}).total, torch.tensor(7.0).log(), rtol=1e-6)


def test_smoothing_moves_towards_the_mean_over_classes() -> None:
    logits, labels = torch.randn(4, 7, dtype=torch.float64), torch.arange(4)
    step = single_step({0: {"logits": logits}}, {}, columns={"label": labels})
    log_probabilities = logits.log_softmax(1)
    expected = -(0.8 * log_probabilities[range(4), labels] + 0.2 * log_probabilities.mean(1)).mean()
    close(CrossEntropy(label_smoothing=0.2).loss(step, {}).total, expected)
