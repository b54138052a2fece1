"""Retrieval: whether an image of the same class is among the nearest ones."""

from __future__ import annotations

from collections.abc import Iterable

from raydistill.evaluation.neighbours import nearest
from raydistill.lazy import Tensor, torch


def recall_at(
    features: Tensor,
    labels: Tensor,
    ks: Iterable[int] = (1, 2, 4, 8),
    *,
    gallery: tuple[Tensor, Tensor] | None = None,
) -> dict[int, float]:
    """Return R@K, the percentage of images of which at least one of the K nearest by cosine is of their class.

    CompRes (Koohpayegani et al. 2020, https://arxiv.org/abs/2010.14713), Table 4, on CUB200 and Cars196: features are
    not trained on the set, and each of its images is sought among all others. An image whose class has no other member
    cannot be found by any features and is left out of the percentage.

    Args:
        features: [N, D].
        labels: integers [N].
        ks: each K from 1; more than there are images means all.
        gallery: features [M, D] and labels [M] to search instead of the set's other images.

    Raises:
        ValueError: where sizes do not fit, features are not finite, or no image's class has another member.
    """
    ks = tuple(ks)
    bank, known = (features, labels) if gallery is None else gallery
    if labels.shape != features.shape[:1] or known.shape != bank.shape[:1]:
        shapes = " and ".join(str(list(tensor.shape)) for tensor in (features, labels, bank, known))
        raise ValueError(f"features [N, D] and labels [N], of the gallery too, expected, got {shapes}")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must name numbers from 1, got {list(ks)}")
    own = torch.arange(len(features)) if gallery is None else None
    index = torch.cat([rows for _, rows in nearest(bank, features, max(ks), own=own)]).cpu()
    labels, known = labels.cpu(), known.cpu()
    classes, number = torch.unique(torch.cat([known, labels]), return_inverse=True)
    members = torch.bincount(number[: len(known)], minlength=len(classes))
    findable = members[number[len(known) :]] > (gallery is None)
    if not findable.any():
        raise ValueError("no image's class has another member, so none can be found")
    hits = (known[index] == labels.unsqueeze(1))[findable]
    return {k: 100.0 * int(hits[:, :k].any(dim=1).sum()) / len(hits) for k in ks}
