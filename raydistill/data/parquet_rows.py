"""Encoded images in rows of Parquet files, read a row group at a time."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.data.decoding import reason_of
from raydistill.data.encoded import read_whole
from raydistill.errors import DataError, did_you_mean
from raydistill.lazy import Tensor

_KEPT_BYTES = 256 * 2**20
_PASSING_BYTES = 64 * 2**20
_Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class ParquetRows:
    """Rows of a column of Parquet files.

    Attributes:
        files: in their order, absolute.
        column: bytes, {bytes, path} or a path below the first file's folder.
        rows: int64 [N], counted through all files.
        first_rows: int64 [G], the row that each row group begins with, through all files.
        groups: (index of the file, number in it) of each row group.
        embedded: whether every row is known to hold its bytes and not the path of a file.
        small: whether a process can keep all row groups that it has read. Of larger files it keeps the few that it is
            reading, since a random order comes back to none before all others had their turn.
    """

    files: tuple[Path, ...]
    column: str
    rows: _Numbers
    first_rows: _Numbers
    groups: tuple[tuple[int, int], ...]
    embedded: bool
    small: bool

    @classmethod
    def of(cls, files: Sequence[Path], column: str) -> ParquetRows:
        """All rows of the files.

        Raises:
            DataError: a file is damaged or lacks the column.
        """
        counts: list[int] = []
        groups: list[tuple[int, int]] = []
        embedded, size = True, 0
        for index, path in enumerate(files):
            try:
                with pq.ParquetFile(path) as file:
                    check_column(path, file, column)
                    found = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
                    counts += [group.num_rows for group in found]
                    size += sum(group.total_byte_size for group in found)
                    groups += [(index, number) for number in range(file.num_row_groups)]
                    embedded = embedded and _embedded(file, column)
            except (OSError, pa.ArrowException) as error:
                raise not_whole(path, error) from error
        starts = np.cumsum([0, *counts], dtype=np.int64)
        return cls(
            tuple(path.absolute() for path in files),
            column,
            np.arange(starts[-1]),
            starts[:-1],
            tuple(groups),
            embedded,
            size <= _KEPT_BYTES,
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def name(self, position: int) -> str:
        """Return folder, column and row."""
        return f"{self.files[0].parent} {self.column} row {self.rows[position]}"

    def read(self, position: int) -> bytes | None:
        """Read the row's bytes, or the file that it names.

        Raises:
            OSError: a file is not there.
            DataError: a Parquet file is damaged or other than it was, or the column holds something else.
        """
        row = int(self.rows[position])
        group = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        file, number = self.groups[group]
        recent = _recent if self.small else _passing
        values = recent.column(self.files[file], number, self.column)
        place = row - int(self.first_rows[group])
        if place >= len(values):
            raise _changed(self.files[file])
        try:
            value: Any = values[place].as_py()
        except ValueError as error:  # text that is none
            raise not_whole(self.files[file], error) from None
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if value is None or isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return read_whole(_below(self.files[0].parent, value))
        raise DataError(f"data.image_column '{self.column}': expected bytes or paths, found {type(value).__name__}")

    def take(self, positions: Tensor) -> ParquetRows:
        """The rows at ``positions``."""
        return replace(self, rows=self.rows[positions.numpy()])

    def stamp(self) -> str | None:
        """Ask the file system about the Parquet files; None where rows name files of their own."""
        if not self.embedded:
            return None
        digest = hashlib.sha256(self.column.encode())
        for path in self.files:
            found = path.stat()
            digest.update(f"{path}\0{found.st_size} {found.st_mtime_ns}\0".encode())
        digest.update(self.rows.tobytes())
        return digest.hexdigest()


class _Recent:
    """The row groups that this process read last; they are shared by all sets on the same files."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Path, int, str, int], pa.ChunkedArray] = OrderedDict()

    def column(self, path: Path, group: int, name: str) -> pa.ChunkedArray:
        key = path, group, name, os.stat(path).st_mtime_ns
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            found = self._kept[key] = _read_group(path, group, name)
            while len(self._kept) > 1 and sum(values.nbytes for values in self._kept.values()) > self._most:
                self._kept.popitem(last=False)
            return found


_recent = _Recent(_KEPT_BYTES)
_passing = _Recent(_PASSING_BYTES)


def _below(folder: Path, name: str) -> Path:
    """Return the path of a file that a row names; raises ``OSError`` where it does not lie below the folder."""
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise OSError(f"'{name}' is not below the folder of the Parquet file")
    return folder / name


def check_column(path: Path, file: pq.ParquetFile, column: str) -> None:
    """Raise ``DataError`` where a file lacks a column."""
    present = file.schema_arrow.names
    if column not in present:
        near = did_you_mean(column, present)
        raise DataError(f"{path}: no column '{column}'{near}; columns are {', '.join(present)}")


def not_whole(path: Path, error: Exception) -> DataError:
    """Return the error for a damaged file."""
    return DataError(f"{path}: not a whole Parquet file ({reason_of(error)})")


def _changed(path: Path) -> DataError:
    return DataError(f"{path}: changed since its rows were counted; run again to use it as it is now")


def _read_group(path: Path, group: int, name: str) -> pa.ChunkedArray:
    try:
        with pq.ParquetFile(path) as file:
            if group >= file.num_row_groups or name not in file.schema_arrow.names:
                raise _changed(path)
            return file.read_row_group(group, columns=[name]).column(name)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise not_whole(path, error) from error


def _embedded(file: pq.ParquetFile, column: str) -> bool:
    """Whether the footer tells that every row has its bytes."""
    kind = file.schema_arrow.field(column).type
    if not pa.types.is_struct(kind):
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    names = [file.schema.column(index).path for index in range(len(file.schema))]
    if f"{column}.bytes" not in names:
        return False
    index = names.index(f"{column}.bytes")
    found = [file.metadata.row_group(number).column(index).statistics for number in range(file.num_row_groups)]
    return all(each is not None and each.has_null_count and each.null_count == 0 for each in found)
