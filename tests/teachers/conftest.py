"""One small cache with two augmented views, built once through Ray."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import Experiment
from raydistill.data.datasets import ImageSet, load_train
from raydistill.teachers.cache import build as building
from raydistill.teachers.cache.build import BuildReport, build_cache
from raydistill.teachers.cache.read import TeacherCache
from tests.conftest import digits, teaching
from tests.teachers.stored import learnt, store

SHARD_ROWS = 100
VIEWS = 2
ENCODINGS: dict[str, dict[str, Any]] = {
    "float16": {},
    "int8": {"dtype": "int8"},
    "zstd": {"compression": "zstd"},
    "top3": {"top_k": 3},
    "top3_int8_zstd": {"top_k": 3, "dtype": "int8", "compression": "zstd"},
}


@dataclass(frozen=True)
class Built:
    """A finished cache with what it was built from."""

    experiment: Experiment
    images: ImageSet
    report: BuildReport

    @property
    def path(self) -> Path:
        return Path(self.report.path)

    def copy(self, folder: Path) -> Built:
        """The same cache below another folder, to be damaged."""
        root = folder / "cache"
        shutil.copytree(self.path.parent, root)
        report = BuildReport(**{**vars(self.report), "path": str(root / self.path.name)})
        return Built(self.experiment.override({"cache.root": str(root)}), self.images, report)


def refuse_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test where rows are computed, which takes Ray."""

    def fail(*_: object) -> None:
        raise AssertionError("Ray was asked")

    monkeypatch.setattr(building, "_computed", fail)


def small(folder: Path, weights: Path, **cache: Any) -> Experiment:
    """240 digits, three shards for each of three views, batches that do not divide a shard."""
    section = {"root": str(folder / "cache"), "shard_rows": SHARD_ROWS, "views": VIEWS, **cache}
    return digits(
        folder,
        teacher=teaching(weights) | {"batch_size": 32},
        data={"name": "digits", "subset": 240, "validation": 0.2, "augment": {"crop": 1, "flip": 0.5}},
        methods={"kd": {}},
        cache=section,
    )


def build(experiment: Experiment) -> Built:
    return Built(experiment, load_train(experiment.data), build_cache(experiment))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, teacher_weights: Path, ray_session: None) -> Built:
    """Two augmented views in float16."""
    return build(small(tmp_path_factory.mktemp("built"), teacher_weights))


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory, teacher_weights: Path, ray_session: None) -> Built:
    """The evaluation view alone in float32, with a feature map."""
    outputs = ["logits", "embedding", "features/2"]
    folder = tmp_path_factory.mktemp("exact")
    return build(small(folder, teacher_weights, dtype="float32", views=0, outputs=outputs))


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """A teacher that was trained for a moment, with one augmented view; nothing is built yet."""
    folder = tmp_path_factory.mktemp("taught")
    weights = folder / "teacher.safetensors"
    experiment = small(folder, weights, views=1)
    learnt(experiment, weights)
    return experiment


@pytest.fixture(scope="session")
def caches(taught: Experiment) -> dict[str, TeacherCache]:
    """Its cache in every encoding, and exactly."""
    sections = {"float32": {"dtype": "float32"}} | ENCODINGS
    return {name: store(taught, **section) for name, section in sections.items()}
