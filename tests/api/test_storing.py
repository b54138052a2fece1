"""Images of any data set, written once and read back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raydistill.api.storing import store_images
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train
from raydistill.errors import DataError

COLOURS = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (700, 3, 4, 5), dtype=np.uint8))
LABELS = torch.arange(700) % 7
PLAIN = {"name": "parquet", "image_size": None, "mean": [0.0], "std": [1.0]}
GREY = {"student": "grey", "teacher": "grey", "teacher_mean": [0.0], "teacher_std": [1.0]}


def test_images_and_labels_come_back_byte_for_byte(tmp_path: Path) -> None:
    stored = store_images((COLOURS, LABELS), (COLOURS[:9], LABELS[:9]), tmp_path)
    assert (stored.shape, stored.classes) == ((3, 4, 5), 7)
    config = DataConfig.model_validate(PLAIN | {"root": str(stored.folder)})
    train, test = load_train(config), load_test(config)
    assert torch.equal(train.images, COLOURS) and torch.equal(test.images, COLOURS[:9])
    assert train.labels is not None and torch.equal(train.labels, LABELS)
    assert torch.equal(train.ids, torch.arange(700))


def test_grey_images_come_back_with_one_channel(tmp_path: Path) -> None:
    stored = store_images(COLOURS[:, :1], None, tmp_path)
    assert (stored.shape, stored.classes) == ((1, 4, 5), 0)
    config = DataConfig.model_validate(PLAIN | {"root": str(stored.folder), "modalities": GREY})
    train = load_train(config)
    assert torch.equal(train.images, COLOURS[:, :1])
    assert (train.labels, train.mean, train.std) == (None, (0.0,), (1.0,))


def test_the_same_content_is_written_once_and_other_content_elsewhere(tmp_path: Path) -> None:
    first = store_images((COLOURS, LABELS), None, tmp_path)
    about = (first.folder / "train.parquet").stat()
    again = store_images(list(zip(COLOURS, LABELS, strict=True)), None, tmp_path)
    assert again == first
    assert (first.folder / "train.parquet").stat() == about
    others = [store_images((COLOURS, LABELS.roll(1)), None, tmp_path), store_images(COLOURS, None, tmp_path)]
    assert len({first.folder, *(other.folder for other in others)}) == 3
    assert sorted(tmp_path.iterdir()) == sorted({first.folder, *(other.folder for other in others)})


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (COLOURS[:3], COLOURS[:3, :1], "test: images of 1 channels, but 3 in dataset"),
        ((COLOURS[:3], LABELS[:3]), COLOURS[:3], "test: labels in one of dataset and test alone"),
        (COLOURS[:3], [], "test: no image in it"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path: Path, train: object, test: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        store_images(train, test, tmp_path)
    assert not list(tmp_path.iterdir())
