"""DataConfig tells mistakes before any file is read and without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from raydistill.data.augment_config import AugmentConfig
from raydistill.data.config import DataConfig


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "cifar_100", "root": "x"}, "did you mean 'cifar100'"),
        ({"name": "cifar_100", "root": "x"}, "known are cars196, cifar10, cifar100, cub200, digits"),
        ({"name": "cifar10"}, "root: the data set 'cifar10' needs the folder"),
        ({"name": "digits", "validation": 0.0}, "validation"),
        ({"name": "digits", "validation": 1.0}, "validation"),
        ({"name": "digits", "validation": float("nan")}, "finite"),
        ({"name": "digits", "subset": 0}, "subset"),
        ({"name": "digits", "image_size": 32}, "image_size: the data set 'digits' does not take it"),
        ({"name": "image_folder", "root": "x", "download": True}, "download: the data set 'image_folder'"),
        ({"name": "digits", "mean": [0.5]}, "give both or neither"),
        ({"name": "digits", "mean": [0.5], "std": [0.5, 0.5]}, "are not alike"),
        ({"name": "digits", "mean": [0.5], "std": [0.0]}, "std: every channel"),
        ({"name": "digits", "typo": 1}, "typo"),
        ({"name": "digits", "augment": {"crop": -1}}, "augment.crop"),
        ({"name": "digits", "augment": {"resized_crop": [0.5, 0.2]}}, "0 < low <= high <= 1"),
        ({"name": "digits", "augment": {"resized_crop": [0.5, 1], "crop": 4}}, "exclude each other"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(fields)
    assert words in str(caught.value)


def test_a_resolved_configuration_reads_back() -> None:
    config = DataConfig(name="parquet", root="x", image_size=32, augment=AugmentConfig(crop=2, flip=0.5))
    assert DataConfig.model_validate(config.model_dump()) == config
    digits = DataConfig(name="digits", augment=AugmentConfig(resized_crop=(0.5, 1.0)))
    assert DataConfig.model_validate_json(digits.model_dump_json()) == digits


def test_names_and_configuration_load_no_torch() -> None:
    code = (
        "import sys, raydistill.data.config, raydistill.data.datasets;"
        "import raydistill.data.views, raydistill.data.resident;"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'PIL', 'pyarrow', 'ray') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
