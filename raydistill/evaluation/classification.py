"""Accuracy of class scores."""

from __future__ import annotations

from raydistill.lazy import Tensor


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Return the percentage of samples whose label is among the ``k`` highest scores.

    Args:
        logits: [N, C]; any scores that rank the classes.
        labels: [N], integers below C.
        k: how many classes may be named; more than C means all of them.

    Raises:
        ValueError: where there is no sample, the sizes differ or ``k`` is not positive.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        shapes = f"{list(logits.shape)} and {list(labels.shape)}"
        raise ValueError(f"logits [N, C] and labels [N] expected, got {shapes}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    hit = (top == labels.to(top).unsqueeze(1)).any(dim=1)
    # topk ranks NaN above every number, so a network that diverged would otherwise still name some labels.
    hit &= ~logits.isnan().any(dim=1)
    return 100.0 * int(hit.sum()) / len(labels)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the percentage of ``predictions`` [N] that equal ``labels`` [N]."""
    if predictions.ndim != 1 or predictions.shape != labels.shape or not len(labels):
        shapes = f"{list(predictions.shape)} and {list(labels.shape)}"
        raise ValueError(f"predictions [N] and labels [N] expected, got {shapes}")
    return 100.0 * int((predictions == labels.to(predictions)).sum()) / len(labels)
