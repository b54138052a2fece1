"""Named sets, their splits and what is said of damaged files."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydistill.data import binary
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train, split_train
from raydistill.data.image_set import choose_stratified
from raydistill.errors import DataError
from tests.data_room.files import fashion_mnist_root, idx_bytes, write_folder, write_mnist


def test_real_fashion_mnist() -> None:
    config = DataConfig(name="fashion_mnist", root=fashion_mnist_root())
    train, test = load_train(config), load_test(config)
    assert train.images.shape == (60_000, 1, 28, 28) and test.images.shape == (10_000, 1, 28, 28)
    assert train.images.dtype == torch.uint8 and train.labels is not None
    assert torch.bincount(train.labels).tolist() == [6000] * 10
    pixels = train.images.double() / 255
    assert float(pixels.mean()) == pytest.approx(train.mean[0], abs=1e-4)
    assert float(pixels.std()) == pytest.approx(train.std[0], abs=1e-4)
    splits = split_train(train, config)
    assert len(splits.train) == 54_000 and splits.validation.labels is not None
    assert torch.bincount(splits.validation.labels).tolist() == [600] * 10


def test_digits_split_is_fixed_and_stratified() -> None:
    train, test = load_train(DataConfig(name="digits")), load_test(DataConfig(name="digits", split_seed=9))
    assert train.shape == (1, 8, 8) and len(train) + len(test) == 1797 and len(test) == 359
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    assert int(train.images.max()) == 255 and test.labels is not None
    assert int(torch.bincount(test.labels).min()) >= 34
    pixels = train.images.double() / 255
    assert float(pixels.mean()) == pytest.approx(train.mean[0], abs=0.003)
    assert float(pixels.std()) == pytest.approx(train.std[0], abs=0.003)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", [".", "MNIST/raw"])
def test_mnist_files(tmp_path: Path, zipped: bool, folder: str) -> None:
    write_mnist(tmp_path / folder, zipped=zipped)
    config = DataConfig(name="mnist", root=str(tmp_path))
    train, test = load_train(config), load_test(config)
    assert (len(train), len(test)) == (20, 10)
    expected = np.random.default_rng(20).integers(0, 256, (20, 28, 28)).astype(np.uint8)
    assert np.array_equal(train.images.numpy()[:, 0], expected)
    assert train.ids.tolist() == list(range(20))


def test_missing_idx_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_train(DataConfig(name="fashion_mnist", root=str(tmp_path)))
    message = str(caught.value)
    assert str(tmp_path) in message and "train-images-idx3-ubyte" in message
    assert "data.download" in message and "dataset-fashion-mnist" in message


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b[:-3], "expected 15696 bytes for shape [20, 28, 28], found 15693"),
        (lambda b: b + b"x", "expected 15696 bytes for shape [20, 28, 28], found more"),
        (lambda b: b"\x00\x00\x0d\x03" + b[4:], "starts with bytes 00 00 0d 03, expected 00 00 08 03"),
        (lambda b: b[:9], "expected at least 16 bytes, found 9"),
        (lambda b: b"", "not an idx file"),
        (lambda b: b[:4] + b"\xff\xff\xff\xff" + b[8:], "damaged"),
    ],
)
def test_damaged_idx(tmp_path: Path, damage: object, words: str) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        load_train(DataConfig(name="mnist", root=str(tmp_path)))
    assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "checksum", "plain"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    write_mnist(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    changed = {"cut": content[: len(content) // 2], "checksum": content[:-8] + bytes(8), "plain": b"no gzip"}
    path.write_bytes(changed[damage])
    with pytest.raises(DataError, match=r"not a whole gzip file, \d+ bytes found"):
        load_train(DataConfig(name="mnist", root=str(tmp_path)))


def test_idx_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(19)))
    with pytest.raises(DataError, match="19 labels for the 20 images"):
        load_train(DataConfig(name="mnist", root=str(tmp_path)))
    labels.write_bytes(idx_bytes(np.full(20, 10)))
    with pytest.raises(DataError, match="label 10 in a data set of 10 classes"):
        load_train(DataConfig(name="mnist", root=str(tmp_path)))


def test_splits_are_deterministic_disjoint_and_follow_ids() -> None:
    config = DataConfig(name="synthetic", synthetic_size=300, validation=0.2, split_seed=4)
    images = load_train(config)
    splits = split_train(images, config)
    assert sorted([*splits.train.ids.tolist(), *splits.validation.ids.tolist()]) == list(range(300))
    assert splits.validation.ids.tolist() == split_train(images, config).validation.ids.tolist()
    shuffled = images.take(torch.randperm(300))
    assert set(split_train(shuffled, config).validation.ids.tolist()) == set(splits.validation.ids.tolist())
    other = split_train(images, config.model_copy(update={"split_seed": 5}))
    assert other.validation.ids.tolist() != splits.validation.ids.tolist()
    unlabelled = split_train(replace(images, labels=None), config)
    assert len(unlabelled.validation) == 60 and unlabelled.train.labels is None


def test_uneven_classes_share_by_largest_remainder() -> None:
    labels = torch.tensor([0] * 7 + [1] * 6 + [2] * 7)
    mask = choose_stratified(torch.arange(20), labels, 0.5, 0, "test")
    assert int(mask.sum()) == 10
    assert torch.bincount(labels[mask], minlength=3).tolist() == [4, 3, 3]


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_split_that_leaves_nothing_is_an_error(share: float) -> None:
    config = DataConfig(name="synthetic", synthetic_size=10, validation=share)
    with pytest.raises(DataError, match=r"data\.validation: .* for training and"):
        split_train(load_train(config), config)


def test_subsets_are_nested_keep_ids_and_are_bounded() -> None:
    def ids(count: int, seed: int = 0) -> set[int]:
        config = DataConfig(name="synthetic", synthetic_size=200, subset=count, split_seed=seed)
        images = load_train(config)
        assert len(images) == count
        return set(images.ids.tolist())

    assert ids(20) < ids(50)
    assert ids(50) != ids(50, seed=1)
    with pytest.raises(DataError, match=r"data\.subset asks for 201 images, 'synthetic' has 200"):
        ids(201)


def test_fingerprint_covers_ids_and_pixels_but_not_labels() -> None:
    images = load_train(DataConfig(name="synthetic", synthetic_size=40))
    every = torch.arange(40)
    assert images.fingerprint() == images.take(every).fingerprint()
    assert images.fingerprint() != images.take(every.flip(0)).fingerprint()
    changed = images.take(every)
    assert changed.labels is not None
    changed.labels.zero_()
    assert images.fingerprint() == changed.fingerprint()
    changed.images[3, 0, 0, 0] ^= 1
    assert images.fingerprint() != changed.fingerprint()
    moved = images.take(every)
    moved.ids[0] = 1000
    assert images.fingerprint() != moved.fingerprint()


def test_synthetic_images_are_repeatable_and_learnable() -> None:
    config = DataConfig(name="synthetic", synthetic_size=500, synthetic_classes=5, synthetic_image_size=16)
    train, test = load_train(config), load_test(config)
    assert train.fingerprint() == load_train(config).fingerprint()
    assert train.shape == (3, 16, 16) and train.num_classes == 5
    smaller = load_train(config.model_copy(update={"synthetic_size": 100}))
    assert torch.equal(smaller.images, train.images[:100])
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    assert len(train.images.flatten(1).unique(dim=0)) == 500  # type: ignore[no-untyped-call]
    nearest = torch.cdist(test.images.flatten(1).float(), train.images.flatten(1).float()).argmin(1)
    assert train.labels is not None and test.labels is not None
    assert float((train.labels[nearest] == test.labels).float().mean()) > 0.9


def test_normalisation_can_be_overridden() -> None:
    config = DataConfig(name="synthetic", synthetic_size=20, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert load_train(config).mean == (0.1, 0.2, 0.3)
    with pytest.raises(DataError, match="2 channels, images of 'synthetic' 3"):
        load_train(config.model_copy(update={"mean": (0.1, 0.2), "std": (1.0, 1.0)}))


def test_cifar_binary_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binary._CIFAR100_RECORDS, "train", 4)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (4, 3074)).astype(np.uint8)
    rows[:, 0], rows[:, 1] = 3, [5, 99, 0, 7]
    (folder / "train.bin").write_bytes(rows.tobytes())
    config = DataConfig(name="cifar100", root=str(tmp_path))
    train = load_train(config)
    assert train.labels is not None and train.labels.tolist() == [5, 99, 0, 7]
    assert np.array_equal(train.images.numpy().reshape(4, -1), rows[:, 2:])
    with pytest.raises(DataError, match=r"test\.bin: cannot be read"):
        load_test(config)
    (folder / "train.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(DataError, match="expected 12296 bytes, found 12295"):
        load_train(config)


def test_cifar_missing_or_of_unknown_digest(tmp_path: Path) -> None:
    config = DataConfig(name="cifar10", root=str(tmp_path))
    with pytest.raises(DataError, match="no whole copy of cifar10"):
        load_train(config)
    # A pickle whose digest is not the official one must never be opened.
    trap = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    trap.parent.mkdir()
    trap.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(DataError, match="no whole copy of cifar10"):
        load_train(config)
    assert not (tmp_path / "ran").exists()


def test_stl10_columns_come_first(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96)).astype(np.uint8)
    (folder / "train_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 10]))
    config = DataConfig(name="stl10", root=str(tmp_path))
    train = load_train(config)
    assert np.array_equal(train.images.numpy(), pixels)
    assert train.labels is not None and train.labels.tolist() == [0, 9]
    (folder / "train_y.bin").write_bytes(bytes([0, 10]))
    with pytest.raises(DataError, match="outside its 10 classes"):
        load_train(config)


def test_download_failure_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading")

    for name in ("MNIST", "CIFAR10", "STL10"):
        monkeypatch.setattr(datasets, name, refuse)
    for name in ("mnist", "cifar10", "stl10"):
        with pytest.raises(DataError, match="Error downloading"):
            load_train(DataConfig(name=name, root=str(tmp_path), download=True))


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    content = path.read_bytes()
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]))
    assert len(load_train(DataConfig(name="mnist", root=str(tmp_path)))) == 20


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    config = DataConfig(name="digits")
    parts = [load_train(config), load_test(config)]
    ids = torch.cat([part.ids for part in parts]).numpy()
    images = torch.cat([part.images for part in parts])[:, 0].numpy()
    labels = torch.cat([part.labels for part in parts if part.labels is not None]).numpy()
    assert sorted(ids) == list(range(len(theirs.target)))
    assert (labels == theirs.target[ids]).all()
    assert (images == (theirs.images[ids] * 255 / 16).round()).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "digits"},
        {"name": "digits", "mean": [0.1], "std": [0.2]},
        {"name": "synthetic", "synthetic_size": 20, "synthetic_image_size": 12},
        {"name": "synthetic", "synthetic_size": 20, "synthetic_channels": 1},
        {"name": "image_folder", "image_size": 12},
        {"name": "image_folder", "image_size": 12, "modalities": {"student": "luminance"}},
        {"name": "image_folder", "image_size": 12, "modalities": {"student": "chrominance", "teacher": "luminance"}},
        {"name": "image_folder", "image_size": 12, "mean": [0.1], "std": [0.2], "modalities": {}},
    ],
)
def test_what_is_known_of_images_without_reading_them_is_so(tmp_path: Path, fields: dict[str, Any]) -> None:
    write_folder(tmp_path)
    config = DataConfig(**fields, root=str(tmp_path) if fields["name"] == "image_folder" else None)
    images = load_train(config)
    assert config.side is not None
    assert images.shape == (config.channels, config.side, config.side)
    for known, found in zip(config.normalisation, (images.mean, images.std), strict=True):
        assert found == (known if len(known) > 1 else known * config.channels)
