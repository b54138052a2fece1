"""What decides a cached value decides the cache's name, and nothing else does.

Every field of the sections that a cache could depend on stands in one of the tables here: a new one must be placed.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

from raydistill.cache_config import CacheConfig
from raydistill.config import Experiment, parse_experiment
from raydistill.data.augment_config import (
    AugmentConfig,
    BlurConfig,
    ColorJitterConfig,
    CutMixConfig,
    MixupConfig,
    RandAugmentConfig,
)
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_train
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.network_config import TeacherConfig
from raydistill.teachers.cache.manifest import Content, Manifest
from raydistill.teachers.cache.request import differences, requested
from raydistill.teachers.network import teacher_of

SIZE = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of teachers for one and three channels, and two folders and two files of the same six colour images."""
    place = tmp_path_factory.mktemp("request")
    for channels in (1, 3):
        for seed in (0, 1):
            torch.manual_seed(seed)
            save_weights(build_model("resnet8", 10, in_channels=channels), place / f"{channels}-{seed}.safetensors")
    torch.manual_seed(0)
    save_weights(build_model("resnet14", 10, in_channels=3), place / "deeper.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 10, 3)).astype(np.uint8)
    changed = pixels.copy()
    changed[5, 0, 0, 0] ^= 1
    for name, images in (("same", pixels), ("changed", changed)):
        paths = [place / name / "train" / str(number % 2) / f"{number}.png" for number in range(6)]
        for path, image in zip(paths, images, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        columns = {
            "image": [path.read_bytes() for path in paths],
            "other": [path.read_bytes() for path in reversed(paths)],
            "label": [0, 1, 2, 3, 4, 5],
            "opposite": [5, 4, 3, 2, 1, 0],
            "number": [10, 11, 12, 13, 14, 15],
        }
        pq.write_table(pa.table(columns), place / f"{name}.parquet")
    return place


def coloured(folder: Path) -> Experiment:
    return of(folder, {"name": "synthetic", "synthetic_size": 40, "synthetic_image_size": SIZE})


def of(folder: Path, data: dict[str, Any], channels: int = 3) -> Experiment:
    return parse_experiment(
        {
            "name": "request",
            "data": {"augment": {"crop": 1}, **data},
            "teacher": {"model": "resnet8", "weights": str(folder / f"{channels}-0.safetensors")},
            "student": {"model": "resnet8"},
            "methods": {"kd": {}},
            "cache": {"root": str(folder / "cache"), "views": 1},
        }
    )


def content(experiment: Experiment) -> Content:
    images = load_train(experiment.data.of_teacher)
    return requested(experiment, images, teacher_of(experiment, images))


def told(before: Content, after: Content) -> str:
    """What is said where a cache of one content is there and one of another is asked for."""
    there = Manifest(key=before.key, content=before, versions={}, created="")
    return "; ".join(differences(there, after))


def assert_decides(experiment: Experiment, change: dict[str, Any], named: str) -> None:
    before, after = content(experiment), content(experiment.override(change))
    assert before.folder_name != after.folder_name
    assert f"{named} (there " in told(before, after) or f"{named}." in told(before, after)


MIXUP, CUTMIX = {"alpha": 1.0, "probability": 0.4}, {"alpha": 1.0, "probability": 0.4}
BASE: dict[str, Any] = {
    "crop": 1,
    "flip": 0.5,
    "cutout": 2,
    "randaugment": {"operations": 2, "magnitude": 9},
    "color_jitter": {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.1, "probability": 0.5},
    "grayscale": 0.1,
    "blur": {"probability": 0.5, "sigma": [0.1, 1.0]},
    "solarize": 0.1,
    "mixup": MIXUP,
    "cutmix": CUTMIX,
}
AUGMENT: dict[type[BaseModel], tuple[str, dict[str, Any]]] = {
    AugmentConfig: (
        "",
        {
            "crop": 2,
            "flip": 0.4,
            "cutout": 3,
            "randaugment": None,
            "color_jitter": None,
            "grayscale": 0.2,
            "blur": None,
            "solarize": 0.2,
            "mixup": None,
            "cutmix": None,
        },
    ),
    RandAugmentConfig: ("randaugment.", {"operations": 1, "magnitude": 8}),
    ColorJitterConfig: (
        "color_jitter.",
        {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.2, "probability": 0.4},
    ),
    BlurConfig: ("blur.", {"probability": 0.4, "sigma": [0.1, 1.1]}),
    MixupConfig: ("mixup.", {"alpha": 0.9, "probability": 0.3}),
    CutMixConfig: ("cutmix.", {"alpha": 0.9, "probability": 0.3}),
}
OPERATIONS = [(prefix + name, value) for prefix, changes in AUGMENT.values() for name, value in changes.items()]


def test_every_field_of_the_augmentation_is_placed() -> None:
    for section, (_, changes) in AUGMENT.items():
        assert set(changes) | ({"resized_crop"} & set(section.model_fields)) == set(section.model_fields)


@pytest.mark.parametrize(("field", "value"), OPERATIONS, ids=[field for field, _ in OPERATIONS])
def test_each_operation_decides(folder: Path, field: str, value: Any) -> None:
    experiment = coloured(folder).override({"data.augment": BASE})
    assert_decides(experiment, {f"data.augment.{field}": value}, f"augmentation.operations.{field}")


def test_resized_crop_decides(folder: Path) -> None:
    experiment = coloured(folder).override({"data.augment": {"resized_crop": [0.5, 1.0]}})
    assert_decides(experiment, {"data.augment.resized_crop": [0.6, 1.0]}, "augmentation.operations.resized_crop")
    assert_decides(experiment, {"data.augment": {}}, "augmentation.operations.resized_crop")


def test_mixing_depends_on_the_training_images(folder: Path) -> None:
    mixing = coloured(folder).override({"data.augment": {"mixup": MIXUP}})
    assert_decides(mixing, {"data.validation": 0.3}, "augmentation.partners.validation")
    assert_decides(mixing, {"data.split_seed": 1}, "augmentation.partners.split_seed")
    apart = {"data.validation": 0.3, "data.split_seed": 1}
    assert content(coloured(folder)).key == content(coloured(folder).override(apart)).key


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "crop": st.integers(0, 3),
                "flip": st.sampled_from([0.0, 0.25, 0.5]),
                "cutout": st.integers(0, 3),
                "solarize": st.sampled_from([0.0, 0.1]),
                "mixup": st.none() | st.fixed_dictionaries({"alpha": st.sampled_from([0.5, 1.0])}),
            },
        ),
        min_size=2,
        max_size=4,
    ),
    st.integers(0, 2),
)
def test_names_are_equal_where_all_that_decides_is(folder: Path, augments: list[dict[str, Any]], views: int) -> None:
    plain = coloured(folder)
    given_views = [plain.override({"data.augment": augment, "cache.views": max(1, views)}) for augment in augments]
    found = [(experiment.data.augment, content(experiment).key) for experiment in given_views]
    for (one, its_key), (other, other_key) in itertools.combinations(found, 2):
        assert (one == other) == (its_key == other_key)


