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


def nearest(bank: Tensor, queries: Tensor, k: int, *, own: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Find the ``k`` rows of a bank nearest to each query by cosine, exactly, by products of blocks.

    Args:
        bank: [M, D]; L2-normalised here.
        queries: [N, D]; L2-normalised here, on the bank's device.
        k: number of neighbours; more than there are means all.
        own: integers [N], for each query the one row of the bank that is no neighbour of it: its own.

    Returns:
        For one block of queries after the other, in their order, cosines [n, k], best first, and rows int64 [n, k].

    Raises:
        ValueError: at once, where sizes do not fit, a feature is not finite or there is no neighbour.
    """
    check_features(bank, queries)
    if own is not None and own.shape != queries.shape[:1]:
        raise ValueError(f"own [{len(queries)}] expected, got {list(own.shape)}")
    others = len(bank) - (own is not None)
    if k < 1 or not others:
        raise ValueError(f"k must be at least 1 and so must the rows that may be near, got k={k} and {others} rows")
    return _blocks(bank, queries, min(k, others), own)


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
    _check_labels(train_features, train_labels)
    _check_vote(train_labels, k, temperature, num_classes)
    blocks = [
        _vote(similarity / temperature, labels, num_classes)
        for similarity, labels in _labelled(train_features, train_labels, test_features, k)
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
    _check_labels(train_features, train_labels)
    _check_vote(train_labels, k, temperature, num_classes)
    # Dividing a sample's votes by its largest one changes no ranking and keeps the exponential in range.
    blocks = [
        _vote((similarity - similarity[:, :1]) / temperature, labels, num_classes).argmax(dim=1)
        for similarity, labels in _labelled(train_features, train_labels, test_features, k)
    ]
    return accuracy(torch.cat(blocks), test_labels)


def nearest_neighbour_accuracy(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float:
    """Return the percentage of test samples whose nearest training sample by cosine has their label."""
    _check_labels(train_features, train_labels)
    blocks = [labels[:, 0] for _, labels in _labelled(train_features, train_labels, test_features, 1)]
    return accuracy(torch.cat(blocks), test_labels)


def check_features(bank: Tensor, queries: Tensor) -> None:
    """Raise ``ValueError`` unless ``bank`` [M, D] and ``queries`` [N, D] are finite, at least one each."""
    shapes = f"{list(bank.shape)} and {list(queries.shape)}"
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(f"features [M, D] and [N, D] expected, got {shapes}")
    if not len(bank) or not len(queries):
        raise ValueError(f"features of at least one sample on both sides expected, got {shapes}")
    if not (bank.isfinite().all() and queries.isfinite().all()):
        raise ValueError("features must be finite: the network that made them has diverged")


def _labelled(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, k: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what ``nearest`` does with the labels [n, k] of the rows in their place."""
    labels = train_labels.to(train_features.device, torch.int64)
    for similarity, index in nearest(train_features, test_features, k):
        yield similarity, labels[index]


def _blocks(bank: Tensor, queries: Tensor, k: int, own: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    bank = _normalised(_at_least_float32(bank))
    queries = _normalised(_at_least_float32(queries).to(bank))
    rows = max(1, _BLOCK_ELEMENTS // len(bank))
    for start in range(0, len(queries), rows):
        yield _nearest_of(queries[start : start + rows], bank, k, None if own is None else own[start : start + rows])


def _nearest_of(block: Tensor, bank: Tensor, k: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what ``nearest`` does for one block; its similarities are gone before the next block's are there."""
    similarity = block @ bank.T
    if own is not None:
        similarity.scatter_(1, own.to(bank.device, torch.int64).unsqueeze(1), float("-inf"))
    values, rows = similarity.topk(k, dim=1)
    return values, rows


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


def _check_labels(train_features: Tensor, train_labels: Tensor) -> None:
    if train_labels.shape != train_features.shape[:1] or not len(train_labels):
        shapes = f"{list(train_features.shape)} and {list(train_labels.shape)}"
        raise ValueError(f"features [M, D] and train_labels [M] of at least one sample expected, got {shapes}")


def _check_vote(train_labels: Tensor, k: int, temperature: float, num_classes: int) -> None:
    if k < 1 or not temperature > 0:
        given = f"k={k}, temperature={temperature}"
        raise ValueError(f"k must be at least 1 and temperature above 0, got {given}")
    low, high = int(train_labels.min()), int(train_labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"train_labels must lie in [0, {num_classes}), got [{low}, {high}]")
