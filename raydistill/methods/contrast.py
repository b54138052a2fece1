"""The contrastive loss that several methods share."""

from __future__ import annotations

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.key_softmax import attend, log_sum
from raydistill.methods.precision import at_least_float32, no_autocast


def unit(rows: Tensor) -> Tensor:
    """L2-normalise rows [..., D], in float32 at least."""
    return F.normalize(at_least_float32(rows), dim=-1)


def info_nce_loss(
    query: Tensor, positive: Tensor, negatives: Tensor, *, temperature: float, unit_negatives: bool = False
) -> Tensor:
    """-log(e^{q.k/T} / (e^{q.k/T} + sum_j e^{q.n_j/T})) on unit vectors, mean over the batch.

    van den Oord et al. 2018, https://arxiv.org/abs/1807.03748; with a queue as in He et al. 2020. Negatives that
    take no gradient, such as a queue's, are read in blocks: they are never copied, scores [B, Q] never laid out.

    Args:
        query: q, [B, D].
        positive: k, the key of each query, [B, D].
        negatives: n, shared by all queries, [Q, D].
        temperature: T.
        unit_negatives: whether the negatives are known to be unit vectors and need not be normalised.

    Returns:
        A scalar.
    """
    with no_autocast(query):
        query, positive = unit(query) / temperature, unit(positive)
        own = (query * positive).sum(dim=1)
        if negatives.requires_grad:
            others = (query @ unit(negatives).T).logsumexp(dim=1)
        else:
            others = log_sum(query, *attend([(query, negatives)], negatives, normalise=not unit_negatives))
        return (torch.logaddexp(own, others) - own).mean()