TEACHER = {
    "model": ({"teacher.model": "resnet14", "teacher.weights": "deeper.safetensors"}, "teacher.model"),
    "weights": ({"teacher.weights": "3-1.safetensors"}, "teacher.weights"),
    "taps": ({"teacher.taps": {"features/0": "bn1"}, "cache.outputs": ["logits", "features/0"]}, "teacher.taps"),
}
CACHE = {
    "outputs": (["logits"], "teacher.outputs.embedding"),
    "views": (2, "views"),
    "seed": (1, "augmentation.seed"),
    "dtype": ("int8", "dtype"),
    "compression": ("zstd", "compression"),
    "top_k": (3, "top_k"),
    "shard_rows": (7, "shard_rows"),
}
DECIDES_NOTHING: dict[str, Any] = {
    "name": "other",
    "seed": 5,
    "output": "elsewhere",
    "train.epochs": 9,
    "train.batch_size": 8,
    "student.model": "resnet14",
    "methods": {"crd": {}},
    "scale.workers": 2,
    "evaluate.k": 3,
    "teacher.source": "live",
    "teacher.batch_size": 3,
    "teacher.train": {"epochs": 3},
    "cache.root": "elsewhere",
    "cache.actors": 3,
    "cache.cpus_per_actor": 2,
    "cache.gpus_per_actor": 0.5,
    "cache.read": "stream",
    "cache.outputs": ["embedding", "logits"],
    "data.validation": 0.4,
    "data.split_seed": 1,
    "data.max_errors": 0.5,
    "data.on_error": "skip",
}


def in_folder(folder: Path, change: dict[str, Any]) -> dict[str, Any]:
    return {name: str(folder / value) if name == "teacher.weights" else value for name, value in change.items()}


@pytest.mark.parametrize(("change", "named"), TEACHER.values(), ids=TEACHER)
def test_each_field_of_the_teacher_decides(folder: Path, change: dict[str, Any], named: str) -> None:
    assert_decides(coloured(folder), in_folder(folder, change), named)


def test_a_tap_moved_decides(folder: Path) -> None:
    tapped = coloured(folder).override(
        {"teacher.taps": {"features/0": "layer2"}, "cache.outputs": ["features/0", "logits"]}
    )
    assert_decides(tapped, {"teacher.taps": {"features/0": "layer3"}}, "teacher.taps.features/0")
    more = {"teacher.taps": {"features/0": "layer2", "features/1": "layer3"}}
    assert content(tapped).key == content(tapped.override(more)).key


def test_a_layout_decides_through_the_weights_alone(folder: Path) -> None:
    """The fingerprint is of the loaded tensors: a file in another layout with the same tensors is the same teacher."""
    experiment = coloured(folder)
    state = teacher_of(experiment, load_train(experiment.data)).state_dict()
    torch.save({"model": state}, folder / "crd.pth")
    other = {"teacher.weights": str(folder / "crd.pth")}
    assert content(experiment).key == content(experiment.override(other)).key


