"""Every method computes the same from a cached teacher as from a live one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.methods.registry import METHODS, method_class
from tests.conftest import teaching
from tests.methods.cases import SMALL
from tests.training.sessions import session_of
from tests.training.test_every_method import experiment_of

OUTPUTS = ["logits", "embedding", *(f"features/{stage}" for stage in range(4)), *(f"preact/{s}" for s in (1, 2, 3))]
TAUGHT = [name for name in METHODS if method_class(name)(**SMALL.get(name, {})).needs().teacher]
DRAWN = {name for name in TAUGHT if method_class(name)(**SMALL.get(name, {})).needs().draws}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, teacher_weights: Path, ray_session: None) -> dict[str, Any]:
    """A cache of every output and four views."""
    from raydistill.teachers.cache.build import build_cache

    folder = tmp_path_factory.mktemp("cached")
    section = {"root": str(folder), "outputs": OUTPUTS, "views": 4, "dtype": "float32"}
    build_cache(experiment_of("kd", folder, teaching(teacher_weights), cache=section))
    return section


@pytest.mark.parametrize("name", sorted({*TAUGHT} - DRAWN))
def test_cached_equals_live(name: str, tmp_path: Path, teacher_weights: Path, cache: dict[str, Any]) -> None:
    cached = session_of(experiment_of(name, tmp_path, teaching(teacher_weights), cache=cache))
    live_section = teaching(teacher_weights) | {"source": "live"}
    live = session_of(experiment_of(name, tmp_path, live_section, cache=cache))
    step = cached.draw(torch.arange(16), 0)
    (network,) = live.teachers
    outputs = network.outputs(torch.arange(16), {}, step.views)
    taught = type(step)(views=step.views, student={}, teachers=(outputs,), columns=step.columns)
    expected, found = live.distiller(taught).total, cached.distiller(step).total
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert cached.teacher_forwards == 0
