"""Small data sets on disk, and where the real Fashion-MNIST lies."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def fashion_mnist_root() -> str:
    """The folder of the real files; the default is where Debian's dataset-fashion-mnist puts them."""
    return os.environ.get("RAYDISTILL_FASHION_MNIST", "/usr/share/datasets/fashion-mnist")


def idx_bytes(values: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, *, train: int = 20, test: int = 10, zipped: bool = False) -> None:
    """The four files of MNIST with made-up content."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", train), ("t10k", test)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28))
        for name, values in (
            (f"{stem}-images-idx3-ubyte", images),
            (f"{stem}-labels-idx1-ubyte", np.arange(count) % 10),
        ):
            content = idx_bytes(values)
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


def write_image(path: Path, *, size: tuple[int, int] = (20, 16), value: int = 100) -> None:
    """One plain image in the format that the ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value // 2, 255 - value)).save(path)


def write_folder(root: Path, *, classes: Sequence[str] = ("cat", "dog"), each: int = 5) -> None:
    """A train and a test folder with a folder for each class."""
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            for number in range(each):
                write_image(root / split / name / f"{number}.png", value=100 * label + number)
