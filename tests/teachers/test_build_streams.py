"""Caches of images that are decoded while the teacher works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raydistill.config import Experiment, parse_experiment
from raydistill.data.ahead import ahead
from raydistill.data.datasets import load_train
from raydistill.data.encoded import EncodedImages
from raydistill.errors import DataError
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.teachers.cache.build import build_cache
from raydistill.teachers.cache.manifest import SHARDS
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.request import requested
from raydistill.teachers.network import teacher_of
from tests.teachers.stored import store

IMAGES, VIEWS = 60, 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of JPEGs and a teacher for them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "remembered"))
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        path = tmp_path / "images" / "train" / str(number % 3) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 18, 3)).astype(np.uint8)).save(path)
    torch.manual_seed(0)
    save_weights(build_model("resnet8", 3), tmp_path / "teacher.safetensors")
    yield tmp_path


def experiment_of(folder: Path, reading: str, **cache: Any) -> Experiment:
    return parse_experiment(
        {
            "name": "streams",
            "data": {
                "name": "image_folder",
                "root": str(folder / "images"),
                "image_size": 16,
                "reading": reading,
                "augment": {"crop": 2, "flip": 0.5},
            },
            "teacher": {"model": "resnet8", "weights": str(folder / "teacher.safetensors"), "batch_size": 8},
            "student": {"model": "resnet8"},
            "methods": {"kd": {}},
            "cache": {"root": str(folder / reading), "shard_rows": 20, "views": VIEWS, **cache},
        }
    )


def shards_of(cache: TeacherCache) -> dict[str, bytes]:
    return {record.name: (Path(cache.path) / SHARDS / record.name).read_bytes() for record in cache.manifest.shards}


def test_both_kinds_share_one_cache_byte_for_byte(folder: Path) -> None:
    stream, resident = (store(experiment_of(folder, reading)) for reading in ("stream", "resident"))
    assert Path(stream.path).name == Path(resident.path).name
    assert shards_of(stream) == shards_of(resident) and len(shards_of(stream)) == 6


def test_actors_decode_and_tell_how_far_they_are(folder: Path, ray_session: None) -> None:
    told: list[tuple[int, int]] = []
    experiment = experiment_of(folder, "stream", actors=[1, 2], cpus_per_actor=1)
    report = build_cache(experiment, progress=lambda *rows: told.append(rows))
    rows = IMAGES * (VIEWS + 1)
    assert report.forwards == rows and told[0] == (0, rows) and told[-1] == (rows, rows)
    done = [count for count, _ in told]
    assert done == sorted(done)
    expected = store(experiment_of(folder, "resident"))
    built = TeacherCache.open(report.path)
    ids = load_train(experiment.data).ids
    for view in range(VIEWS + 1):
        for name, values in built.read(ids, view=view).items():
            torch.testing.assert_close(values, expected.read(ids, view=view)[name], rtol=2e-3, atol=2e-3)


def test_a_file_that_changes_before_its_turn_stops_the_build(folder: Path) -> None:
    experiment = experiment_of(folder, "stream")
    images = load_train(experiment.data)
    assert isinstance(images, EncodedImages)
    next((folder / "images" / "train" / "0").iterdir()).write_bytes(b"other")
    from raydistill.teachers.cache.compute import Source, compute_shard
    from raydistill.teachers.cache.shards import Place

    network = teacher_of(experiment, images)
    content = requested(experiment, images, network)
    source = Source(content, images, network, 8, torch.device("cpu"))
    with pytest.raises(DataError, match=r"\.jpg: changed since the images were checked"):
        for shard in content.shards():
            compute_shard(source, folder / "none", Place(content.key, *shard))


def test_ahead_keeps_order_bounds_and_errors() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        if number == 5:
            raise ValueError("the fifth")
        return number * number

    coming = ahead(make, iter(range(100)), depth=2)
    assert [next(coming) for _ in range(2)] == [0, 1] and len(made) <= 4
    with pytest.raises(ValueError, match="the fifth"):
        list(coming)
    assert len(made) <= 8
    assert list(ahead(abs, [])) == []
