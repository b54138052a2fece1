"""Effective rank in closed form, and what is told of a run's records."""

from __future__ import annotations

import math
import re

import pytest
import torch

from raydistill.evaluation.collapse import collapse_warnings, effective_rank, rank_metrics


@pytest.mark.parametrize("width", [1, 3, 8])
def test_rank_of_directions_used_evenly(width: int) -> None:
    rows = torch.eye(8)[:, :width].repeat(5, 1)
    assert effective_rank(rows) == pytest.approx(width)


def test_rank_of_unequal_directions() -> None:
    """Singular values 3 and 1: exp of the entropy of 3/4 and 1/4."""
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy))


def test_rank_does_not_depend_on_scale_or_basis() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 6, generator=generator, dtype=torch.float64) * torch.arange(1, 7)
    turned, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    assert effective_rank(1e-3 * rows @ turned) == pytest.approx(effective_rank(rows))


def test_rank_of_collapsed_embeddings() -> None:
    assert effective_rank(torch.full((40, 16), 0.3)) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(40, 16)) == 0.0
    assert effective_rank(torch.tensor([[1.0, math.nan]])) == 0.0


def test_share_is_of_what_the_sample_allows() -> None:
    metrics = rank_metrics(torch.eye(4, 100))
    assert metrics == pytest.approx({"val/rank": 4.0, "val/rank_share": 1.0})


def record(epoch: int, **values: float) -> dict[str, float]:
    healthy = {"val/rank": 30.0, "val/rank_share": 0.5, "train/mine/entropy": 0.6}
    return {"epoch": epoch, **healthy} | {name.replace("__", "/"): value for name, value in values.items()}


def test_a_healthy_run_is_told_nothing() -> None:
    assert collapse_warnings([record(epoch) for epoch in range(1, 4)]) == []
    assert collapse_warnings([{"epoch": 1, "train/loss": 0.0, "val/top1": 10.0}]) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"val__rank": 1.2}, r"epoch 2: the embeddings collapse, .* \(val/rank\) is 1.20"),
        ({"val__rank": 9.0, "val__rank_share": 0.01}, "effective rank"),
        ({"train__mine__entropy": 0.001}, r"epoch 2: mine collapses, .* \(train/mine/entropy is 0.001\)"),
    ],
)
def test_a_sign_is_told_when_it_appears(values: dict[str, float], expected: str) -> None:
    history = [record(1), record(2, **values), record(3, **values), record(4), record(5, **values)]
    (only,) = collapse_warnings(history[:2])
    assert collapse_warnings(history[:4]) == [only]
    assert len(collapse_warnings(history)) == 2
    assert re.search(expected, only)
