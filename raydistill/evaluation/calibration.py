"""How far a network's confidence is from how often it is right."""

from __future__ import annotations

from raydistill.evaluation.classification import check_scores, predictions
from raydistill.lazy import Tensor, torch


def expected_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy over bins of confidence, weighted by their samples.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, Eq. 3. Confidence is the largest of a sample's softmax
    probabilities; bin m of M holds confidences in ((m - 1) / M, m / M]. Computed in float64.

    Args:
        logits: [N, C], as trained: the softmax is taken of them at temperature 1.
        labels: [N], integers below C.
        bins: number of bins of equal width.

    Returns:
        From 0 to 100 percent; lower is better.

    Raises:
        ValueError: where there is no sample, sizes differ, ``bins`` is not positive or a confidence is not a number.
    """
    check_scores(logits, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence = logits.double().softmax(dim=1).amax(dim=1).cpu()
    if confidence.isnan().any():
        raise ValueError("logits must be finite: the network that made them has diverged")
    right = (predictions(logits) == labels.to(logits.device)).double().cpu()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    # A bin's share times its gap is the sum of its samples' gaps over all samples.
    gaps = torch.bincount(torch.bucketize(confidence, edges[1:-1]), weights=right - confidence, minlength=bins)
    return 100.0 * float(gaps.abs().sum()) / len(labels)
