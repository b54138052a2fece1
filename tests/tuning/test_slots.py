"""How many trials run at a time, by what a Ray has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from raydistill.errors import RunError
from raydistill.tuning.sweep import slots_of
from tests.conftest import digits

SPACE = {"train.optimizer.lr": {"loguniform": [0.01, 0.1]}}


@pytest.mark.parametrize(
    ("tune", "scale", "slots"),
    [
        ({}, {}, 16),
        ({"gpus_per_trial": 1.0}, {}, 2),
        ({"gpus_per_trial": 0.25}, {}, 8),
        ({"gpus_per_trial": 0.3}, {}, 6),
        ({"gpus_per_trial": 0.4}, {}, 4),
        ({"gpus_per_trial": 0.1}, {}, 16),
        ({"gpus_per_trial": 0.1, "cpus_per_trial": 0.5}, {}, 20),
        ({"gpus_per_trial": 0.25, "concurrent": 3}, {}, 3),
        ({}, {"workers": 2, "use_gpu": True}, 1),
        ({}, {"workers": 2, "use_gpu": False, "cpus_per_worker": 4}, 2),
    ],
)
def test_trials_share_gpus_by_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: dict[str, Any], scale: dict[str, Any], slots: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    experiment = digits(tmp_path, tune={"space": SPACE, **tune}, scale=scale)
    assert slots_of(experiment, {"reads_ahead": False}) == slots


def test_a_trial_that_fits_nowhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    experiment = digits(tmp_path, tune={"space": SPACE, "gpus_per_trial": 0.5})
    with pytest.raises(RunError, match=r"a trial needs 1 CPUs and 0\.5 GPUs, but Ray has 2 and 0 to give"):
        slots_of(experiment, {"reads_ahead": False})
