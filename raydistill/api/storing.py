"""Anybody's images as the Parquet files that the data set ``parquet`` reads, once for the same content."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raydistill.api.images import Pixels, Sample, samples
from raydistill.errors import DataError
from raydistill.files import make_folders, move_folder, temporary_name, writing

_ROWS = 512
"""Of a row group: what a process reads at once."""
_QUICK = 1
"""PNG is lossless at any effort; the least takes a fraction of the time."""


@dataclass(frozen=True)
class Stored:
    """What was written.

    Attributes:
        folder: holds ``train.parquet``, and ``test.parquet`` where there are test images.
        shape: (C, H, W) of the first image, which all others have unless they are scaled.
        classes: one more than the highest label; 0 where images have none.
    """

    folder: Path
    shape: tuple[int, int, int]
    classes: int


def store_images(train: Any, test: Any | None, root: Path) -> Stored:
    """Write data sets as PNG in Parquet below ``root``, in a folder that is named after their content.

    Raises:
        DataError: images or labels cannot be taken as they are, or test images are other ones than training images.
        RunError: the disk refuses.
    """
    temporary = root / temporary_name("images")
    digest = hashlib.sha256()
    make_folders(temporary)
    try:
        found = _write(train, "dataset", temporary / "train.parquet", digest)
        if test is not None:
            _require_alike(found, _write(test, "test", temporary / "test.parquet", digest))
        folder = root / f"images-{digest.hexdigest()[:16]}"
        if not folder.is_dir():  # else the very same files, whose time of change is part of what is known of them
            move_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Stored(folder, found.shape, found.classes)


@dataclass
class _Found:
    shape: tuple[int, int, int] = (0, 0, 0)
    classes: int = 0


def _write(data: Any, what: str, path: Path, digest: Any) -> _Found:
    """Write one file row group by row group, and take what it holds into the digest."""
    found = _Found()
    with writing(path) as file:
        writer: pq.ParquetWriter | None = None
        for table in _tables(samples(data, what), found, digest):
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    return found


def _tables(every: Iterator[Sample], found: _Found, digest: Any) -> Iterator[pa.Table]:
    rows: list[Sample] = []
    for sample in every:
        height, width, channels = sample.pixels.shape
        digest.update(f"{height} {width} {channels} {sample.label} ".encode())
        digest.update(sample.pixels.tobytes())
        found.shape = found.shape if any(found.shape) else (channels, height, width)
        found.classes = max(found.classes, 0 if sample.label is None else sample.label + 1)
        rows.append(sample)
        if len(rows) == _ROWS:
            yield _table(rows)
            rows = []
    if rows:
        yield _table(rows)


def _table(rows: list[Sample]) -> pa.Table:
    columns = {"image": pa.array([_png(row.pixels) for row in rows], pa.binary())}
    if rows[0].label is not None:
        columns["label"] = pa.array([row.label for row in rows], pa.int64())
    return pa.table(columns)


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG", compress_level=_QUICK)
    return file.getvalue()


def _require_alike(train: _Found, test: _Found) -> None:
    """Compare channels and labels; sizes are compared when images are read, as they may be scaled then."""
    if test.shape[0] != train.shape[0]:
        raise DataError(f"test: images of {test.shape[0]} channels, but {train.shape[0]} in dataset")
    if bool(test.classes) != bool(train.classes):
        raise DataError("test: labels in one of dataset and test alone")
