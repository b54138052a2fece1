"""Correlations of class scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from raydistill.evaluation.correlation import correlation, correlation_discrepancy


def logits(seed: int = 0) -> Tensor:
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(seed))


def test_agrees_with_numpy() -> None:
    found = correlation(logits())
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, np.corrcoef(logits().double().numpy(), rowvar=False), rtol=1e-10, atol=1e-12)


def test_scale_and_shift_of_a_class_change_nothing() -> None:
    other = logits() * torch.arange(1, 7) + torch.arange(6)
    value, difference = correlation_discrepancy(logits(), other)
    assert value == pytest.approx(0.0, abs=1e-6)
    assert difference.shape == (6, 6)


def test_a_class_whose_score_never_changes_goes_with_no_other() -> None:
    scores = logits()
    scores[:, 2] = 0.1
    found = correlation(scores)
    assert found[2].tolist() == [0, 0, 1, 0, 0, 0]
    assert found.isfinite().all()


def test_opposite_signs_are_two_apart() -> None:
    """Three classes that go together against one that turns over: four of nine entries differ by two."""
    rising = torch.arange(5.0)
    teacher = torch.stack([rising, rising, rising], dim=1)
    student = torch.stack([rising, rising, -rising], dim=1)
    value, difference = correlation_discrepancy(student, teacher)
    assert value == pytest.approx(8 / 9)
    torch.testing.assert_close(difference[2], torch.tensor([-2.0, -2.0, 0.0], dtype=torch.float64))


def test_senseless_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two images"):
        correlation(logits()[:1])
    with pytest.raises(ValueError, match="diverged"):
        correlation(torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match="same images"):
        correlation_discrepancy(logits(), logits()[:, :5])
