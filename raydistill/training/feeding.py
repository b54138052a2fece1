"""What a training step gets of data set and caches, wherever these lie.

A step asks by a ``Request`` and gets a ``Batch`` on the training device. What lies near, on the device or in memory
that all processes of the node share, is gathered on the spot. What lies far, encoded images and rows that stay on the
disk, is read ahead by tasks (``streaming``). Neither the loop nor a method can tell which it was, since a request is a
pure function of positions and epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from raydistill.methods.base import Needs, Outputs
from raydistill.teachers.source import CachedTeacher
from raydistill.training.requests import Plan, Request, moved

if TYPE_CHECKING:
    from raydistill.training.streaming import EpochReader

Columns = dict[str, Tensor]
STUDENT, TEACHER = "student", "teacher"


@dataclass(frozen=True)
class Batch:
    """What was brought for a request; all of it lies on the training device."""

    request: Request
    columns: Mapping[str, Tensor]

    def pixels(self, side: str) -> Tensor:
        """The images as the student or the teacher sees them, uint8 [B, C, H, W]."""
        return self.columns[side]

    def partners(self, side: str, view: int) -> Tensor:
        """The images that a view is mixed with, uint8 [B, C, H, W]."""
        return self.columns[f"{side}/{view}"]

    def stored(self, teacher: int) -> dict[int, Outputs]:
        """Outputs of a cached teacher by its number: view of the step -> name -> float32 [B, *shape]."""
        named = self.request.needs.teacher.items()
        return {view: {name: self.columns[_column(teacher, view, name)] for name in names} for view, names in named}


class Images(Protocol):
    """A set of images, on whatever device."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    def pixels(self, positions: Tensor) -> Tensor:
        """The images at int64 [B] as uint8 [B, C, H, W]."""


@dataclass(frozen=True)
class Supply:
    """Things that lie alike, and what requests get of them; reading tasks get a copy of one.

    Attributes:
        images: side, student or teacher -> what it sees.
        teachers: number -> its stored outputs.
    """

    images: Mapping[str, Images]
    teachers: Mapping[int, CachedTeacher]

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.images or self.teachers)

    def bring(self, request: Request) -> Columns:
        """Return all columns [B, ...] that the request gets from here."""
        columns: Columns = {}
        for side, images in self.images.items():
            columns[side] = images.pixels(request.positions)
            for view, mixture in request.mixtures.items():
                columns[f"{side}/{view}"] = images.pixels(mixture.positions)
        for number, teacher in self.teachers.items():
            for view, outputs in teacher.outputs(request.positions, request.view_ids, {}, request.needs).items():
                columns |= {_column(number, view, name): values for name, values in outputs.items()}
        return columns

    def row_bytes(self, request: Request) -> int:
        """What one row of all these columns takes."""
        pixels = sum(math.prod(images.shape) for images in self.images.values()) * (1 + len(request.mixtures))
        asked = [name for names in request.needs.teacher.values() for name in names]
        return pixels + 4 * sum(math.prod(teacher.shapes[name]) for teacher in self.teachers.values() for name in asked)


class Feeder:
    """Brings batches to the device.

    Attributes:
        place: where positions are wanted: beside what is gathered by them, so that no step waits for the device.
        plan: makes the requests there.
    """

    def __init__(self, near: Supply, far: Supply, plan: Plan, device: torch.device, *, readers: int = 1) -> None:
        """Join what lies near and far.

        Args:
            near: gathered by this process.
            far: read ahead by ``readers`` tasks at a time.
            plan: with ids on any device.
            device: of the training.
            readers: number of tasks.
        """
        gathers_on_host = bool(far) or any(teacher.device != device for teacher in near.teachers.values())
        self.place = torch.device("cpu") if gathers_on_host else device
        self.device = device
        self._near, self._far, self._readers = near, far, readers
        self.plan = plan.to(self.place)
        self._reader: EpochReader | None = None

    @property
    def sources(self) -> str:
        """What batches are made of, for a message."""
        read = ["images that are decoded as they are read"] if self._far.images else []
        read += ["teacher outputs that are read from the cache's disk"] if self._far.teachers else []
        return " and ".join(read) or "what lies in memory"

    def bring(self, positions: Tensor, epoch: int, needs: Needs) -> Batch:
        """Return the batch of int64 [B] positions, all of it gathered now."""
        request = self.plan.request(positions.to(self.place), epoch, needs)
        return self._batch(request, self._far.bring(request))

    def feed(
        self,
        steps: Sequence[Tensor],
        epoch: int,
        needs: Needs,
        following: Callable[[], Sequence[Tensor]] | None = None,
    ) -> Iterator[Batch]:
        """Yield the batches of some steps of an epoch.

        Args:
            steps: int64 [B] positions of each at ``place``.
            epoch: counted from 0.
            needs: which outputs of which views.
            following: gives the steps of the next epoch, which has the same needs, where one is sure to come; what lies
                far is then read ahead beyond the end of this one.
        """
        if not self._far:
            for positions in steps:
                yield self.bring(positions, epoch, needs)
            return
        if self._reader is None:
            from raydistill.training.streaming import EpochReader

            self._reader = EpochReader(self._far, self.plan, self._readers)
        for positions, columns in zip(steps, self._reader.read(steps, epoch, needs, following), strict=True):
            yield self._batch(self.plan.request(positions, epoch, needs), columns)

    def _batch(self, request: Request, brought: Columns) -> Batch:
        columns = self._near.bring(request) | brought
        return Batch(request.to(self.device), {name: moved(values, self.device) for name, values in columns.items()})


def _column(teacher: int, view: int, name: str) -> str:
    return f"{teacher}/{view}/{name}"
