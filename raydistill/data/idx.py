"""MNIST and its relatives: the idx format, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from raydistill.data.image_set import ImageSet, Split, assemble
from raydistill.errors import DataError
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}  # torchvision's class and folder names
_STEMS = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08
_PIECE = 1 << 22


def read(config: DataConfig, split: Split) -> ImageSet:
    """Read one file of images and its file of labels.

    Raises:
        DataError: a file is missing or damaged, or the two do not belong together.
    """
    image_file, label_file = _locate(config, split)
    images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"{label_file}: {len(labels)} labels for the {len(images)} images of {image_file}; fetch both again"
        )
    num_classes = config.known.num_classes or 0
    if labels.numel() and int(labels.max()) >= num_classes:
        raise DataError(
            f"{label_file}: label {int(labels.max())} in a data set of {num_classes} classes; fetch it again"
        )
    return assemble(config, images.unsqueeze(1), labels.to(torch.int64), num_classes=num_classes)


def read_idx(path: Path, *, dimensions: int) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Returns:
        Uint8 tensor in the shape that the file's head declares.

    Raises:
        DataError: the head is not that of such a file, or more or fewer bytes follow than it declares.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(cast("BinaryIO", file), path, dimensions)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        size = path.stat().st_size
        raise DataError(f"{path}: not a whole gzip file, {size} bytes found ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(file: BinaryIO, path: Path, dimensions: int) -> Tensor:
    length = 4 + 4 * dimensions
    head = file.read(length)
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if head[:4] != magic:
        raise DataError(
            f"{path}: not an idx file: starts with bytes {head[:4].hex(' ')}, expected {magic.hex(' ')}; fetch it again"
        )
    if len(head) < length:
        raise DataError(f"{path}: damaged: expected at least {length} bytes, found {len(head)}; fetch it again")
    shape = struct.unpack(f">{dimensions}I", head[4:])
    expected = math.prod(shape)
    body = _read_at_most(file, expected + 1)  # one more tells a longer file without unpacking all of it
    if len(body) != expected:
        found = f"{length + len(body)}" if len(body) < expected else "more"
        raise DataError(
            f"{path}: damaged: expected {length + expected} bytes for shape {list(shape)}, found {found}; "
            "fetch it again"
        )
    return torch.from_numpy(np.frombuffer(body, np.uint8)).reshape(shape)


def _read_at_most(file: BinaryIO, count: int) -> bytearray:
    """Read in pieces, since a damaged head may declare more than fits into memory."""
    body = bytearray()
    while len(body) < count and (piece := file.read(min(count - len(body), _PIECE))):
        body += piece
    return body


def _locate(config: DataConfig, split: Split) -> tuple[Path, Path]:
    names = [f"{_STEMS[split]}-images-idx3-ubyte", f"{_STEMS[split]}-labels-idx1-ubyte"]
    root = Path(str(config.root))
    found = [_find(root, config.name, name) for name in names]
    if None in found and config.download:
        _download(config)
        found = [_find(root, config.name, name) for name in names]
    for name, path in zip(names, found, strict=True):
        if path is None:
            raise DataError(_missing(config, root, name))
    return cast("tuple[Path, Path]", tuple(found))


def _find(root: Path, name: str, stem: str) -> Path | None:
    for folder in (root, root / _FOLDERS[name] / "raw"):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    return None


def _missing(config: DataConfig, root: Path, stem: str) -> str:
    package = " or install the Debian package dataset-fashion-mnist" if config.name == "fashion_mnist" else ""
    where = "there" if root.is_dir() else "there, which is not a folder"
    return (
        f"data.root {root}: {stem}(.gz) is not {where}; set data.root to the folder that holds it, "
        f"set data.download to true{package}"
    )


def _download(config: DataConfig) -> None:
    from torchvision import datasets

    try:
        getattr(datasets, _FOLDERS[config.name])(str(config.root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"data set '{config.name}' could not be fetched into {config.root}: {error}") from error
