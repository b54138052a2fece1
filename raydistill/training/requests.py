"""What the steps of an epoch ask of data set and caches: a pure function, so that it can be read ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydistill.data.mixing import Mixture, Partners, draw_mixture
from raydistill.data.views import fresh_views, scheduled_views

if TYPE_CHECKING:
    from raydistill.data.augment_config import AugmentConfig
    from raydistill.methods.base import Needs


@dataclass(frozen=True)
class Request:
    """What one step asks for.

    Attributes:
        positions: int64 [B], of the samples in the training set.
        view_ids: view of the step -> int64 [B].
        needs: which outputs of which views.
        mixtures: view of the step -> what it is mixed with; views that are not mixed are absent.
    """

    positions: Tensor
    view_ids: Mapping[int, Tensor]
    needs: Needs
    mixtures: Mapping[int, Mixture] = field(default_factory=dict)

    def to(self, device: torch.device) -> Request:
        """Return the request on a device."""
        return Request(
            moved(self.positions, device),
            {view: moved(ids, device) for view, ids in self.view_ids.items()},
            self.needs,
            {view: mixture.to(device) for view, mixture in self.mixtures.items()},
        )


@dataclass(frozen=True)
class Plan:
    """Turns the positions of samples into a request, the same in every process and on every device.

    Where the cache holds replayable views, a step shows one of them for each sample, else every epoch shows new ones.

    Attributes:
        ids: int64 [N], of the training set.
        seed: of the experiment.
        augment_seed: of all views that no method draws itself.
        cached_views: number of replayable views that the caches hold, or 0.
        augment: the operations.
        size: (H, W) of the images.
        partners: where views are mixed with other images.
    """

    ids: Tensor
    seed: int
    augment_seed: int
    cached_views: int
    augment: AugmentConfig
    size: tuple[int, int]
    partners: Partners | None = None

    def to(self, device: torch.device) -> Plan:
        """Return the plan for positions on a device."""
        partners = self.partners
        if partners is not None:
            partners = Partners(partners.ids.to(device), partners.positions.to(device))
        return replace(self, ids=self.ids.to(device), partners=partners)

    def request(self, positions: Tensor, epoch: int, needs: Needs) -> Request:
        """Return the request for int64 [B] positions in an epoch, counted from 0."""
        ids = self.ids[positions]
        view_ids = {view: self._view_ids(ids, view, epoch, needs) for view in needs.views}
        return Request(positions, view_ids, needs, self._mixtures(ids, positions, view_ids, needs))

    def _view_ids(self, ids: Tensor, view: int, epoch: int, needs: Needs) -> Tensor:
        if self.cached_views and view not in needs.draws:
            return scheduled_views(ids, epoch, self.cached_views, self.seed, offset=view)
        return fresh_views(ids, epoch, view, len(needs.views))

    def _mixtures(
        self, ids: Tensor, positions: Tensor, view_ids: Mapping[int, Tensor], needs: Needs
    ) -> dict[int, Mixture]:
        """Return what the views that no method draws itself are mixed with."""
        if self.partners is None:
            return {}
        return {
            view: draw_mixture(
                ids,
                positions,
                view_ids[view],
                partners=self.partners,
                augment=self.augment,
                seed=self.augment_seed,
                size=self.size,
            )
            for view in needs.views
            if view not in needs.draws
        }


def moved(values: Tensor, device: torch.device) -> Tensor:
    """Send to a device; from the host to a GPU without waiting for it, from memory that it can fetch by itself."""
    if values.device.type == "cpu" and device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
