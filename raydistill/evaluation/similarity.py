"""How alike two networks see the same images, whatever the widths of their features."""

from __future__ import annotations

from raydistill.evaluation.neighbours import nearest
from raydistill.lazy import Tensor, torch

_BLOCK_ROWS = 8192


def neighbour_overlap(left: Tensor, right: Tensor, *, k: int, queries: int = 2048) -> float:
    """Return the mean share of the ``k`` nearest neighbours by cosine that both sides have in common, 0 to 1.

    An image is no neighbour of its own. Unrelated features share k / (N - 1) by chance.

    Args:
        left: [N, D].
        right: [N, E], of the same images.
        k: number of neighbours.
        queries: most images whose neighbours are looked at, evenly spaced; the neighbours are any of the N.

    Raises:
        ValueError: where sizes do not fit, or ``k`` is not from 1 to N - 1.
    """
    _check(left, right)
    if not 1 <= k < len(left):
        raise ValueError(f"k must be from 1 to {len(left) - 1}, one less than the images, got {k}")
    chosen = torch.arange(0, len(left), -(-len(left) // queries), device=left.device)
    # Both banks have as many rows, so their blocks hold the same images.
    sides = [nearest(side, side[chosen.to(side.device)], k, own=chosen) for side in (left, right)]
    common = 0
    for (_, one), (_, other) in zip(*sides, strict=True):
        near = torch.zeros(len(one), len(left), dtype=torch.bool, device=one.device).scatter_(1, one, True)
        common += int(near.gather(1, other.to(one.device)).sum())
    return common / (k * len(chosen))


def linear_cka(left: Tensor, right: Tensor) -> float:
    """Return ||X'Y||^2 / (||X'X|| ||Y'Y||) of centred features X, Y in Frobenius norms: 1 is alike up to rotation.

    Kornblith et al. 2019, https://arxiv.org/abs/1905.00414. Computed in float64 from blocks of rows.

    Args:
        left: [N, D].
        right: [N, E], of the same images.

    Raises:
        ValueError: where sizes do not fit, or a side is the same for all images.
    """
    _check(left, right)
    means = [side.mean(dim=0, dtype=torch.float64) for side in (left, right)]
    products: list[Tensor] = []
    for parts in zip(torch.split(left, _BLOCK_ROWS), torch.split(right, _BLOCK_ROWS), strict=True):
        one, other = (part.double() - mean for part, mean in zip(parts, means, strict=True))
        found = [one.T @ other, one.T @ one, other.T @ other]
        products = [before + now for before, now in zip(products, found, strict=True)] if products else found
    across, *own = (float(product.norm()) for product in products)
    if not min(own) > 0:
        raise ValueError("features that are the same for all images are like nothing")
    return across**2 / (own[0] * own[1])


def _check(left: Tensor, right: Tensor) -> None:
    if left.ndim != 2 or right.ndim != 2 or len(left) != len(right) or len(left) < 2:
        shapes = f"{list(left.shape)} and {list(right.shape)}"
        raise ValueError(f"features [N, D] and [N, E] of the same two or more images expected, got {shapes}")
