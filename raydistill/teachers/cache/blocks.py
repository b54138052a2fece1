"""Columns that lie in one stretch of a shard's Parquet file, and are read from there without Parquet.

An uncompressed column of numbers without nulls that is one data page has its rows one after another in the file. Where
they begin stands in the shard's record with their XXH3-64, which takes a tenth of the time of Parquet's own checksums;
those are written all the same, for other readers. Nothing here imports torch or Ray.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from raydistill.teachers.cache.codec import Array, RowType
from raydistill.teachers.cache.manifest import Block
from raydistill.teachers.cache.remote import Location

_LARGEST_PAGE = 1 << 30  # Parquet counts a page's bytes in 31 bits
_SMALLEST_PAGE = 1 << 20
_ROWS_AT_ONCE = 1024  # as Arrow has it


def page_options(table: pa.Table) -> dict[str, Any]:
    """Return what makes Arrow write each column as one page, as far as that stays below a gigabyte."""
    sizes = [column.nbytes for column in table.columns]
    widest = math.ceil(max(sizes) / table.num_rows)
    options: dict[str, Any] = {
        "data_page_size": max([_SMALLEST_PAGE, *(size + 1 for size in sizes if size < _LARGEST_PAGE)]),
        # A page ends only after so many rows, which by themselves must not be too many bytes.
        "write_batch_size": max(1, min(_ROWS_AT_ONCE, _LARGEST_PAGE // widest)),
    }
    if "max_rows_per_page" in inspect.signature(pq.write_table).parameters:  # elder Arrows have no such limit
        options["max_rows_per_page"] = table.num_rows
    return options


def find_blocks(file: pa.Buffer, table: pa.Table, names: Iterable[str]) -> dict[str, Block]:
    """Return the blocks of those columns of a Parquet file that are one; what lies there is compared with ``table``."""
    with pq.ParquetFile(pa.BufferReader(file)) as written:
        about = written.metadata
    if about.num_row_groups != 1:
        return {}
    wanted, found = set(names), {}
    for number, name in enumerate(table.column_names):
        column, chunk = table.column(name), about.row_group(0).column(number)
        if name not in wanted or chunk.compression != "UNCOMPRESSED" or column.num_chunks != 1:
            continue
        numbers = column.chunk(0).buffers()[1]
        offset = _last_bytes(chunk, numbers.size)
        if 0 <= offset <= file.size - numbers.size and file.slice(offset, numbers.size).equals(numbers):
            found[name] = Block(offset=offset, xxh3=xxhash.xxh3_64_hexdigest(numbers))
    return found


def are_blocks_of(file: pa.Buffer, blocks: Mapping[str, Block], columns: Mapping[str, RowType], rows: int) -> bool:
    """Whether each block is the column of its name in a Parquet file; ``columns`` are those that may be blocks."""
    with pq.ParquetFile(pa.BufferReader(file)) as written:
        about = written.metadata
    names = {about.schema.column(number).name: number for number in range(about.num_columns)}
    for name, block in blocks.items():
        if name not in columns or name not in names or about.num_row_groups != 1:
            return False
        size = rows * columns[name].bytes
        if block.offset != _last_bytes(about.row_group(0).column(names[name]), size):
            return False
        if xxhash.xxh3_64_hexdigest(file.slice(block.offset, size)) != block.xxh3:
            return False
    return True


def view_blocks(
    path: Location, blocks: Mapping[str, Block], columns: Mapping[str, RowType], rows: int
) -> dict[str, Array]:
    """View blocks as read-only arrays [rows, *shape]: of a local file its memory map, which they keep alive.

    Nothing is checked but that the file is long enough.

    Args:
        path: of the shard.
        blocks: of the shard by the names of their columns.
        columns: what is wanted; those without a block are left out.
        rows: of the shard.

    Raises:
        OSError: if there is no such file, or it ends before a block.
        StorageError: if the storage cannot be reached or refuses.
    """
    wanted = {name: row_type for name, row_type in columns.items() if name in blocks}
    if not wanted:
        return {}
    found = {}
    with pa.memory_map(str(path)) if isinstance(path, Path) else path.open() as file:
        for name, row_type in wanted.items():
            file.seek(blocks[name].offset)
            numbers = file.read_buffer(rows * row_type.bytes)
            if numbers.size != rows * row_type.bytes:
                raise OSError(f"it ends before column '{name}' does")
            found[name] = np.frombuffer(numbers, row_type.dtype).reshape(rows, *row_type.shape)
    return found


def is_sound(block: Block, numbers: Array) -> bool:
    """Whether the numbers are those that were written; other threads can run meanwhile."""
    return xxhash.xxh3_64_hexdigest(numbers.data) == block.xxh3


def _last_bytes(chunk: Any, size: int) -> int:
    """Return where the last ``size`` bytes of a column begin: its numbers, if it is one page without compression."""
    return int(chunk.data_page_offset + chunk.total_compressed_size - size)
