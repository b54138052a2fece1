"""Nearest-neighbour classification: how well features separate the classes without training anything on them.

Weighted votes as in DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294, section 4.1), one neighbour as
in CompRes (Koohpayegani et al. 2020, https://arxiv.org/abs/2010.14713).
"""

from __future__ import annotations

from collections.abc import Iterator

from raydistill.evaluation.classification import accuracy
from raydistill.lazy import Tensor, torch

_BLOCK_ELEMENTS = 1 << 24
"""Similarities held at a time: 64 MiB in single precision, whatever the number of images."""


def weighted_knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    k: int,
    temperature: float = 0.07,
    num_classes: int,
) -> Tensor:
    """Return the votes [N, num_classes] of the ``k`` nearest training samples of each test sample.

    A neighbour of cosine similarity s votes exp(s / temperature) for its class. In float32 a vote overflows
    below a temperature of about 0.0113; ``knn_accuracy`` is safe for any temperature.

    Args:
        train_features: [M, D]; L2-normalised here.
        train_labels: [M], integers below ``num_classes``.
        test_features: [N, D]; L2-normalised here.
        k: number of neighbours; more than M means all.
        temperature: small means that only the nearest count.
        num_classes: columns of the result.

    Raises:
        ValueError: where sizes, labels or numbers do not make sense.
    """
    _check_samples(train_features, train_labels, test_features)
    _check_vote(train_labels, k, temperature, num_classes)
    blocks = [
        _vote(similarity / temperature, labels, num_classes)
        for similarity, labels in _neighbours(train_features, train_labels, test_features, k)
    ]
    return torch.cat(blocks)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int,
) -> float:
    """Return the percentage of test samples that the vote of ``weighted_knn`` classifies rightly."""
    _check_samples(train_features, train_labels, test_features)
    _check_vote(train_labels, k, temperature, num_classes)
    # Dividing a sample's votes by its largest one changes no ranking and keeps the exponential in range.
    blocks = [
        _vote((similarity - similarity[:, :1]) / temperature, labels, num_classes).argmax(dim=1)
        for similarity, labels in _neighbours(train_features, train_labels, test_features, k)
    ]
    return accuracy(torch.cat(blocks), test_labels)


def nearest_neighbour_accuracy(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float:
    """Return the percentage of test samples whose nearest training sample by cosine has their label."""
    _check_samples(train_features, train_labels, test_features)
    blocks = [labels[:, 0] for _, labels in _neighbours(train_features, train_labels, test_features, 1)]
    return accuracy(torch.cat(blocks), test_labels)


def _neighbours(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, k: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield cosines [n, k], best first, and labels [n, k] for one block of test samples after the other."""
    bank = _normalised(_at_least_float32(train_features))
    queries = _normalised(_at_least_float32(test_features).to(bank))
    labels = train_labels.to(bank.device, torch.int64)
    k = min(k, len(bank))
    for block in torch.split(queries, max(1, _BLOCK_ELEMENTS // len(bank))):
        similarity, index = (block @ bank.T).topk(k, dim=1)
        yield similarity, labels[index]


def _vote(exponents: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    votes = exponents.new_zeros(len(exponents), num_classes)
    return votes.scatter_add_(1, labels, exponents.exp())


def _normalised(features: Tensor) -> Tensor:
    """L2-normalise rows; rows that were normalised in float32 already stay as they are.

    DINO's code takes normalised features as given. A second division in float64 would undo their rounding,
    which the exponential turns into a relative difference of 4e-7 between equal evaluations.
    """
    norms = features.norm(dim=1, keepdim=True)
    rounding = 2.0**-22
    return torch.where((norms - 1).abs() <= rounding, features, features / norms.clamp(min=1e-12))


def _at_least_float32(features: Tensor) -> Tensor:
    # Half precision cannot tell near neighbours apart, and exp(1 / 0.07) exceeds its range.
    return features if features.dtype == torch.float64 else features.float()


def _check_samples(train_features: Tensor, train_labels: Tensor, test_features: Tensor) -> None:
    bank, queries = list(train_features.shape), list(test_features.shape)
    if len(bank) != 2 or len(queries) != 2 or bank[1] != queries[1]:
        raise ValueError(f"features [M, D] and [N, D] expected, got {bank} and {queries}")
    if list(train_labels.shape) != bank[:1] or not bank[0] or not queries[0]:
        shapes = f"{bank}, {list(train_labels.shape)} and {queries}"
        raise ValueError(f"train_labels [M] and at least one sample on both sides expected, got {shapes}")
    if not (train_features.isfinite().all() and test_features.isfinite().all()):
        raise ValueError("features must be finite: the network that made them has diverged")


def _check_vote(train_labels: Tensor, k: int, temperature: float, num_classes: int) -> None:
    if k < 1 or not temperature > 0:
        given = f"k={k}, temperature={temperature}"
        raise ValueError(f"k must be at least 1 and temperature above 0, got {given}")
    low, high = int(train_labels.min()), int(train_labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"train_labels must lie in [0, {num_classes}), got [{low}, {high}]")
