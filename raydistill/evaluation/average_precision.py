"""Average precision: how far up a class's samples come when all are ranked by its scores."""

from __future__ import annotations

from typing import Literal

from raydistill.lazy import Tensor, torch


def mean_average_precision(
    scores: Tensor,
    targets: Tensor,
    *,
    ignored: Tensor | None = None,
    variant: Literal["11_point", "area"] = "11_point",
) -> float:
    """Return the mean over classes of the average precision of ranking the samples by score, in percent.

    ``11_point`` is the rule of VOC2007 (Everingham et al. 2010, https://doi.org/10.1007/s11263-009-0275-4, section
    4.2): the mean, over the recalls 0, 0.1, ..., 1, of the highest precision at that recall or a higher one. ``area``
    is scikit-learn's ``average_precision_score``: the precisions weighted by the recall each sample adds. Samples of
    equal score come together. A class that no sample shows cannot be ranked and is left out.

    Args:
        scores: [N, C], not NaN.
        targets: bool [N, C].
        ignored: bool [N, C], samples that a class's ranking leaves out, such as those that VOC2007 marks as difficult.
        variant: which of the two.

    Raises:
        ValueError: where sizes differ, a score is NaN or no sample shows a class.
    """
    if scores.ndim != 2 or scores.shape != targets.shape or targets.dtype != torch.bool:
        given = f"{list(scores.shape)} and {targets.dtype} {list(targets.shape)}"
        raise ValueError(f"scores [N, C] and targets torch.bool [N, C] expected, got {given}")
    if scores.isnan().any():
        raise ValueError("scores must not be NaN: the network that made them has diverged")
    if ignored is not None and (ignored.shape != targets.shape or ignored.dtype != torch.bool):
        given = f"{ignored.dtype} {list(ignored.shape)}"
        raise ValueError(f"ignored torch.bool {list(targets.shape)} expected, got {given}")
    counted = torch.ones_like(targets) if ignored is None else ~ignored
    shown = (targets & counted).any(dim=0)
    if not shown.any():
        raise ValueError("no sample shows any class, so there is nothing to rank")
    precision_of = {"11_point": _eleven_points, "area": _area}[variant]
    columns = zip(*(values[:, shown].T.cpu() for values in (scores, targets, counted)), strict=True)
    found = [precision_of(score[counts], target[counts]) for score, target, counts in columns]
    return 100.0 * sum(found) / len(found)


def _eleven_points(scores: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(targets.numpy(), scores.numpy())
    relevant = int(targets.sum())
    # The curve ends with a point of precision 1 that no sample made. Counts compare exactly where 0.3 does not.
    points = [(found, round(share * relevant)) for found, share in zip(precision[:-1], recall[:-1], strict=True)]
    best = [max(found for found, hits in points if 10 * hits >= tenth * relevant) for tenth in range(11)]
    return float(sum(best)) / len(best)


def _area(scores: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(targets.numpy(), scores.numpy()))
