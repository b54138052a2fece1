"""Reference values from public implementations, kept in ``tests/data/golden``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_FOLDER = Path(__file__).parent / "data" / "golden"


def golden_path(name: str) -> Path:
    """Return the path of a file of reference values, such as ``models.npz``."""
    return _FOLDER / name


@cache
def golden(name: str) -> dict[str, Any]:
    """Load a file of reference values: arrays by name from ``.npz``, the content of a ``.json``."""
    path = golden_path(name)
    if path.suffix == ".json":
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
