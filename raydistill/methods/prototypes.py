"""What the methods share that describe an image by its scores with K prototypes."""

from __future__ import annotations

import math

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.collectives import mean_over_rows
from raydistill.methods.precision import at_least_float32, no_autocast


def sinkhorn_knopp(logits: Tensor, *, iterations: int = 3) -> Tensor:
    """Balance exp(logits) over the prototypes; every row then sums to 1 (ProtoCPC Eq. 11, 12; SwAV).

    Computed on logarithms, which no logits can overflow and no column can underflow. Shifting each row by its
    own maximum instead would change the result after few iterations.

    Args:
        logits: [B, K], already divided by the temperature.
        iterations: passes over prototypes (columns), then samples (rows).

    Returns:
        Probabilities [B, K].
    """
    with no_autocast(logits):
        log_plan = at_least_float32(logits)
        for number in range(iterations):
            if number:
                log_plan = F.log_softmax(log_plan, dim=1)
            log_plan = F.log_softmax(log_plan, dim=0)
        return F.softmax(log_plan, dim=1)


def assignment_entropy(scores: Tensor) -> Tensor:
    """Entropy of the shares in which samples choose their nearest prototype, divided by log K.

    0 where all samples share one prototype, which is a collapse; at most log N / log K with N samples, over all
    ranks. Nearest prototypes are counted since probabilities would hide a collapse: Sinkhorn-Knopp balances them,
    and a high temperature spreads even equal ones.

    Args:
        scores: [B, K].

    Returns:
        A scalar in [0, 1], without a gradient.
    """
    nearest = scores.detach().argmax(dim=1)
    # Not bincount, which makes the host wait for the accelerator.
    share = torch.full_like(nearest, 1.0 / len(nearest), dtype=torch.float32)
    shares = mean_over_rows(torch.zeros(scores.shape[1], device=scores.device).scatter_add_(0, nearest, share))
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum()
    return entropy / math.log(scores.shape[1])
