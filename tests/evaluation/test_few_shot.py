"""Few labels: what is drawn, and what the nearest of them says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydistill.evaluation.few_shot import DRAWS, draw_labelled, few_shot, linear_with_few_labels
from raydistill.evaluation.neighbours import nearest_neighbour_accuracy


def blobs(images: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Features of four classes around four axes, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 4
    return 5 * torch.eye(4)[labels] + spread * torch.randn(images, 4, generator=generator), labels


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 20), st.floats(0, 1), st.integers(1, 200))
def test_a_share_of_each_class_and_at_least_one(seed: int, draw: int, share: float, images: int) -> None:
    labels = torch.randint(4, (images,), generator=torch.Generator().manual_seed(seed)) * 3
    rows = draw_labelled(labels, share, seed=seed, draw=draw)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.equal(rows, draw_labelled(labels, share, seed=seed, draw=draw))
    for label in labels.unique():
        size = int((labels == label).sum())
        assert int((labels[rows] == label).sum()) == max(1, round(share * size))


def test_shares_of_one_draw_lie_within_each_other_and_draws_differ() -> None:
    labels = torch.arange(1000) % 5
    one, few, many = (set(draw_labelled(labels, share, seed=3, draw=7).tolist()) for share in (0, 0.01, 0.1))
    assert one < few < many
    assert (len(one), len(few), len(many)) == (5, 10, 100)
    draws = {tuple(draw_labelled(labels, 0, seed=3, draw=draw).tolist()) for draw in range(20)}
    assert len(draws) == 20
    assert draw_labelled(labels, 0.1, seed=4, draw=7).tolist() != sorted(many)


def test_all_images_of_a_class_are_drawn_alike() -> None:
    """One of four, 1000 times: each comes 250 times, give or take five standard deviations."""
    labels = torch.zeros(4, dtype=torch.int64)
    drawn = torch.cat([draw_labelled(labels, 0, seed=0, draw=draw) for draw in range(1000)]).bincount(minlength=4)
    assert (drawn - 250).abs().max() < 5 * (1000 * 0.25 * 0.75) ** 0.5


def test_what_few_shot_tells_is_nearest_neighbour_on_the_draws() -> None:
    train, test = blobs(400, 4.0, 0), blobs(200, 4.0, 1)
    found = few_shot(*train, *test, seed=5)

    def accuracy(share: float, draw: int) -> float:
        rows = draw_labelled(train[1], share, seed=5, draw=draw)
        return nearest_neighbour_accuracy(train[0][rows], train[1][rows], *test)

    shots = torch.tensor([accuracy(0, draw) for draw in range(DRAWS)], dtype=torch.float64)
    assert found.one_shot == pytest.approx(float(shots.mean()))
    assert found.one_shot_std == pytest.approx(float(shots.std()))
    assert found.one_shot_std > 0
    assert (found.one_percent, found.ten_percent) == (accuracy(0.01, 0), accuracy(0.1, 0))


def test_classes_far_apart_need_one_label() -> None:
    found = few_shot(*blobs(100, 0.1, 0), *blobs(40, 0.1, 1), seed=0)
    assert (found.one_shot, found.one_shot_std, found.one_percent, found.ten_percent) == (100, 0, 100, 100)


def test_a_linear_layer_of_few_labels() -> None:
    found = linear_with_few_labels(*blobs(400, 0.3, 0), *blobs(40, 0.3, 1), num_classes=4, seed=0)
    assert found == {"top1@1%": 100.0, "top5@1%": 100.0, "top1@10%": 100.0, "top5@10%": 100.0}


def test_senseless_input_is_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        draw_labelled(torch.zeros(3), 1.1, seed=0, draw=0)
    with pytest.raises(ValueError, match="labels"):
        draw_labelled(torch.zeros(0), 0.1, seed=0, draw=0)
