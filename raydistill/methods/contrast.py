"""The contrastive loss that several methods share."""

from __future__ import annotations

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.precision import at_least_float32, no_autocast


def unit(rows: Tensor) -> Tensor:
    """L2-normalise rows [..., D], in float32 at least."""
    return F.normalize(at_least_float32(rows), dim=-1)


def info_nce_loss(query: Tensor, positive: Tensor, negatives: Tensor, *, temperature: float) -> Tensor:
    """-log(e^{q.k/T} / (e^{q.k/T} + sum_j e^{q.n_j/T})) on unit vectors, mean over the batch.

    van den Oord et al. 2018, https://arxiv.org/abs/1807.03748; with a queue as in He et al. 2020.

    Args:
        query: q, [B, D].
        positive: k, the key of each query, [B, D].
        negatives: n, shared by all queries, [Q, D].
        temperature: T.

    Returns:
        A scalar.
    """
    with no_autocast(query):
        query, positive, negatives = unit(query), unit(positive), unit(negatives)
        own = (query * positive).sum(dim=1, keepdim=True)
        scores = torch.cat([own, query @ negatives.T], dim=1) / temperature
        return (scores.logsumexp(dim=1) - scores[:, 0]).mean()
