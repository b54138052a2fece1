"""Softmax over a long queue of keys, a block of keys at a time.

Scores of B queries with Q keys would be the largest tensor of a step: 131 MB for B = 256 and Q = 128000, and a
plain loss holds several of that size besides a copy of the queue. Here only a block of scores exists at a time. What
the loss and its gradient need of the rest are sums, which a block can rescale when it brings a larger maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.precision import no_autocast

_BLOCK = 1 << 19
"""Scores in a block that stays in the processor's cache; experiments/benchmarks/methods.py."""
_BLOCK_ON_ACCELERATOR = 1 << 24
"""Scores in a block that outweighs the launch of its operations."""


@dataclass(frozen=True)
class Attended:
    """What B queries find among Q keys: p_j = softmax_j(z_j) for scores z_j = q . k_j / T. No gradient flows."""

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


def attend(sides: Sequence[tuple[Tensor, Tensor]], values: Tensor, *, normalise: bool = False) -> list[Attended]:
    """Compare every query with every key; nothing of size B x Q and no copy of the keys is made.

    Args:
        sides: queries q / T [B, D], float32 at least, and their keys k [Q, D], as they are. Sides share the values,
            and where they also share the keys, the products with them.
        values: v, [Q, D_v].
        normalise: divide every key and value by its length.

    Returns:
        What each side found.
    """
    with torch.no_grad(), no_autocast(values):
        products = _shared_products(sides)
        count = sum(len(queries) for queries, _ in products)
        like = products[0][0]
        highest = like.new_full((count, 1), -torch.inf)
        total, weighted, mean = (like.new_zeros(count, width) for width in (1, 1, values.shape[1]))
        block = max(1, (_BLOCK if like.is_cpu else _BLOCK_ON_ACCELERATOR) // count)
        for start in range(0, len(values), block):
            rows = slice(start, start + block)
            found = [queries @ _read(keys, rows, like, normalise).T for queries, keys in products]
            scores = torch.cat(found) if len(found) > 1 else found[0]
            higher = torch.maximum(highest, scores.amax(dim=1, keepdim=True))
            fading = (highest - higher).exp()
            weights = (scores - higher).exp_()
            total.mul_(fading).add_(weights.sum(dim=1, keepdim=True))
            mean.mul_(fading).addmm_(weights, _read(values, rows, like, normalise))
            weighted.mul_(fading).add_(scores.mul_(weights).sum(dim=1, keepdim=True))
            highest = higher
        parts = (total[:, 0].log() + highest[:, 0], (weighted / total)[:, 0], mean / total)
        sizes = [len(queries) for queries, _ in sides]
        return [Attended(*side) for side in zip(*(torch.split(part, sizes) for part in parts), strict=True)]


def _shared_products(sides: Sequence[tuple[Tensor, Tensor]]) -> Sequence[tuple[Tensor, Tensor]]:
    """Put queries with the same keys together, so that the keys are read once."""
    keys = sides[0][1]
    if any(others is not keys for _, others in sides):
        return [(queries.detach(), others) for queries, others in sides]
    return [(torch.cat([queries.detach() for queries, _ in sides]), keys)]


def _read(keys: Tensor, rows: slice, like: Tensor, normalise: bool) -> Tensor:
    block = keys[rows].to(like)
    return F.normalize(block, dim=1) if normalise else block


def log_sum(queries: Tensor, attended: Attended) -> Tensor:
    """``attended.log_sum`` [B] with its gradient for ``queries`` q / T [B, D], which is ``mean_value``.

    ``attended`` must come from these queries, with the keys as values.
    """
    step = queries - queries.detach()  # zero, but it has a gradient
    return attended.log_sum + (step * attended.mean_value).sum(dim=1)
