"""Retrieval by hand and by brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydistill.evaluation import neighbours
from raydistill.evaluation.retrieval import recall_at


def at(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_by_hand_and_never_itself() -> None:
    """Order of the others: 1 2 3, 0 2 3, 1 0 3, 2 1 0. Class 0 is {0, 2}, class 1 {1, 3}."""
    features, labels = at(0, 10, 25, 60), torch.tensor([0, 1, 0, 1])
    assert recall_at(features, labels, (1, 2, 3)) == {1: 0.0, 2: 75.0, 3: 100.0}
    assert recall_at(features, labels, (8,)) == {8: 100.0}


def test_an_image_that_nothing_can_find_is_left_out() -> None:
    features, labels = at(0, 10, 25, 60), torch.tensor([0, 0, 1, 0])
    assert recall_at(features, labels, (1,)) == {1: pytest.approx(200 / 3)}
    with pytest.raises(ValueError, match="none can be found"):
        recall_at(features, torch.arange(4))


def test_a_gallery_is_searched_instead() -> None:
    gallery = at(1, 49), torch.tensor([7, 9])
    assert recall_at(at(0, 50, 50), torch.tensor([7, 9, 7]), (1, 2), gallery=gallery) == {
        1: pytest.approx(200 / 3),
        2: 100.0,
    }
    assert recall_at(at(0, 50), torch.tensor([7, 8]), (1,), gallery=gallery) == {1: 100.0}


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 25), st.integers(1, 60))
def test_agrees_with_brute_force_in_any_blocks(seed: int, images: int, block: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (images,), generator=generator)
    labels[:2] = 0
    cosines = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=2)
    hits, asked = 0, 0
    for image in range(images):
        others = [other for other in cosines[image].argsort(descending=True).tolist() if other != image]
        if any(labels[other] == labels[image] for other in others):
            asked += 1
            hits += any(labels[other] == labels[image] for other in others[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_BLOCK_ELEMENTS", block)
        assert recall_at(features, labels, (2,))[2] == pytest.approx(100 * hits / asked)


def test_senseless_input_is_refused() -> None:
    with pytest.raises(ValueError, match="ks must"):
        recall_at(at(0, 1), torch.tensor([0, 0]), (0,))
    with pytest.raises(ValueError, match="expected"):
        recall_at(at(0, 1), torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="finite"):
        recall_at(at(0, float("nan")), torch.tensor([0, 0]))
