"""Several teachers: each method has a term for each of them, each teacher a cache of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.config import Experiment
from raydistill.errors import CacheError, ConfigError
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.training.loop import fit
from raydistill.training.material import prepare
from tests.conftest import digits, teaching
from tests.training.sessions import session_of

METHODS = {"ce": {}, "crd": {"negatives": 32, "dimension": 16}}


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A second teacher of another architecture and width."""
    torch.manual_seed(8)
    path = tmp_path_factory.mktemp("other") / "model.safetensors"
    save_weights(build_model("wrn_16_2", 10, in_channels=1), path)
    return {"model": "wrn_16_2", "weights": str(path)}


def ensemble(folder: Path, weights: Path, other: dict[str, Any], source: str, **sections: Any) -> Experiment:
    first = teaching(weights) | {"source": source}
    return digits(
        folder, **({"teacher": first, "ensemble": [other | {"source": source}], "methods": METHODS} | sections)
    )


def test_a_term_for_each_teacher(tmp_path: Path, teacher_weights: Path, other_teacher: dict[str, Any]) -> None:
    """CRD, Eq. 21: the losses with all teachers are summed; each pair has embeddings and banks of its own."""
    session = session_of(ensemble(tmp_path, teacher_weights, other_teacher, "live"))
    parts = session.distiller.objective.parts
    assert set(parts) == {"ce", "crd/0", "crd/1"}
    assert [parts[f"crd/{number}"]["teacher"].in_features for number in (0, 1)] == [64, 128]
    loss = session.model(session.draw(torch.arange(16), 0))
    assert loss.terms["crd"] == loss.terms["crd/0"] + loss.terms["crd/1"]
    torch.testing.assert_close(loss.total.detach(), loss.terms["ce"] + 0.8 * loss.terms["crd"])
    fit(session, lambda metrics, session: session.history.append(metrics))
    assert session.teacher_forwards == 2 * 16 + 2 * 2 * 192
    assert {"train/crd", "train/crd/0", "train/crd/1"} < set(session.history[-1])


@pytest.mark.slow
def test_each_teacher_has_its_own_cache(
    tmp_path: Path, teacher_weights: Path, other_teacher: dict[str, Any], ray_session: None
) -> None:
    from raydistill.teachers.cache.build import build_cache

    cache = {"root": str(tmp_path / "cache"), "dtype": "float32"}
    experiment = ensemble(tmp_path, teacher_weights, other_teacher, "cache", cache=cache)
    build_cache(experiment.for_teacher(0))
    with pytest.raises(CacheError, match="wrn_16_2"):
        prepare(experiment)
    report = build_cache(experiment)
    assert (report.computed_rows, report.ensemble[0].computed_rows) == (0, 240)
    assert report.path != report.ensemble[0].path
    session = session_of(experiment)
    step = session.draw(torch.arange(32), 0)
    assert [outputs[0]["embedding"].shape[1] for outputs in step.teachers] == [64, 128]
    fit(session, lambda metrics, session: None)
    assert session.teacher_forwards == 0


def test_further_teachers_need_a_first(tmp_path: Path, other_teacher: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="ensemble: further teachers beside `teacher`"):
        digits(tmp_path, ensemble=[other_teacher])
