"""One finished run whose student has learnt a little, for all tests of what it is worth elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exporting.folders import make_trained_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = {"name": "synthetic", "synthetic_size": 80, "validation": 0.2, "synthetic_classes": 3}
    return make_trained_run(tmp_path_factory.mktemp("downstream"), steps=15, data=data)
