"""Parquet files of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.data.image_set import ImageSet, Split, choose_subset
from raydistill.data.listed import path_id
from raydistill.data.opening import open_images
from raydistill.data.parquet_rows import ParquetRows, check_column, not_whole
from raydistill.errors import DataError
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig


_MOST_CLASSES = 10_000_000


def read(config: DataConfig, split: Split) -> ImageSet:
    """Read ``train*.parquet`` or ``test*.parquet`` below the root; a single file is the training file.

    Raises:
        DataError: files or columns are missing or damaged, or labels do not fit those of the training file.
    """
    files = _files(config, split)
    label_column = _label_column(config, files[0])
    columns = [name for name in (label_column, config.id_column) if name]
    rows = ParquetRows.of(files, config.image_column)
    table = _read_files(files, columns) if columns else None
    if table is not None and len(table) != len(rows):
        raise DataError(f"{files[0]}: damaged: {len(table)} rows have labels or ids, {len(rows)} images")
    ids = torch.arange(len(rows)) if table is None or config.id_column is None else _ids(table, config.id_column)
    chosen = choose_subset(ids, config) if split == "train" else torch.arange(len(ids))
    labels, num_classes = None, 0
    if table is not None and label_column:
        every_label, num_classes = _labels(table, config, split, label_column)
        labels = every_label[chosen]
    return open_images(config, rows.take(chosen), ids[chosen], labels, num_classes=num_classes)


def _files(config: DataConfig, split: Split) -> list[Path]:
    root = Path(str(config.root))
    if root.is_file() and split == "train":
        return [root]
    files = sorted(root.glob(f"{split}*.parquet")) if root.is_dir() else []
    if not files:
        reason = "is a single file" if root.is_file() else "has none" if root.is_dir() else "does not exist"
        raise DataError(f"data.root {root}: {split}*.parquet is expected in this folder, which {reason}")
    return files


def _read_files(files: list[Path], columns: list[str]) -> pa.Table:
    return pa.concat_tables([_read_file(path, columns) for path in files], promote_options="default")


def _read_file(path: Path, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            for column in columns:
                check_column(path, file, column)
            return file.read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise not_whole(path, error) from error


def _label_column(config: DataConfig, path: Path) -> str | None:
    if config.label_column is not None:
        return config.label_column
    try:
        return "label" if "label" in pq.read_schema(path).names else None
    except (OSError, pa.ArrowException) as error:
        raise not_whole(path, error) from error


def _ids(table: pa.Table, name: str) -> Tensor:
    values = _whole(table.column(name), f"data.id_column '{name}'")
    return torch.tensor([path_id(value) if isinstance(value, str) else value for value in values], dtype=torch.int64)


def _labels(table: pa.Table, config: DataConfig, split: Split, column: str) -> tuple[Tensor, int]:
    """Labels of all rows, int64 [N], and the number of classes that the training file has."""
    what = f"data.label_column '{column}'"
    known = table if split == "train" else _read_files(_files(config, "train"), [column])
    classes: list[Any] = sorted(set(_whole(known.column(column), what)))
    if classes and isinstance(classes[0], int):
        if classes[0] < 0:
            raise DataError(f"{what}: label {classes[0]} is below 0")
        if classes[-1] >= _MOST_CLASSES:
            raise DataError(f"{what}: label {classes[-1]} is beyond the {_MOST_CLASSES} classes that there may be")
        classes = list(range(classes[-1] + 1))
    numbers = {value: number for number, value in enumerate(classes)}
    values = _whole(table.column(column), what)
    unknown = sorted({str(value) for value in values if value not in numbers})
    if unknown:
        raise DataError(f"{what}: {split} labels that no training image has: {', '.join(unknown[:5])}")
    return torch.tensor([numbers[value] for value in values], dtype=torch.int64), len(classes)


def _whole(column: pa.ChunkedArray, what: str) -> list[Any]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{what}: expected whole numbers or strings, found {kind}")
    if column.null_count:
        raise DataError(f"{what}: {column.null_count} rows have no value")
    try:
        values = list(column.to_pylist())
    except ValueError as error:  # text that is none
        raise DataError(f"{what}: {error}") from None
    if pa.types.is_uint64(kind) and any(value >= 2**63 for value in values):
        raise DataError(f"{what}: holds numbers from 2^63 on")
    return values
