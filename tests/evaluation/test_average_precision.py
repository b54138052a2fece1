"""Average precision by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor

from raydistill.evaluation.average_precision import mean_average_precision


def column(targets: list[int]) -> tuple[Tensor, Tensor]:
    """Samples ranked from first to last, and which of them show the class."""
    return -torch.arange(len(targets)).float().unsqueeze(1), torch.tensor(targets).bool().unsqueeze(1)


def test_by_hand() -> None:
    """Hits at ranks 1, 3 and 6 of 3: precisions 1, 2/3, 1/2 at recalls 1/3, 2/3, 1."""
    scores, targets = column([1, 0, 1, 0, 0, 1])
    assert mean_average_precision(scores, targets, variant="area") == pytest.approx(100 * (1 + 2 / 3 + 1 / 2) / 3)
    # recalls 0 to 0.3 take 1, 0.4 to 0.6 take 2/3, 0.7 to 1 take 1/2
    expected = (4 * 1 + 3 * 2 / 3 + 4 / 2) / 11
    assert mean_average_precision(scores, targets) == pytest.approx(100 * expected)


def test_a_recall_that_is_met_exactly_counts() -> None:
    """Three of ten relevant samples come first, so recall 0.3 has precision 1, though 3 / 10 is below 3 * 0.1."""
    scores, targets = column([1, 1, 1] + [0] * 7 + [1] * 7)
    expected = (4 * 1 + 7 * 10 / 17) / 11
    assert mean_average_precision(scores, targets) == pytest.approx(100 * expected)


def test_the_highest_precision_further_on_counts() -> None:
    scores, targets = column([0, 1, 1, 1])
    assert mean_average_precision(scores, targets) == pytest.approx(75.0)
    assert mean_average_precision(scores, targets, variant="area") == pytest.approx(100 * (1 / 2 + 2 / 3 + 3 / 4) / 3)


def test_a_ranking_that_tells_nothing_has_the_share_of_the_class() -> None:
    targets = torch.tensor([[True], [False], [False], [False]])
    for variant in ("11_point", "area"):
        assert mean_average_precision(torch.zeros(4, 1), targets, variant=variant) == pytest.approx(25.0)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 5))
def test_area_agrees_with_sklearn_and_both_are_within_bounds(seed: int, samples: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(9, (samples, classes), generator=generator).float()
    targets = torch.rand(samples, classes, generator=generator) < 0.4
    targets[0] = True
    expected = 100 * average_precision_score(targets.numpy(), scores.numpy(), average="macro")
    assert mean_average_precision(scores, targets, variant="area") == pytest.approx(expected)
    assert 0 < mean_average_precision(scores, targets) <= 100 + 1e-9
    assert mean_average_precision(targets.float(), targets) == pytest.approx(100.0)


def test_a_class_that_no_sample_shows_is_left_out() -> None:
    scores, targets = column([1, 0, 1, 0, 0, 1])
    two = torch.cat([scores, scores], dim=1), torch.cat([targets, torch.zeros_like(targets)], dim=1)
    assert mean_average_precision(*two) == pytest.approx(mean_average_precision(scores, targets))


def test_samples_that_are_ignored_have_no_part_in_a_ranking() -> None:
    scores, targets = column([0, 1, 0, 1, 1])
    ignored = torch.tensor([1, 0, 0, 0, 1]).bool().unsqueeze(1)
    for variant in ("11_point", "area"):
        rest = mean_average_precision(scores[1:4], targets[1:4], variant=variant)
        assert mean_average_precision(scores, targets, ignored=ignored, variant=variant) == pytest.approx(rest)
    other = torch.cat([scores, scores], dim=1), torch.cat([targets, targets], dim=1)
    of_one = torch.cat([ignored, torch.ones_like(ignored)], dim=1)
    assert mean_average_precision(*other, ignored=of_one) == pytest.approx(
        mean_average_precision(scores, targets, ignored=ignored)
    )


def test_senseless_input_is_refused() -> None:
    scores, targets = column([1, 0])
    with pytest.raises(ValueError, match=r"torch.bool \[N, C\]"):
        mean_average_precision(scores, targets.int())
    with pytest.raises(ValueError, match="nothing to rank"):
        mean_average_precision(scores, torch.zeros_like(targets))
    with pytest.raises(ValueError, match="diverged"):
        mean_average_precision(scores * np.nan, targets)
    with pytest.raises(ValueError, match=r"ignored torch.bool \[2, 1\] expected, got torch.bool \[1, 1\]"):
        mean_average_precision(scores, targets, ignored=targets[:1])
    with pytest.raises(ValueError, match="nothing to rank"):
        mean_average_precision(scores, targets, ignored=targets)
