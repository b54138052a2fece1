"""Clusters as classes, against CompRes' alignment."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.evaluation.clusters import cluster_accuracy, cluster_alignment, cluster_to_class
from tests.golden import golden


@pytest.mark.parametrize(("case", "classes"), [("small", 5), ("ten", 10), ("imbalanced", 6)])
def test_equals_compres(case: str, classes: int) -> None:
    stored: dict[str, Any] = golden("knn_cluster.npz")
    train = [torch.tensor(stored[f"cluster/{case}/train_{what}"]) for what in ("clusters", "labels")]
    val = [torch.tensor(stored[f"cluster/{case}/val_{what}"]) for what in ("clusters", "labels")]
    mapping = cluster_to_class(*train, num_classes=classes)
    assert mapping.dtype == torch.int64
    assert mapping.tolist() == stored[f"cluster/{case}/cluster_to_class"].tolist()
    assert cluster_accuracy(*train, mapping) == pytest.approx(100 * stored[f"cluster/{case}/acc_train"])
    assert cluster_accuracy(*val, mapping) == pytest.approx(100 * stored[f"cluster/{case}/acc_val"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_no_other_matching_is_purer(pairs: list[tuple[int, int]]) -> None:
    clusters, labels = (torch.tensor(column) for column in zip(*pairs, strict=True))
    mapping = cluster_to_class(clusters, labels, num_classes=4).tolist()
    assert sorted(mapping) == [0, 1, 2, 3]

    def purity(classes: tuple[int, ...]) -> float:
        sizes = {cluster: sum(c == cluster for c, _ in pairs) for cluster, _ in pairs}
        return sum(1 / sizes[cluster] for cluster, label in pairs if classes[cluster] == label)

    best = max(purity(order) for order in permutations(range(4)))
    assert purity(tuple(mapping)) == pytest.approx(best)


def test_empty_clusters_take_what_is_left() -> None:
    mapping = cluster_to_class(torch.tensor([0, 0, 3]), torch.tensor([2, 2, 0]), num_classes=4)
    assert mapping[0] == 2
    assert mapping[3] == 0
    assert sorted(mapping.tolist()) == [0, 1, 2, 3]


def test_more_clusters_than_classes() -> None:
    mapping = cluster_to_class(torch.tensor([0, 1, 2, 2, 5]), torch.tensor([0, 1, 1, 1, 0]), num_classes=2)
    assert mapping.shape == (6,)
    assert mapping[[0, 1, 2, 5]].tolist() == [0, 1, 1, 0]
    assert set(mapping.tolist()) == {0, 1}


def test_an_unknown_cluster_is_wrong() -> None:
    mapping = torch.tensor([1, 0])
    assert cluster_accuracy(torch.tensor([0, 7, -1, 1]), torch.tensor([1, 0, 0, 0]), mapping) == 50.0


def test_alignment_of_clusters_that_are_the_classes_is_whole_and_of_length_knows_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    lengths = 10 ** torch.rand(60, 1, generator=generator)
    features = lengths * (torch.eye(3)[labels] + 0.05 * torch.randn(60, 3, generator=generator))
    parts = features[:40], labels[:40], features[40:], labels[40:]
    assert cluster_alignment(*parts, num_classes=3, seed=0) == 100.0
    wrong = torch.where(torch.arange(20) < 5, (labels[40:] + 1) % 3, labels[40:])
    assert cluster_alignment(*parts[:3], wrong, num_classes=3, seed=0) == 75.0


def test_alignment_with_fewer_samples_than_classes() -> None:
    features, labels = torch.eye(4)[:2], torch.tensor([3, 1])
    assert cluster_alignment(features, labels, features, labels, num_classes=4, seed=0) == 100.0


@pytest.mark.parametrize(("clusters", "labels"), [([], []), ([0], [0, 1]), ([-1], [0]), ([0], [2])])
def test_senseless_input_is_refused(clusters: list[int], labels: list[int]) -> None:
    with pytest.raises(ValueError, match="clusters"):
        cluster_to_class(torch.tensor(clusters), torch.tensor(labels), num_classes=2)
