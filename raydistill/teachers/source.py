"""Where a training step gets the teacher's outputs from: a network that runs, or rows that were stored.

A method never knows which. Both sources have ``shapes``, ``forwards`` and ``outputs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raydistill.data.shared import tensor_of
from raydistill.errors import CacheError
from raydistill.teachers.cache.manifest import REPAIR

if TYPE_CHECKING:
    from raydistill.methods.base import Needs
    from raydistill.models.taps import Tapped
    from raydistill.teachers.cache.read import TeacherCache


class LiveTeacher:
    """Runs the teacher on the pixels of every step.

    Attributes:
        shapes: name -> shape without the batch, of the outputs that are needed.
        forwards: images that went through the teacher so far.
    """

    def __init__(self, network: Tapped, needs: Needs, *, image_shape: tuple[int, ...]) -> None:
        """Use a frozen network, on its own device; ``image_shape`` is (C, H, W)."""
        channels, height, width = image_shape
        known = network.shapes((channels, height, width))
        network.check_outputs(_union(needs))
        self.network = network.eval()
        self.forwards = 0
        self.shapes = {name: known[name] for name in _union(needs)}
        self._needs = needs

    @torch.no_grad()  # not inference_mode, whose tensors can't be saved for a backward pass
    def outputs(
        self,
        positions: Tensor,
        view_ids: Mapping[int, Tensor],
        images: Mapping[int, Tensor],
        needs: Needs | None = None,
    ) -> dict[int, dict[str, Tensor]]:
        """Return the needed outputs of a step.

        Args:
            positions: int64 [B], of the samples in the training set; not looked at.
            view_ids: view of the step -> int64 [B]; not looked at.
            images: view of the step -> normalised pixels [B, C, H, W].
            needs: what to compute of the outputs that the source was made for; all where not given.

        Returns:
            View of the step -> name -> float32 [B, *shape].
        """
        found: dict[int, dict[str, Tensor]] = {}
        for view, names in (needs or self._needs).teacher.items():
            given = self.network(images[view], outputs=tuple(sorted(names)))
            found[view] = {name: value.float() for name, value in given.items()}
            self.forwards += len(images[view])
        return found


class CachedTeacher:
    """Gathers stored rows; the teacher itself is not there.

    Attributes:
        shapes: name -> shape without the batch, of the outputs that are needed.
        forwards: always 0.
    """

    forwards = 0

    def __init__(
        self,
        table: Mapping[str, np.ndarray[Any, Any]],
        views: Iterable[int],
        needs: Needs,
        device: torch.device | str,
    ) -> None:
        """Move the needed rows to the device.

        Args:
            table: name -> [len(views), N, *shape], as ``TeacherCache.table`` gives it.
            views: cached view ids in the table's order.
            needs: of the methods.
            device: of the training.

        Raises:
            CacheError: naming the output or view that is lacking.
        """
        self.views = tuple(views)
        check_coverage("the cached table", self.views, tuple(table), needs)
        self.shapes = {name: tuple(table[name].shape[2:]) for name in _union(needs)}
        self._needs = needs
        self._rows = {name: _resident(table[name], device) for name in self.shapes}
        self._size = next((int(values.shape[1]) for values in table.values()), 0)
        slots = torch.full((max(self.views) + 1,), -1, dtype=torch.int64)
        slots[list(self.views)] = torch.arange(len(self.views))
        self._slots = slots.to(device)

    @classmethod
    def from_cache(
        cls, cache: TeacherCache, sample_ids: Tensor, needs: Needs, device: torch.device | str
    ) -> CachedTeacher:
        """Read the rows of ``sample_ids`` int64 [N], whose order gives the positions; raises ``CacheError``."""
        table = cache.table(sample_ids, cache.views, wanted_outputs(needs, cache))
        return cls(table, cache.views, needs, device)

    def outputs(
        self,
        positions: Tensor,
        view_ids: Mapping[int, Tensor],
        images: Mapping[int, Tensor],
        needs: Needs | None = None,
    ) -> dict[int, dict[str, Tensor]]:
        """Return the stored outputs of a step.

        A cache that holds the evaluation view alone answers with it whatever view the student sees.

        Args:
            positions: int64 [B], of the samples in the table.
            view_ids: view of the step -> int64 [B], ids of cached views.
            images: not looked at.
            needs: what to gather of the outputs that the source was made for; all where not given.

        Returns:
            View of the step -> name -> float32 [B, *shape].

        Raises:
            CacheError: on the CPU, if a view id is not cached; elsewhere the check would stall the device.
        """
        found: dict[int, dict[str, Tensor]] = {}
        for view, names in (needs or self._needs).teacher.items():
            rows = positions if len(self.views) == 1 else self._slot(view_ids[view]) * self._size + positions
            found[view] = {name: self._rows[name][rows].float() for name in sorted(names)}
        return found

    def _slot(self, view_ids: Tensor) -> Tensor:
        if view_ids.device.type == "cpu" and len(view_ids):
            low, high = int(view_ids.min()), int(view_ids.max())
            if low < 0 or high >= len(self._slots) or bool((self._slots[view_ids] < 0).any()):
                raise CacheError(f"teacher views {low} to {high} were asked for, but the cache holds {self.views}")
        return self._slots[view_ids]


def wanted_outputs(needs: Needs, cache: TeacherCache) -> tuple[str, ...]:
    """Return the names that the methods want from the teacher.

    Raises:
        CacheError: naming the output or view that the cache lacks and the command that rebuilds it.
    """
    check_coverage(f"cache '{cache.path}'", cache.views, cache.outputs, needs)
    return _union(needs)


def check_coverage(where: str, views: tuple[int, ...], outputs: tuple[str, ...], needs: Needs) -> None:
    """Raise ``CacheError`` unless these views and outputs can serve the needs.

    A step may draw as many different augmented views as are cached; the evaluation view alone stands for all.
    """
    for view, names in sorted(needs.teacher.items()):
        for name in sorted(names - set(outputs)):
            raise CacheError(
                f"{where} has the outputs {', '.join(outputs)}; view {view} of a step needs '{name}'. "
                f"Add it to cache.outputs and run `{REPAIR}`"
            )
    drawn = sorted(
        view for view in needs.teacher if view in needs.draws and (len(views) > 1 or needs.draws[view].turns)
    )
    if drawn:
        raise CacheError(
            f"{where} does not hold view {drawn[0]} of a step, which a method draws in a way of its own. "
            f"Set teacher.source=live"
        )
    augmented = len([view for view in views if view])
    scheduled = [view for view in needs.views if view not in needs.draws]
    if augmented and needs.teacher and len(scheduled) > augmented:
        raise CacheError(
            f"{where} has {augmented} augmented view(s), but a step draws {len(scheduled)}. "
            f"Set cache.views={len(scheduled)} or more (or 0) and run `{REPAIR}`"
        )


def _union(needs: Needs) -> tuple[str, ...]:
    return tuple(sorted({name for names in needs.teacher.values() for name in names}))


def _resident(values: np.ndarray[Any, Any], device: torch.device | str) -> Tensor:
    """Bring a table [V, N, *shape] to the device as [V * N, *shape]; on the CPU it keeps the array's memory."""
    array = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="), copy=False)
    return tensor_of(array).to(device).flatten(0, 1)
