"""Where a training step gets the teacher's outputs from: a network that runs, or rows that were stored.

A method never knows which. Both sources have ``shapes``, ``forwards`` and ``outputs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydistill.errors import CacheError
from raydistill.teachers.cache.manifest import REPAIR
from raydistill.teachers.rows import Rows, StoredRows

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
        stored: whether the rows stay on the disk.
        device: where the rows are gathered.
    """

    forwards = 0

    def __init__(self, rows: Rows, needs: Needs) -> None:
        """Use rows that cover the needs of the methods.

        Raises:
            CacheError: naming the output or view that is lacking.
        """
        check_coverage("the cached table", rows.views, tuple(rows.shapes), needs)
        self.shapes = {name: rows.shapes[name] for name in _union(needs)}
        self.stored = isinstance(rows, StoredRows)
        self.device = rows.device
        self._rows, self._needs = rows, needs

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
            CacheError: if a view id is not cached, which only the CPU looks for, or a shard is damaged.
        """
        return {
            view: self._rows.take(sorted(names), positions, view_ids.get(view))
            for view, names in (needs or self._needs).teacher.items()
        }


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
    if objection := wrong_views(needs, len([view for view in views if view])):
        raise CacheError(f"{where} cannot serve the methods: {objection}")


def wrong_views(needs: Needs, augmented: int) -> str | None:
    """Say why the evaluation view and so many augmented ones are not what a step compares; None where they are."""
    drawn = sorted(view for view in needs.teacher if view in needs.draws and (augmented or needs.draws[view].turns))
    if drawn:
        return f"view {drawn[0]} of a step is drawn in a way of the method's own; set teacher.source=live"
    scheduled = [view for view in needs.views if view not in needs.draws]
    if augmented and needs.teacher and len(scheduled) > augmented:
        return (
            f"a step draws {len(scheduled)} views, but {augmented} augmented ones are cached; set "
            f"cache.views={len(scheduled)} or more (or 0) and run `{REPAIR}`"
        )
    return None


def _union(needs: Needs) -> tuple[str, ...]:
    return tuple(sorted({name for names in needs.teacher.values() for name in names}))
