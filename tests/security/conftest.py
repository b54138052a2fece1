"""The file by which a pickle tells that its code was run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def sprung(tmp_path: Path) -> Iterator[Path]:
    """The file that a trap writes; it must never be there."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists(), "a pickle's code was run"
