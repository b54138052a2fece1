"""How a checkpoint lies on a disk, known without torch: a folder of a state and of the record that seals it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "checkpoint_"
FILE = "state.pt"
RECORD = "checkpoint.json"


def check_seal(record: Mapping[str, Any], size: int, xxh3: str) -> None:
    """Raise ``ValueError`` where a state of ``size`` bytes and that XXH3-128 is not the one of its record."""
    if size != record["bytes"]:
        raise ValueError(f"{FILE} has {size} bytes instead of {record['bytes']}")
    if xxh3 != record["xxh3"]:
        raise ValueError(f"{FILE} does not have the checksum in {RECORD}")
