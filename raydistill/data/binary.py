"""CIFAR and STL-10: fixed records of raw pixels.

CIFAR's usual files are pickles, which may run code when they are read; they are left to torchvision, which
checks their digests first. The binary version of the same data is read here and preferred where it is
present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raydistill.data.image_set import ImageSet, Split, assemble
from raydistill.errors import DataError
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

_STL_PIXELS = 3 * 96 * 96


@dataclass(frozen=True)
class _Layout:
    """CIFAR's binary version: ``labels`` bytes, the last of which counts, before an image's 3072 pixels."""

    official: str
    folder: str
    labels: int
    records: int
    files: Mapping[str, tuple[str, ...]]


_CIFAR = {
    "cifar10": _Layout(
        "CIFAR10",
        "cifar-10-batches-bin",
        1,
        10_000,
        {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
    ),
    "cifar100": _Layout("CIFAR100", "cifar-100-binary", 2, 0, {"train": ("train.bin",), "test": ("test.bin",)}),
}
_CIFAR100_RECORDS = {"train": 50_000, "test": 10_000}


def read(config: DataConfig, split: Split) -> ImageSet:
    """Read CIFAR-10, CIFAR-100 or STL-10.

    Raises:
        DataError: files are missing, or not as long as they must be.
    """
    images, labels = _read_stl(config, split) if config.name == "stl10" else _read_cifar(config, split)
    num_classes = config.known.num_classes or 0
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DataError(
            f"data set '{config.name}' at {config.root}: a {split} label is outside its {num_classes} classes; "
            "fetch it again"
        )
    return assemble(config, images, labels, num_classes=num_classes)


def _read_cifar(config: DataConfig, split: Split) -> tuple[Tensor, Tensor]:
    layout = _CIFAR[config.name]
    folder = Path(str(config.root)) / layout.folder
    if not folder.is_dir():
        return _read_pickles(config, split, layout)
    records = layout.records or _CIFAR100_RECORDS[split]
    length = layout.labels + 3072
    parts = [_read_bytes(folder / name, records * length).reshape(-1, length) for name in layout.files[split]]
    rows = torch.from_numpy(np.concatenate(parts))
    pixels = rows[:, layout.labels :].reshape(-1, 3, 32, 32).contiguous()
    return pixels, rows[:, layout.labels - 1].to(torch.int64)


def _read_pickles(config: DataConfig, split: Split, layout: _Layout) -> tuple[Tensor, Tensor]:
    from torchvision import datasets

    try:
        official = getattr(datasets, layout.official)(
            str(config.root), train=split == "train", download=config.download
        )
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"data.root {config.root}: no whole copy of {config.name} there ({error}); "
            f"expected torchvision's files or the binary version in {layout.folder}; "
            "set data.root to the folder above, or data.download to true"
        ) from error
    images = torch.from_numpy(np.ascontiguousarray(official.data.transpose(0, 3, 1, 2)))
    return images, torch.tensor(official.targets, dtype=torch.int64)


def _read_stl(config: DataConfig, split: Split) -> tuple[Tensor, Tensor]:
    folder = Path(str(config.root)) / "stl10_binary"
    image_file, label_file = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
    if config.download and not (image_file.is_file() and label_file.is_file()):
        _download_stl(config)
    labels = _read_bytes(label_file, None)
    pixels = _read_bytes(image_file, len(labels) * _STL_PIXELS)
    # Pixels run down the columns first.
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2))
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)) - 1


def _download_stl(config: DataConfig) -> None:
    from torchvision import datasets

    try:
        datasets.STL10(str(config.root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"data set 'stl10' could not be fetched into {config.root}: {error}") from error


def _read_bytes(path: Path, expected: int | None) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    try:
        found = path.stat().st_size
        if expected is not None and found != expected:
            raise DataError(f"{path}: damaged: expected {expected} bytes, found {found}; fetch it again")
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); set data.root to the folder above "
            f"{path.parent.name}, or data.download to true"
        ) from error
