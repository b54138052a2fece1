"""One trained run, and its export to each format, for all tests that only look at them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from raydistill.exporting.export import export_run
from tests.exporting.folders import make_trained_run

Exports = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trained_run(tmp_path_factory.mktemp("exporting"))


@pytest.fixture(scope="session")
def exported(run: Path) -> Exports:
    """Exports the run to a format at the first call; ONNX with its int8 version."""
    return cache(lambda format: export_run(run, format, quantised="int8" if format == "onnx" else None))
