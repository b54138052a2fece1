"""Softmax over a long queue of keys, a block of keys at a time.

Scores of B queries with Q keys would be the largest tensor of a step: 131 MB for B = 256 and Q = 128000, and a
plain loss holds several of that size besides a copy of the queue. Here only a block of scores exists at a time. What
the loss and its gradient need of the rest are sums, which a block can rescale when it brings a larger maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.precision import no_autocast

_BLOCK = 1 << 20
"""Scores in a block: enough to keep the processor busy, few enough to stay near it."""


@dataclass(frozen=True)
class Attended:
    """What B queries find among Q keys: p_j = softmax_j(z_j) with scores z_j = q . k_j / T. No gradient flows."""

    log_sum: Tensor
    """log sum_j e^{z_j}, [B]."""
    mean_score: Tensor
    """sum_j p_j z_j, [B]."""
    mean_value: Tensor
    """sum_j p_j v_j, [B, D_v]."""

    def including(self, score: Tensor, value: Tensor) -> Attended:
        """The same with one more key for each query, of score [B] and value [B, D_v]."""
        score, value = score.detach(), value.detach()
        log_sum = torch.logaddexp(self.log_sum, score)
        old, new = (self.log_sum - log_sum).exp(), (score - log_sum).exp()
        return Attended(
            log_sum=log_sum,
            mean_score=old * self.mean_score + new * score,
            mean_value=old[:, None] * self.mean_value + new[:, None] * value,
        )


def attend(
    queries: Tensor, keys: Tensor, values: Tensor | None = None, *, temperature: float, normalise: bool = False
) -> Attended:
    """Compare every query with every key; nothing of size B x Q and no copy of the keys is made.

    Args:
        queries: q, [B, D], float32 at least.
        keys: k, [Q, D], as they are unless ``normalise``.
        values: v, [Q, D_v]; the keys where None.
        temperature: T.
        normalise: divide every key by its length.
    """
    with torch.no_grad(), no_autocast(queries):
        scaled = queries.detach() / temperature
        width = (keys if values is None else values).shape[1]
        highest = scaled.new_full((len(scaled),), -torch.inf)
        total, weighted, mean = (scaled.new_zeros(len(scaled), columns) for columns in (1, 1, width))
        rows = max(1, _BLOCK // max(1, len(scaled)))
        for start in range(0, len(keys), rows):
            block = keys[start : start + rows].to(scaled)
            block = F.normalize(block, dim=1) if normalise else block
            scores = scaled @ block.T
            higher = torch.maximum(highest, scores.amax(dim=1))
            fading = (highest - higher).exp()[:, None]
            weights = (scores - higher[:, None]).exp_()
            total = total * fading + weights.sum(dim=1, keepdim=True)
            weighted = weighted * fading + scores.mul_(weights).sum(dim=1, keepdim=True)
            worth = block if values is None else values[start : start + rows].to(scaled)
            mean = torch.addmm(mean * fading, weights, worth)
            highest = higher
        return Attended(
            log_sum=total[:, 0].log() + highest, mean_score=(weighted / total)[:, 0], mean_value=mean / total
        )


def log_sum(queries: Tensor, attended: Attended, *, temperature: float) -> Tensor:
    """``attended.log_sum`` [B] with its gradient for ``queries`` [B, D], which is mean_value / T.

    ``attended`` must come from these queries, with the keys as values.
    """
    step = queries - queries.detach()  # zero, but it has a gradient
    return attended.log_sum + (step * attended.mean_value).sum(dim=1) / temperature
