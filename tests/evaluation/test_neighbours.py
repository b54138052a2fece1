"""Nearest neighbours against DINO's classifier, and properties of the vote."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raydistill.evaluation import neighbours
from raydistill.evaluation.cost import peak_on_cpu
from raydistill.evaluation.neighbours import knn_accuracy, nearest, nearest_neighbour_accuracy, weighted_knn
from tests.golden import golden

SIZES = [1, 5, 10, 20, 200]


@pytest.fixture
def knn() -> dict[str, Any]:
    return {name.removeprefix("knn/"): value for name, value in golden("knn_cluster.npz").items()}


def _features(knn: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.tensor(knn["train_features"], dtype=dtype),
        torch.tensor(knn["train_labels"]),
        torch.tensor(knn["test_features"], dtype=dtype),
        torch.tensor(knn["test_labels"]),
    )


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("block", [1 << 24, 300 * 7])
def test_votes_equal_dino(knn: dict[str, Any], k: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_ELEMENTS", block)
    train, labels, test, _ = _features(knn, torch.float64)
    votes = weighted_knn(train, labels, test, k=k, temperature=0.07, num_classes=10)
    torch.testing.assert_close(votes, torch.tensor(knn[f"k{k}/formula_f64/votes"]), rtol=1e-9, atol=0)
    single = weighted_knn(train.float(), labels, test.float(), k=k, temperature=0.07, num_classes=10)
    torch.testing.assert_close(single.double(), votes, rtol=1e-4, atol=0)


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accuracy_equals_dino(knn: dict[str, Any], k: int, dtype: torch.dtype) -> None:
    expected = knn[f"k{k}/f64/top1_top5"][0]
    assert knn_accuracy(*_features(knn, dtype), k=k, num_classes=10) == pytest.approx(expected)


def test_one_neighbour_equals_compres(knn: dict[str, Any]) -> None:
    expected = float(knn["nn1/formula_f64/acc_percent"])
    assert nearest_neighbour_accuracy(*_features(knn, torch.float64)) == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 30), st.floats(0.1, 10))
def test_votes_ignore_scale_and_order(seed: int, train_size: int, k: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(train_size, 4, generator=generator, dtype=torch.float64)
    test = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (train_size,), generator=generator)
    votes = weighted_knn(train, labels, test, k=k, num_classes=3)
    order = torch.randperm(train_size, generator=generator)
    again = weighted_knn(scale * train[order], labels[order], test / scale, k=k, num_classes=3)
    torch.testing.assert_close(votes, again)
    cosines = torch.nn.functional.cosine_similarity(test[:, None], train[None], dim=2)
    nearest = cosines.topk(min(k, train_size)).values
    torch.testing.assert_close(votes.sum(dim=1), (nearest / 0.07).exp().sum(dim=1))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 20), st.integers(1, 25), st.integers(1, 50), st.booleans())
def test_nearest_are_those_of_a_sort(seed: int, images: int, k: int, block: int, without_own: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(images, 3, generator=generator, dtype=torch.float64)
    order = torch.randperm(images, generator=generator)[:7]
    own = order if without_own else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_BLOCK_ELEMENTS", block)
        blocks = list(nearest(bank, bank[order], k, own=own))
    similarity, index = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    cosines = torch.nn.functional.cosine_similarity(bank[order][:, None], bank[None], dim=2)
    if without_own:
        cosines[torch.arange(len(order)), order] = -2.0
    expected = cosines.sort(dim=1, descending=True)
    width = min(k, images - without_own)
    assert index.tolist() == expected.indices[:, :width].tolist()
    torch.testing.assert_close(similarity, expected.values[:, :width])


def test_one_block_of_similarities_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 rows of 400 numbers, 32000 bytes; two blocks would be 64000. Features are a few copies of 3200 bytes."""
    monkeypatch.setattr(neighbours, "_BLOCK_ELEMENTS", 20 * 400)
    bank = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    assert 32_000 <= peak_on_cpu(lambda: [None for _ in nearest(bank, bank, 1)]) < 50_000


def test_nobody_is_near_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        nearest(torch.ones(1, 2), torch.ones(1, 2), 1, own=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"own \[1\]"):
        nearest(torch.ones(2, 2), torch.ones(1, 2), 1, own=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="k=0"):
        nearest(torch.ones(2, 2), torch.ones(1, 2), 0)


def test_tiny_temperature_keeps_the_nearest(knn: dict[str, Any]) -> None:
    features = _features(knn, torch.float32)
    sharp = knn_accuracy(*features, k=20, temperature=1e-6, num_classes=10)
    assert sharp == nearest_neighbour_accuracy(*features)


def test_half_precision_is_computed_in_single(knn: dict[str, Any]) -> None:
    train, labels, test, _ = _features(knn, torch.float16)
    votes = weighted_knn(train, labels, test, k=20, num_classes=10)
    assert votes.dtype == torch.float32
    assert votes.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"num_classes": 2}, r"must lie in \[0, 2\), got \[0, 9\]"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, "train_labels"),
        ({"test_features": torch.zeros(2, 3)}, "features"),
        ({"test_features": torch.full((2, 16), float("inf"))}, "finite"),
    ],
)
def test_senseless_input_is_refused(knn: dict[str, Any], change: dict[str, Any], message: str) -> None:
    train, labels, test, _ = _features(knn, torch.float32)
    good = {"train_features": train, "train_labels": labels, "test_features": test, "k": 5, "num_classes": 10}
    with pytest.raises(ValueError, match=message):
        weighted_knn(**(good | change))
