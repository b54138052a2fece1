"""Negatives for each sample, drawn on the device as a pure function of (seed, epoch, sample)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raydistill.counter_rng import hash_bits, name_key

_CANDIDATES = 32
_STEP, _START = name_key("negatives/step"), name_key("negatives/start")


class NegativeSampler(nn.Module):
    """Draws ``count`` different positions for each sample, never of its own group.

    Positions sorted by group leave, without the sample's own group, a pool of P places. An affine permutation
    ``start + step * j mod P`` with ``step`` coprime to P visits ``count`` of them without a repetition, which
    needs no memory and no loop; every place is equally likely. Nothing here is saved: it all follows from the
    arguments.
    """

    order: Tensor
    first: Tensor
    length: Tensor

    def __init__(self, size: int, groups: Tensor | None, count: int, seed: int) -> None:
        """Prepare for ``size`` samples, up to 2**30, in ``groups``, int64 [size]; ``None``: each is its own group."""
        super().__init__()
        groups = torch.arange(size) if groups is None else groups.detach().cpu()
        sizes = torch.bincount(groups)
        self.count = count
        self.seed = seed
        self.register_buffer("order", groups.argsort(stable=True), persistent=False)
        self.register_buffer("first", (sizes.cumsum(0) - sizes)[groups], persistent=False)
        self.register_buffer("length", sizes[groups], persistent=False)

    def forward(self, index: Tensor, epoch: int) -> Tensor:
        """Draw for the samples at positions ``index`` [B] -> positions [B, count]."""
        first, length = self.first[index], self.length[index]
        pool = len(self.order) - length
        # 32 random bits times a pool below 2**31 stay inside int64.
        start = (hash_bits(self.seed, epoch, _START, index) * pool) >> 32
        step = self._coprime_step(index, epoch, pool)
        places = _walk(start, step, pool, self.count)
        first, length = first[:, None].int(), length[:, None].int()
        places += (places >= first) * length
        # By index_select, which is faster than order[places].
        return self.order.index_select(0, places.flatten()).view_as(places)

    def _coprime_step(self, index: Tensor, epoch: int, pool: Tensor) -> Tensor:
        """The first of several candidates in [1, pool] that is coprime to ``pool``; 1 where none is: [B]."""
        tries = torch.arange(_CANDIDATES, device=index.device)
        bits = hash_bits(self.seed, epoch, _STEP, index[:, None], tries)
        candidates = 1 + ((bits * pool[:, None]) >> 32)
        fits = torch.gcd(candidates, pool[:, None]) == 1
        chosen = candidates.gather(1, fits.int().argmax(dim=1, keepdim=True))
        return torch.where(fits.any(dim=1), chosen[:, 0], torch.ones_like(pool))


def _walk(start: Tensor, step: Tensor, pool: Tensor, count: int) -> Tensor:
    """``(start + step * j) mod pool`` of j below ``count``: three int64 [B] -> int32 [B, count].

    What is known is moved on by as many steps as it holds, over and over: dividing B x count numbers by their pools
    takes several times longer than adding and comparing them as int32.
    """
    pools = pool[:, None].int()
    places = torch.empty(len(start), count, dtype=torch.int32, device=start.device)
    places[:, 0] = start
    known = 1
    while known < count:
        more = places[:, known : 2 * known]
        torch.add(places[:, : more.shape[1]], (step * known % pool)[:, None].int(), out=more)
        more -= (more >= pools) * pools
        known *= 2
    return places
