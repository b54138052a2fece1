"""Parquet files of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.data.decoding import Encoded, decode_all
from raydistill.data.folder import path_id
from raydistill.data.image_set import ImageSet, Split, assemble, choose_subset
from raydistill.errors import DataError, did_you_mean
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig


def read(config: DataConfig, split: Split) -> ImageSet:
    """Read ``train*.parquet`` or ``test*.parquet`` below the root; a single file is the training file.

    Raises:
        DataError: files or columns are missing or damaged, or labels do not fit those of the training file.
    """
    files = _files(config, split)
    label_column = _label_column(config, files[0])
    columns = [config.image_column, *([label_column] if label_column else [])]
    table = _read_files(files, [*columns, *([config.id_column] if config.id_column else [])])
    ids = _ids(table, config)
    chosen = choose_subset(ids, config) if split == "train" else torch.arange(len(ids))
    decoded = decode_all(_encoded(table, config, files, chosen.tolist()), ids[chosen], config)
    rows = chosen[decoded.positions]
    labels, num_classes = None, 0
    if label_column:
        every_label, num_classes = _labels(table, config, split, label_column)
        labels = every_label[rows]
    return assemble(config, decoded.images, labels, num_classes=num_classes, ids=ids[rows], skipped=decoded.skipped)


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
            present = file.schema_arrow.names
            for column in columns:
                if column not in present:
                    near = did_you_mean(column, present)
                    raise DataError(f"{path}: no column '{column}'{near}; columns are {', '.join(present)}")
            return file.read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error})") from error


def _label_column(config: DataConfig, path: Path) -> str | None:
    if config.label_column is not None:
        return config.label_column
    try:
        return "label" if "label" in pq.read_schema(path).names else None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error})") from error


def _ids(table: pa.Table, config: DataConfig) -> Tensor:
    if config.id_column is None:
        return torch.arange(table.num_rows)
    column = table.column(config.id_column)
    values = _whole(column, f"data.id_column '{config.id_column}'")
    return torch.tensor([path_id(value) if isinstance(value, str) else value for value in values], dtype=torch.int64)


def _labels(table: pa.Table, config: DataConfig, split: Split, column: str) -> tuple[Tensor, int]:
    """Labels of all rows, int64 [N], and the number of classes that the training file has."""
    what = f"data.label_column '{column}'"
    known = table if split == "train" else _read_files(_files(config, "train"), [column])
    classes: list[Any] = sorted(set(_whole(known.column(column), what)))
    if classes and isinstance(classes[0], int):
        if classes[0] < 0:
            raise DataError(f"{what}: label {classes[0]} is below 0")
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
    return list(column.to_pylist())


def _encoded(table: pa.Table, config: DataConfig, files: list[Path], rows: list[int]) -> list[Encoded]:
    column = table.column(config.image_column)
    folder = files[0].parent
    return [
        Encoded(f"{folder} {config.image_column} row {row}", _source(column[row].as_py(), folder, config))
        for row in rows
    ]


def _source(value: Any, folder: Path, config: DataConfig) -> Path | bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return folder / value
    raise DataError(f"data.image_column '{config.image_column}': expected bytes or paths, found {type(value).__name__}")
