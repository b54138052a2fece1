"""Whether a network that names classes has learnt anything at all."""

from __future__ import annotations

from raydistill.lazy import Tensor, torch


def chance_warnings(top1: float | None, labels: Tensor | None) -> list[str]:
    """One line where ``top1`` is no more than naming one class for every image gives.

    Args:
        top1: percent on held-out images; None where it was not measured.
        labels: int64 [N] of these images, or None.
    """
    if top1 is None or labels is None:
        return []
    share = 100.0 * float(torch.bincount(labels).max()) / len(labels)
    if round(top1, 2) > round(share, 2):
        return []
    return [
        f"nothing is learnt yet: val/top1 is {top1:.2f} %, and one class for all images gives {share:.2f} %; "
        "train for more epochs, or with another learning rate"
    ]
