"""Teachers are ranked and compared by their caches alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from raydistill.chooser import difference, rank
from raydistill.cli import app
from raydistill.config import Experiment
from raydistill.errors import CacheError, ConfigError
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.teachers.cache.read import TeacherCache
from tests.teachers.stored import store


@pytest.fixture(scope="module")
def ignorant(taught: Experiment, tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    """The cache of a narrower teacher that has not learnt anything."""
    weights = tmp_path_factory.mktemp("ignorant") / "teacher.safetensors"
    torch.manual_seed(1)
    save_weights(build_model("resnet8", 10, in_channels=1), weights)
    return store(taught.override({"teacher.weights": str(weights), "teacher.model": "resnet8"}))


@pytest.fixture
def config(taught: Experiment, tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(taught.to_yaml())
    return path


def test_teacher_that_has_learnt_ranks_first(
    taught: Experiment, caches: dict[str, TeacherCache], ignorant: TeacherCache, config: Path
) -> None:
    paths = [str(ignorant.path), str(caches["float16"].path), str(caches["int8"].path)]
    result = CliRunner().invoke(app, ["cache", "rank", str(config), *paths, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["fitted"] + found["held_out"], found["output"]) == (240, "embedding")
    assert {one["path"] for one in found["candidates"][:2]} == {paths[1], paths[2]}
    first, *_, last = found["candidates"]
    assert (last["path"], last["model"]) == (paths[0], "resnet8")
    assert first["score"] > last["score"] + 5
    for one in found["candidates"]:
        assert one["score"] == pytest.approx((one["knn"] + one["linear"] + one["clusters"]) / 3)
        assert all(0 <= one[name] <= 100 for name in ("knn", "linear", "clusters"))


def test_difference_of_teachers(caches: dict[str, TeacherCache], ignorant: TeacherCache) -> None:
    exact, close = (caches[name].path for name in ("float32", "int8"))
    same = difference(exact, exact)
    assert (same.overlap, same.cka) == pytest.approx((1.0, 1.0))
    near, far = difference(exact, close, k=5), difference(exact, ignorant.path, k=5)
    assert 0.9 < near.overlap <= 1.0
    assert near.cka > 0.999
    assert far.overlap < near.overlap
    assert far.cka < near.cka
    assert far.chance == pytest.approx(5 / 239)
    told = CliRunner().invoke(app, ["cache", "diff", str(exact), str(close), "-k", "5", "--json"])
    assert json.loads(told.stdout.splitlines()[-1])["overlap"] == pytest.approx(near.overlap)


def test_what_cannot_be_ranked_is_told(taught: Experiment, caches: dict[str, TeacherCache]) -> None:
    path = caches["float16"].path
    with pytest.raises(CacheError, match="not a cache of the images"):
        rank(taught.override({"data.subset": 200}), [path])
    with pytest.raises(CacheError, match="no output 'features/1'"):
        rank(taught, [path], output="features/1")
    with pytest.raises(ConfigError, match="at least one cache"):
        rank(taught, [])
    with pytest.raises(ConfigError, match="-k 240"):
        difference(path, path, k=240)
    other = store(taught.override({"data.subset": 120, "cache.views": 0}))
    with pytest.raises(CacheError, match="different images"):
        difference(path, other.path)
    result = CliRunner().invoke(app, ["eval", str(path)])
    assert result.exit_code == 2
    assert "raydistill cache rank CONFIG" in result.output
