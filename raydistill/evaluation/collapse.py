"""Signs of collapse: embeddings or prototypes that no longer tell images apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raydistill.lazy import Tensor, torch

RANK_IMAGES = 2000
LOWEST_RANK = 2.0
LOWEST_RANK_SHARE = 0.02
LOWEST_ENTROPY = 0.01

_ADVICE = "Lower train.optimizer.lr, or change the method's temperatures or momentum"


def effective_rank(embeddings: Tensor) -> float:
    """RankMe: exp of the entropy of the singular values divided by their sum.

    Garrido et al. 2023, https://arxiv.org/abs/2210.02885. 1 where all embeddings point in one direction, D where they
    spread evenly over all dimensions.

    Args:
        embeddings: [N, D], not centred.

    Returns:
        A number from 1 to min(N, D); 0 where every embedding is zero, or one is not finite.
    """
    if not torch.isfinite(embeddings).all():
        return 0.0
    values = torch.linalg.svdvals(embeddings.double())
    if not values.any():
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def rank_metrics(embeddings: Tensor) -> dict[str, float]:
    """``val/rank``, the effective rank of ``embeddings`` [N, D], and ``val/rank_share``, the same over min(N, D)."""
    rank = effective_rank(embeddings)
    return {"val/rank": rank, "val/rank_share": rank / min(embeddings.shape)}


def collapse_warnings(history: Sequence[Mapping[str, float]]) -> list[str]:
    """One line for each time that a sign of collapse appeared in the records of a run's epochs.

    Signs are an effective rank below 2 or below 2 % of what is possible, and a term ``entropy`` of a method's
    prototypes below 0.01, where some 99 % of a batch choose the same one. A sign that lasts is told once.
    """
    found: list[str] = []
    before: set[str] = set()
    for record in history:
        signs = _signs(record)
        new = [text for name, text in signs.items() if name not in before]
        found += [f"epoch {record['epoch']:.0f}: {text}. {_ADVICE}" for text in new]
        before = set(signs)
    return found


def _signs(record: Mapping[str, float]) -> dict[str, str]:
    """Metric -> what it says, where it says something bad."""
    signs: dict[str, str] = {}
    rank, share = record.get("val/rank", LOWEST_RANK), record.get("val/rank_share", 1.0)
    if rank < LOWEST_RANK or share < LOWEST_RANK_SHARE:
        signs["val/rank"] = f"the embeddings collapse, their effective rank (val/rank) is {rank:.2f}"
    for name, value in record.items():
        if name.startswith("train/") and name.endswith("/entropy") and value < LOWEST_ENTROPY:
            label = name.removeprefix("train/").removesuffix("/entropy")
            signs[name] = f"{label} collapses, nearly all images choose one prototype ({name} is {value:.3f})"
    return signs
