"""The colours of ``data.augment`` reach every view that a step draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.config import Experiment
from raydistill.training.assembly import assemble
from raydistill.training.material import from_arrays, prepare, to_arrays
from raydistill.training.session import Session
from tests.conftest import digits, teaching

METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "dino": {"local_crops": 2},
    "moco_v2": {"queue": 64},
    "protocpc": {"mode": "self"},
    "swav": {"local_crops": 2},
}


def session_of(experiment: Experiment) -> Session:
    return assemble(experiment, from_arrays(to_arrays(prepare(experiment))), device=torch.device("cpu"))


@pytest.mark.parametrize("name", METHODS)
def test_views_of_a_step_are_recoloured(name: str, tmp_path: Path) -> None:
    data = {
        "name": "synthetic",
        "synthetic_size": 60,
        "synthetic_image_size": 20,
        "validation": 0.2,
        "augment": {"grayscale": 1.0, "blur": {"probability": 1.0}, "color_jitter": {"hue": 0.1}, "solarize": 0.5},
    }
    experiment = digits(tmp_path, data=data, methods={name: METHODS[name]})
    session = session_of(experiment)
    step = session.draw(torch.arange(12), 0)
    again = session.draw(torch.arange(6, 12), 0)
    assert step.views
    for view, rows in step.views.items():
        torch.testing.assert_close(rows[:, 0], rows[:, 2], atol=1e-5, rtol=0)
        assert torch.equal(again.views[view], rows[6:])


def test_a_cached_teacher_saw_the_students_pixels(tmp_path: Path, teacher_weights: Path, ray_session: None) -> None:
    from raydistill.teachers.cache.build import build_cache

    augment = {
        "crop": 1,
        "randaugment": {"operations": 2, "magnitude": 12},
        "color_jitter": {"brightness": 0.4, "contrast": 0.4},
        "blur": {"sigma": [0.3, 1.0]},
        "solarize": 0.2,
        "mixup": {"probability": 0.4},
        "cutmix": {"probability": 0.4},
    }
    experiment = digits(
        tmp_path,
        teacher=teaching(teacher_weights) | {"source": "cache"},
        data={"name": "digits", "subset": 60, "validation": 0.2, "augment": augment},
        methods={"kd": {}},
        cache={"root": str(tmp_path / "cache"), "views": 2, "dtype": "float32"},
    )
    build_cache(experiment)
    session = session_of(experiment)
    live = session_of(experiment.override({"teacher.source": "live"})).teachers[0]
    positions = torch.arange(40)
    for epoch in (0, 1):
        step = session.draw(positions, epoch)
        # `test_views_of_a_step_are_recoloured` and `test_mixing` show that the student's pixels are changed.
        computed = live.outputs(positions, {}, step.views)
        torch.testing.assert_close(step.teacher[0]["logits"], computed[0]["logits"], rtol=1e-4, atol=1e-5)
