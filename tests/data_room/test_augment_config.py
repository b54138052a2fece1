"""What is switched off leaves no trace in a cache's key, and mistakes are told before any image is read."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raydistill.config_errors import explain
from raydistill.data.augment_config import AugmentConfig
from raydistill.data.config import DataConfig
from raydistill.data.views import render
from raydistill.teachers.cache.manifest import Augmentation, Content, DataContent, Preprocessing, TeacherContent

ON: list[dict[str, Any]] = [
    {"randaugment": {}},
    {"color_jitter": {"hue": 0.1}},
    {"grayscale": 0.1},
    {"blur": {}},
    {"solarize": 0.1},
]


def test_old_operations_are_recorded_as_before() -> None:
    """Word for word what version 0.1 wrote into manifests, from which the cache's key is made."""
    assert AugmentConfig().operations == {"crop": 0, "flip": 0.0, "resized_crop": None, "cutout": 0}
    old = AugmentConfig(resized_crop=(0.2, 1.0), flip=0.5, cutout=3)
    assert old.operations == {"crop": 0, "flip": 0.5, "resized_crop": [0.2, 1.0], "cutout": 3}
    assert list(AugmentConfig().operations) == ["crop", "flip", "resized_crop", "cutout"]


@pytest.mark.parametrize(
    ("fields", "key", "pixels"),
    [
        ({}, "407b5391918dbb365455", "b5fe5b12515a81b8"),
        ({"crop": 3, "flip": 0.5, "cutout": 5}, "ddb964025e762a9bae5d", "d41a8c2e63c52aec"),
        ({"resized_crop": (0.2, 1.0), "flip": 0.5}, "60090263993974602bb2", "a185e2b6bbb8faed"),
    ],
)
def test_old_caches_are_found_and_show_the_same_pixels(fields: dict[str, Any], key: str, pixels: str) -> None:
    """Key and pixels as commit 473e78e gave them, before colours, filters and RandAugment."""
    augment = AugmentConfig(**fields)
    content = Content(
        data=DataContent(fingerprint="f" * 64, count=500, ids="1" * 64),
        teacher=TeacherContent(model="resnet14", weights="2" * 64, outputs={"embedding": (64,), "logits": (10,)}),
        preprocessing=Preprocessing(mean=(0.5,), std=(0.25,), image_shape=(1, 8, 8)),
        augmentation=Augmentation(operations=augment.operations, seed=3),
        views=2,
        dtype="float16",
        shard_rows=100,
    )
    assert content.key == key
    numbers = torch.arange(12 * 3 * 14 * 11) * 2654435761
    images = (numbers // 65536 % 256).byte().reshape(12, 3, 14, 11)
    ids, moments = torch.arange(12), {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    rows = render(images, ids * 977, ids % 4, augment=augment, seed=5, **moments)
    assert hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest()[:16] == pixels


@pytest.mark.parametrize("fields", ON)
def test_new_operations_are_recorded_and_read_back(fields: dict[str, Any]) -> None:
    augment = AugmentConfig(**fields)
    assert augment.changes and augment.changes_colours
    (name,) = fields
    assert set(augment.operations) == {"crop", "flip", "resized_crop", "cutout", name}
    assert AugmentConfig(**json.loads(json.dumps(augment.operations))) == augment
    assert AugmentConfig.model_validate(augment.model_dump()) == augment
    assert hash(augment) == hash(AugmentConfig(**augment.operations))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"blur": {"sigma": [2.0, 1.0]}}, "augment.blur.sigma = [2.0, 1.0]: sigma takes two deviations in pixels"),
        ({"blur": {"sigma": [0.0, 1.0]}}, "0 < low <= high <= 100"),
        ({"blur": {"probability": 2}}, "augment.blur.probability = 2: must be less than or equal to 1"),
        ({"color_jitter": {}}, "augment.color_jitter: set at least one of brightness, contrast, saturation and hue"),
        ({"color_jitter": {"hue": 0.6}}, "augment.color_jitter.hue = 0.6: must be less than or equal to 0.5"),
        ({"color_jitter": {"colour": 1}}, "augment.color_jitter.colour: unknown key"),
        ({"randaugment": {"operations": 0}}, "augment.randaugment.operations = 0: must be greater than or equal to 1"),
        ({"randaugment": {"magnitude": 31}}, "augment.randaugment.magnitude = 31: must be less than or equal to 30"),
        ({"grayscale": -1}, "augment.grayscale = -1"),
        ({"solarize": 1.5}, "augment.solarize = 1.5"),
        ({"grayscale": 0.1}, "augment.grayscale: needs colours, which images of the data set 'digits' lack; set it to"),
        ({"color_jitter": {"saturation": 1, "contrast": 1}}, "augment.color_jitter.saturation: needs colours"),
        ({"color_jitter": {"hue": 0.1}}, "augment.color_jitter.hue: needs colours"),
    ],
)
def test_mistakes_are_told_with_their_path(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate({"name": "digits", "augment": fields})
    assert line in "\n".join(explain(caught.value, DataConfig))


def test_both_sides_need_the_colours() -> None:
    values = {"name": "synthetic", "augment": {"grayscale": 0.2}}
    assert DataConfig.model_validate(values).augment.grayscale == 0.2
    with pytest.raises(ValidationError, match=r"augment\.grayscale: .* modality 'luminance' lack"):
        DataConfig.model_validate(values | {"modalities": {"student": "rgb", "teacher": "luminance"}})
    with pytest.raises(ValidationError, match="data set 'synthetic' lack"):
        DataConfig.model_validate(values | {"synthetic_channels": 1})
    grey = {"color_jitter": {"brightness": 0.4}, "solarize": 0.2, "blur": {}, "randaugment": {}}
    assert DataConfig.model_validate({"name": "digits", "augment": grey}).augment.changes_colours
