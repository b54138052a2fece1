"""Mixup and CutMix whose partners follow from keys, so that a mixed view is the same in any batch.

Who is mixed with whom, how much of each is seen and where, are functions of (seed, sample id, view id), as is all
else of a view. So a teacher that saw a view once has seen what the student will, which mixing within a batch rules
out. A partner is seen in the same view id as the image that it is mixed into. View 0 is never mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from raydistill.counter_rng import hash_bits, name_key
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.augment_config import AugmentConfig

_NAMES = ("mix/kind", "mix/partner", "mix/share", "cutmix/row", "cutmix/column")
_QUANTILES = 4096
_GRID = 1 << 24  # float32 holds every multiple of 1 / _GRID in [0, 1], and 1 minus it


@dataclass(frozen=True, eq=False)
class Partners:
    """The images that others are mixed with: the training images, never one that is held out.

    Attributes:
        ids: int64 [M], ascending.
        positions: int64 [M], where they lie in the set that batches are taken from.
    """

    ids: Tensor
    positions: Tensor

    @classmethod
    def within(cls, ids: Tensor, everything: Tensor) -> Partners:
        """Find ``ids``, int64 [M], in a set whose ids are ``everything``, int64 [N]; all of them must be there."""
        order = everything.argsort()
        ids = ids.sort().values
        return cls(ids, order[torch.searchsorted(everything[order], ids)])


@dataclass(frozen=True, eq=False)
class Mixture:
    """What a batch of views is mixed with; a view that is not mixed has itself as partner.

    Attributes:
        ids: int64 [B], of the partners.
        positions: int64 [B], of the partners.
        share: float32 [B], lambda: how much of the image itself is seen, 1 where it is not mixed.
        box: int64 [B, 4]: top, left, height and width of what the partner covers in CutMix, 0 elsewhere.
    """

    ids: Tensor
    positions: Tensor
    share: Tensor
    box: Tensor

    def to(self, device: torch.device) -> Mixture:
        """The same on a device."""
        return Mixture(*(part.to(device) for part in (self.ids, self.positions, self.share, self.box)))

    @property
    def mixed(self) -> Tensor:
        """Which views show something of a partner: bool [B]."""
        return self.share < 1.0

    @property
    def cut(self) -> Tensor:
        """Which of them show it in a box: bool [B]."""
        return self.box[:, 2] > 0


def draw_mixture(
    ids: Tensor,
    positions: Tensor,
    views: Tensor,
    *,
    partners: Partners,
    augment: AugmentConfig,
    seed: int,
    size: tuple[int, int],
) -> Mixture:
    """Draw partners, shares and boxes. Whole numbers and tables decide, hence alike on every device.

    No image is its own partner. Shares follow Beta(alpha, alpha): those of mixup are as drawn (Zhang et al. 2018,
    https://arxiv.org/abs/1710.09412), those of CutMix are what the box leaves after it was cut off at the edges (Yun
    et al. 2019, https://arxiv.org/abs/1905.04899).

    Args:
        ids: int64 [B], of the samples, which need not be among the partners.
        positions: int64 [B], of the samples.
        views: integers [B]; rows with 0 are not mixed.
        partners: at least two.
        augment: the operations.
        seed: of the experiment's augmentation.
        size: (H, W) of the views.
    """
    keys = _keys(ids.device)
    bits = dict(zip(_NAMES, hash_bits(seed, ids, views, keys[:, None]), strict=True))
    kind, quantile = bits["mix/kind"] >> 8, bits["mix/share"] >> 20
    kind = kind.masked_fill(views == 0, _GRID)
    share = torch.ones(len(ids), device=ids.device)
    box = torch.zeros(len(ids), 4, dtype=torch.int64, device=ids.device)
    taken = 0
    if augment.mixup is not None:
        taken = round(augment.mixup.probability * _GRID)
        share = torch.where(kind < taken, _shares(augment.mixup.alpha, ids.device)[quantile], share)
    if augment.cutmix is not None:
        upto = min(_GRID, taken + round(augment.cutmix.probability * _GRID))
        cut = (kind >= taken) & (kind < upto)
        found = _boxes(bits, _sides(augment.cutmix.alpha, size, ids.device)[quantile], size)
        box = torch.where((cut & (found[:, 2:] > 0).all(dim=1))[:, None], found, box)
        share = torch.where(cut, _left_by(box, size), share)
    place = _ranks(ids, bits["mix/partner"], partners.ids)
    mixed = share < 1.0
    return Mixture(
        ids=torch.where(mixed, partners.ids[place], ids),
        positions=torch.where(mixed, partners.positions[place], positions),
        share=share,
        box=box,
    )


def blend(pixels: Tensor, others: Tensor, mixture: Mixture) -> Tensor:
    """Mix normalised pixels with those of their partners.

    Args:
        pixels: float32 [B, C, H, W], of the images.
        others: float32 [B, C, H, W], of the partners.
        mixture: what was drawn for the images.

    Returns:
        Float32 [B, C, H, W].
    """
    height, width = pixels.shape[2:]
    outside = (~_inside(mixture.box, (height, width))).to(pixels.dtype)
    own = torch.where(mixture.cut[:, None, None], outside, mixture.share[:, None, None])[:, None]
    # Single products and one sum: a fused operation would round differently with the batch or the device.
    return pixels * own + others * (1.0 - own)


@lru_cache(maxsize=64)
def _keys(device: torch.device) -> Tensor:
    return torch.tensor([name_key(name) for name in _NAMES], dtype=torch.int64, device=device)


@lru_cache(maxsize=64)
def _shares(alpha: float, device: torch.device) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at (k + 1/2) / 4096, float32 [4096].

    Rounded to 1 / _GRID, so that no last bit of a library or a processor is left in them.
    """
    from scipy.special import betaincinv

    levels = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    quantiles = torch.from_numpy(betaincinv(alpha, alpha, levels.numpy()))
    return ((quantiles * _GRID).round() / _GRID).to(torch.float32).to(device)


@lru_cache(maxsize=64)
def _sides(alpha: float, size: tuple[int, int], device: torch.device) -> Tensor:
    """Height and width of the box for each quantile, both the share (1 - lambda)^(1/2) of the image's: [4096, 2]."""
    share = (1.0 - _shares(alpha, torch.device("cpu")).to(torch.float64)).sqrt()
    return (share[:, None] * torch.tensor(size)).to(torch.int64).to(device)


def _boxes(bits: dict[str, Tensor], sides: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [B, 4] around a centre that may be anywhere, cut off at the edges."""
    whole = torch.tensor(size, device=sides.device)
    centre = torch.stack([bits["cutmix/row"], bits["cutmix/column"]], dim=1) * whole >> 32
    low = centre - sides // 2
    high = torch.minimum(low + sides, whole)
    low = low.clamp_min(0)
    return torch.cat([low, high - low], dim=1)


def _left_by(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of the area outside boxes [B, 4]: float32 [B]."""
    area = size[0] * size[1]
    left = area - box[:, 2] * box[:, 3]
    # A tensor as divisor: by a number, some devices multiply with its rounded inverse.
    return (left.to(torch.float64) / torch.full_like(left, area, dtype=torch.float64)).to(torch.float32)


def _ranks(ids: Tensor, bits: Tensor, among: Tensor) -> Tensor:
    """A number in [0, M) for each sample, every one equally likely but the sample's own: int64 [B]."""
    own = torch.searchsorted(among, ids).clamp_max(len(among) - 1)
    member = (among[own] == ids).to(torch.int64)
    rank = bits * (len(among) - member) >> 32
    return rank + member * (rank >= own)


def _inside(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask [B, H, W] of boxes [B, 4]."""
    rows, columns = (torch.arange(size[axis], device=box.device) - box[:, axis : axis + 1] for axis in (0, 1))
    inside_rows = (rows >= 0) & (rows < box[:, 2:3])
    inside_columns = (columns >= 0) & (columns < box[:, 3:4])
    return inside_rows[:, :, None] & inside_columns[:, None, :]
