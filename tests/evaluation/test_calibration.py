"""Calibration in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raydistill.evaluation.calibration import expected_calibration_error


def logits_of(confidences: list[float]) -> Tensor:
    """Scores of two classes of which the first has these probabilities."""
    first = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([first.log(), (1 - first).log()], dim=1)


def test_confidence_that_is_the_accuracy_costs_nothing() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert expected_calibration_error(logits_of([0.75] * 4), labels) == pytest.approx(0.0, abs=1e-10)


def test_one_bin_is_the_gap_of_the_means() -> None:
    found = expected_calibration_error(logits_of([0.6, 0.7, 0.8, 0.9]), torch.tensor([0, 1, 1, 1]), bins=1)
    assert found == pytest.approx(100 * (0.75 - 0.25))


def test_bins_are_weighted_by_their_samples() -> None:
    """0.6 and 0.65 share a bin of ten and cancel each other's gaps; 0.95 has its own."""
    found = expected_calibration_error(logits_of([0.61, 0.65, 0.95]), torch.tensor([0, 1, 0]), bins=10)
    assert found == pytest.approx(100 * (2 / 3 * (1.26 / 2 - 1 / 2) + 1 / 3 * (1 - 0.95)))


def test_a_bin_ends_with_its_upper_edge() -> None:
    """Of four bins 0.75 is in the third, with 0.6, and not in the fourth, with 0.9."""
    logits = torch.tensor([[3.0, 1.0], [3.0, 2.0], [9.0, 1.0]], dtype=torch.float64).log()  # 0.75, 0.6, 0.9
    found = expected_calibration_error(logits, torch.tensor([0, 1, 1]), bins=4)
    assert found == pytest.approx(100 * (abs(0.75 + 0.6 - 1) + 0.9) / 3)


def test_sureness_that_is_always_wrong_is_the_worst() -> None:
    assert expected_calibration_error(torch.tensor([[99.0, 0.0]] * 3), torch.tensor([1, 1, 1])) == 100.0
    assert expected_calibration_error(torch.tensor([[99.0, 0.0]] * 3), torch.tensor([0, 0, 0])) == 0.0


def test_senseless_input_is_refused() -> None:
    with pytest.raises(ValueError, match="bins"):
        expected_calibration_error(torch.zeros(2, 2), torch.tensor([0, 1]), bins=0)
    with pytest.raises(ValueError, match="diverged"):
        expected_calibration_error(torch.full((2, 2), float("nan")), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="expected"):
        expected_calibration_error(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