@pytest.mark.parametrize(("field", "value", "named"), [(name, *rest) for name, rest in CACHE.items()], ids=CACHE)
def test_each_field_of_the_cache_decides(folder: Path, field: str, value: Any, named: str) -> None:
    assert_decides(coloured(folder), {f"cache.{field}": value}, named)


@pytest.mark.parametrize(("field", "value"), DECIDES_NOTHING.items(), ids=DECIDES_NOTHING)
def test_what_decides_no_value(folder: Path, field: str, value: Any) -> None:
    experiment = coloured(folder)
    assert content(experiment.override({field: value})).folder_name == content(experiment).folder_name


def test_every_field_of_teacher_and_cache_is_placed() -> None:
    elsewhere = {"layout"}  # a test of its own
    free = {name.partition(".") for name in DECIDES_NOTHING}
    for section, name, deciding in ((TeacherConfig, "teacher", TEACHER), (CacheConfig, "cache", CACHE)):
        placed = set(deciding) | {field for prefix, _, field in free if prefix == name} | elsewhere
        assert set(section.model_fields) <= placed


SYNTHETIC = {"name": "synthetic", "synthetic_size": 40, "synthetic_image_size": SIZE}
FILES = {"name": "parquet", "root": "same.parquet", "image_size": SIZE}
IMAGES = {"name": "image_folder", "root": "same", "image_size": SIZE}
DATA = {
    "name": (SYNTHETIC, {"name": "digits", "synthetic_size": 2000, "synthetic_image_size": 32}, "data.fingerprint"),
    "subset": (SYNTHETIC, {"subset": 39}, "data.count"),
    "mean": (SYNTHETIC, {"mean": [0.4], "std": [0.5]}, "preprocessing.mean"),
    "std": (SYNTHETIC, {"mean": [0.5], "std": [0.4]}, "preprocessing.std"),
    "synthetic_size": (SYNTHETIC, {"synthetic_size": 41}, "data.count"),
    "synthetic_classes": (SYNTHETIC, {"synthetic_classes": 9}, "data.fingerprint"),
    "synthetic_image_size": (SYNTHETIC, {"synthetic_image_size": 12}, "preprocessing.image_shape"),
    "root": (FILES, {"root": "changed.parquet"}, "data.fingerprint"),
    "root of a folder": (IMAGES, {"root": "changed"}, "data.fingerprint"),
    "image_size": (FILES, {"image_size": 9}, "preprocessing.image_shape"),
    "image_column": (FILES, {"image_column": "other"}, "data.fingerprint"),
    "id_column": (FILES, {"id_column": "number"}, "data.ids"),
}
ELSEWHERE = {"synthetic_channels", "modalities", "augment", "num_classes"}  # the last two are the teacher's
DATA_DECIDES_NOTHING = {
    "reading": (FILES, {"reading": "stream"}),
    "spool": (FILES, {"reading": "stream", "spool": "copies"}),
    "label_column": (FILES, {"label_column": "opposite"}),
    "download": None,
    "validation": None,
    "split_seed": None,
    "max_errors": None,
    "on_error": None,
}


def seen_by_seeded(folder: Path, data: dict[str, Any]) -> Experiment:
    """An experiment whose teacher fits any number of classes and channels."""
    data = placed_in(folder, data)
    return of(folder, data).override({"teacher.model": "tests.models.foreign:seeded", "teacher.weights": None})


def placed_in(folder: Path, data: dict[str, Any]) -> dict[str, Any]:
    return {name: str(folder / value) if name in ("root", "spool") else value for name, value in data.items()}


@pytest.mark.parametrize(("base", "change", "named"), DATA.values(), ids=DATA)
def test_each_field_of_the_data_decides(folder: Path, base: dict[str, Any], change: dict[str, Any], named: str) -> None:
    before, after = (content(seen_by_seeded(folder, data)) for data in (base, base | change))
    assert before.folder_name != after.folder_name
    assert f"{named} (there " in told(before, after)


@pytest.mark.parametrize(("base", "change"), [case for case in DATA_DECIDES_NOTHING.values() if case])
def test_what_decides_no_pixels(folder: Path, base: dict[str, Any], change: dict[str, Any]) -> None:
    before, after = (content(seen_by_seeded(folder, data)) for data in (base, base | change))
    assert before.folder_name == after.folder_name


def test_the_students_side_decides_nothing(folder: Path) -> None:
    sides = {"student": "chrominance", "teacher": "luminance"}
    before = content(seen_by_seeded(folder, SYNTHETIC | {"modalities": sides}))
    for change, named in (
        ({"student": "rgb"}, ""),
        ({"teacher": "chrominance"}, "data.fingerprint (there "),
        ({"teacher_mean": [0.4], "teacher_std": [0.5]}, "preprocessing.mean (there "),
    ):
        after = content(seen_by_seeded(folder, SYNTHETIC | {"modalities": sides | change}))
        assert (before.folder_name == after.folder_name) == (not named)
        assert named in told(before, after)


def test_every_field_of_the_data_is_placed() -> None:
    assert set(DataConfig.model_fields) <= set(DATA) | ELSEWHERE | set(DATA_DECIDES_NOTHING)
