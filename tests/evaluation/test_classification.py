"""Accuracy of class scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from raydistill.evaluation.classification import accuracy, confusion_matrix, per_class_accuracy, top_k_accuracy


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(3, 8), st.data())
def test_agrees_with_sklearn(seed: int, samples: int, classes: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, classes - 1))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    expected = 100 * metrics.top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=list(range(classes)))
    assert top_k_accuracy(logits, labels, k) == pytest.approx(expected)


def test_k_beyond_the_classes_names_all() -> None:
    assert top_k_accuracy(torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0]), 5) == 100.0


def test_a_diverged_network_is_never_right() -> None:
    logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    assert top_k_accuracy(logits, torch.tensor([0, 0]), 1) == 50.0


def test_equal_scores_are_not_all_right() -> None:
    assert top_k_accuracy(torch.zeros(10, 10), torch.arange(10), 1) == 10.0


@pytest.mark.parametrize(("logits", "labels", "k"), [((0, 3), 0, 1), ((2, 3), 1, 1), ((2, 3), 2, 0)])
def test_senseless_input_is_refused(logits: tuple[int, int], labels: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"expected|at least"):
        top_k_accuracy(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64), k)
    with pytest.raises(ValueError, match="expected"):
        accuracy(torch.zeros(0), torch.zeros(0))


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6))
def test_confusion_is_that_of_sklearn_and_its_trace_top_1(seed: int, samples: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(3, (samples, classes), generator=generator).float()  # with many equal scores
    labels = torch.randint(classes, (samples,), generator=generator)
    found = confusion_matrix(logits, labels)
    expected = metrics.confusion_matrix(labels, logits.topk(1).indices[:, 0], labels=range(classes))
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    assert 100 * int(found.trace()) / samples == pytest.approx(top_k_accuracy(logits, labels, 1))


def test_each_class_has_its_own_accuracy_and_one_without_images_none() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    found = per_class_accuracy(confusion)
    assert found[[0, 2]].tolist() == [75.0, 50.0]
    assert found[1].isnan()
    with pytest.raises(ValueError, match=r"\[C, C\]"):
        per_class_accuracy(confusion[:2])


def test_what_no_cell_of_a_confusion_is_true_of_is_refused() -> None:
    logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="diverged"):
        confusion_matrix(logits, torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got \[0, 2\]"):
        confusion_matrix(torch.zeros(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="expected"):
        confusion_matrix(torch.zeros(2, 2), torch.tensor([0]))
