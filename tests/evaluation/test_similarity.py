"""Alike features are alike, others are not, and chance is what it should be."""

from __future__ import annotations

import pytest
import torch

from raydistill.evaluation.similarity import linear_cka, neighbour_overlap


def features(images: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, width, generator=torch.Generator().manual_seed(seed))


def test_rotation_and_scale_change_nothing() -> None:
    left = features(300, 8)
    right = 3.0 * left @ torch.linalg.qr(features(8, 8, seed=1)).Q
    assert linear_cka(left, right) == pytest.approx(1.0, abs=1e-6)
    assert linear_cka(left, right + 5.0) == pytest.approx(1.0, abs=1e-6)
    assert neighbour_overlap(left, right, k=5) > 0.999


def test_unrelated_features_share_what_chance_gives() -> None:
    left, right = features(600, 16), features(600, 4, seed=1)
    assert neighbour_overlap(left, right, k=60) == pytest.approx(60 / 599, abs=0.01)
    assert linear_cka(left, right) < 0.05


def test_cka_is_that_of_kernels() -> None:
    left, right = features(50, 6).double(), features(50, 3, seed=1).double()
    right[:, 0] += left[:, 0]
    centre = torch.eye(50, dtype=torch.float64) - 1 / 50
    one, other = (centre @ side @ side.T @ centre for side in (left, right))
    assert linear_cka(left, right) == pytest.approx(float((one * other).sum() / (one.norm() * other.norm())))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = features(101, 6), features(101, 3, seed=1) + features(101, 6)[:, :3]
    whole = linear_cka(left, right), neighbour_overlap(left, right, k=7)
    monkeypatch.setattr("raydistill.evaluation.similarity._BLOCK_ROWS", 10)
    monkeypatch.setattr("raydistill.evaluation.neighbours._BLOCK_ELEMENTS", 1000)
    assert (linear_cka(left, right), neighbour_overlap(left, right, k=7)) == pytest.approx(whole)


def test_overlap_counts_common_neighbours_and_not_the_image_itself() -> None:
    angles = torch.tensor([0.0, 1.0, 3.0, 7.0]) / 10
    moved = torch.tensor([0.0, 1.0, 3.0, -0.5]) / 10
    left, right = (torch.stack([side.cos(), side.sin()], dim=1) for side in (angles, moved))
    # nearest: 1, 0, 1, 2 on the left; 3, 0, 1, 0 on the right
    assert neighbour_overlap(left, right, k=1) == 0.5
    assert neighbour_overlap(left, right, k=1, queries=2) == 0.5  # images 0 and 2
    assert neighbour_overlap(left, right, k=3) == 1.0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="same two or more images"):
        linear_cka(features(5, 2), features(6, 2))
    with pytest.raises(ValueError, match="k must be from 1 to 4"):
        neighbour_overlap(features(5, 2), features(5, 2), k=5)
    with pytest.raises(ValueError, match="same for all images"):
        linear_cka(torch.ones(5, 2), features(5, 2))
