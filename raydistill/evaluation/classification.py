"""Accuracy of class scores."""

from __future__ import annotations

from raydistill.lazy import Tensor, torch


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Return the percentage of samples whose label is among the ``k`` highest scores.

    Args:
        logits: [N, C]; any scores that rank the classes.
        labels: [N], integers below C.
        k: how many classes may be named; more than C means all of them.

    Raises:
        ValueError: where there is no sample, the sizes differ or ``k`` is not positive.
    """
    check_scores(logits, labels)
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


def predictions(logits: Tensor) -> Tensor:
    """Return the class [N] of each row's highest score, int64: the one that ``top_k_accuracy`` looks at."""
    return logits.topk(1, dim=1).indices[:, 0]


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Count how often samples of each class are taken for each class.

    A row with NaN names no class, so no cell would be true of it and without it the counts would flatter: it is
    refused. ``top_k_accuracy`` counts it as wrong.

    Args:
        logits: [N, C]; any scores that rank the classes.
        labels: [N], integers below C.

    Returns:
        Int64 [C, C] on the CPU: rows are true classes, columns predicted ones. Its trace is what top-1 counts.

    Raises:
        ValueError: where there is no sample, sizes differ, a label is out of range or a score is NaN.
    """
    check_scores(logits, labels)
    classes = logits.shape[1]
    known = labels.to("cpu", torch.int64)
    if int(known.min()) < 0 or int(known.max()) >= classes:
        raise ValueError(f"labels must lie in [0, {classes}), got [{int(known.min())}, {int(known.max())}]")
    if logits.isnan().any():
        raise ValueError("logits must not be NaN: the network that made them has diverged")
    cells = known * classes + predictions(logits).cpu()
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Return the percentage [C] of each class's samples that are classified rightly, float64; NaN where it has none.

    Args:
        confusion: [C, C] from ``confusion_matrix``.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"counts [C, C] expected, got {list(confusion.shape)}")
    return 100.0 * confusion.diagonal().double() / confusion.sum(dim=1).double()


def check_scores(logits: Tensor, labels: Tensor) -> None:
    """Raise ``ValueError`` unless ``logits`` are [N, C] and ``labels`` [N] with at least one sample."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        shapes = f"{list(logits.shape)} and {list(labels.shape)}"
        raise ValueError(f"logits [N, C] and labels [N] expected, got {shapes}")
