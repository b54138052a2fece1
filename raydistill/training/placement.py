"""Where a run keeps the teacher's stored rows: on the device, once for the node, or on the disk.

``cache.read`` says which, or leaves it to what fits where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from raydistill.data.machine import memory

if TYPE_CHECKING:
    from raydistill.training.material import Material

Way = Literal["resident", "shared", "stream"]

RESIDENT_SHARE = 0.25
"""Of the device's free memory, or on a CPU of the object store, that a table on the device may take."""

STORE_SHARE = 0.75
"""Of a node's object store that images and tables may take; the rest is for what passes through."""

STORE_OF_MEMORY = 0.3
"""Of a machine's memory that Ray gives to its object store, where it is not told otherwise."""


@dataclass(frozen=True)
class Placement:
    """Where the stored rows lie, and why."""

    way: Way
    reason: str

    def place(self, device: torch.device) -> torch.device:
        """Where a table in memory is gathered from: the device, or the memory that the node's processes share."""
        return device if self.way == "resident" else torch.device("cpu")


def usual_store_bytes() -> int:
    """What Ray's object store would hold on this machine."""
    return int(STORE_OF_MEMORY * memory())


def streams(wanted: str, table_bytes: int, image_bytes: int, store_bytes: int) -> bool:
    """Whether tables of so many bytes stay on the disk; images in memory take their part of the object store first."""
    if wanted == "auto":
        return table_bytes > STORE_SHARE * store_bytes - image_bytes
    return wanted == "stream"


def read_from(wanted: str, material: Material, device: torch.device) -> Placement | None:
    """Return where a process that trains on ``device`` reads stored rows; None where no teacher is cached.

    Args:
        wanted: ``cache.read``.
        material: of the run; whether its rows stay on the disk was settled when it was prepared.
        device: of the training.
    """
    if not material.table_bytes:
        return None
    size, store = _text(material.table_bytes), _text(material.store_bytes)
    if wanted != "auto":
        return Placement(_way(wanted), f"cache.read={wanted}; the rows take {size}")
    if material.streams:
        return Placement(
            "stream", f"the rows' {size} beside the images exceed {STORE_SHARE:.0%} of the store's {store}"
        )
    if device.type == "cuda":
        room, where = torch.cuda.mem_get_info(device)[0], "free memory of the device"
    else:
        room, where = material.store_bytes, "object store"
    fits = material.table_bytes <= RESIDENT_SHARE * room
    limit = f"{RESIDENT_SHARE:.0%} of {_text(room)}, the {where}"
    return Placement("resident" if fits else "shared", f"the rows' {size} are {'within' if fits else 'above'} {limit}")


def _way(wanted: str) -> Way:
    ways: dict[str, Way] = {"resident": "resident", "shared": "shared", "stream": "stream"}
    return ways[wanted]


def _text(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
