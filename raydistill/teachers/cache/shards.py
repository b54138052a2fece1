"""One shard as a Parquet file: how rows become columns and back.

An output is a ``FixedSizeBinary`` column of little-endian numbers whose dtype and shape stand in the field's
metadata: on the way in and out it is one buffer, with no Python object for a row.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.errors import CacheError
from raydistill.teachers.cache.manifest import REPAIR, Content, ShardRecord, shard_name, shard_path

Array = np.ndarray[Any, Any]

SAMPLE_ID = "sample_id"
VIEW_ID = "view_id"
_BOX = ("crop_top", "crop_left", "crop_height", "crop_width")
_CUTOUT = ("cutout_row", "cutout_column")
_PLACE = b"raydistill"
_STORED = {"float16": "<f2", "float32": "<f4"}


@dataclass(frozen=True)
class Place:
    """Which rows of which cache a shard holds: ``rows`` positions of ``view`` from ``first``."""

    key: str
    view: int
    first: int
    rows: int

    @property
    def name(self) -> str:
        """The shard's file name."""
        return shard_name(self.view, self.first)


def stored_dtype(content: Content) -> np.dtype[Any]:
    """Return the dtype of the stored numbers."""
    return np.dtype(_STORED[content.dtype])


def ids_sha256(ids: Array) -> str:
    """Return the SHA-256 of ordered ids, int64 [N]."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()


def encode(
    content: Content,
    place: Place,
    ids: Array,
    outputs: Mapping[str, Array],
    parameters: Mapping[str, Array] | None,
) -> memoryview:
    """Return the bytes of a shard's Parquet file.

    Args:
        content: of the cache.
        place: of the shard.
        ids: int64 [rows].
        outputs: name -> float32 [rows, *shape].
        parameters: what ``data.views.parameters`` gave for the rows, or None for view 0.

    Raises:
        CacheError: if a value is not finite, or not in the storage dtype.
    """
    columns: list[pa.Array] = [pa.array(ids), pa.array(np.full(len(ids), place.view, dtype=np.int16))]
    fields = [pa.field(SAMPLE_ID, pa.int64()), pa.field(VIEW_ID, pa.int16())]
    if content.views:
        for field, column in _drawn(content, parameters, len(ids)):
            fields.append(field)
            columns.append(column)
    for name, shape in content.teacher.outputs.items():
        stored = _stored(content, place, ids, name, outputs[name])
        fields.append(_field(name, shape, content))
        columns.append(pa.FixedSizeBinaryArray.from_buffers(fields[-1].type, len(ids), [None, pa.py_buffer(stored)]))
    schema = pa.schema(fields, metadata={_PLACE: _place_text(place)})
    sink = pa.BufferOutputStream()
    # Floats gain nothing from dictionaries or statistics; page checksums let every read see damage.
    pq.write_table(
        pa.Table.from_arrays(columns, schema=schema),
        sink,
        row_group_size=len(ids),
        compression="none",
        use_dictionary=False,
        write_statistics=[SAMPLE_ID, VIEW_ID],
        write_page_checksum=True,
    )
    return memoryview(sink.getvalue())


def read_outputs(folder: Path, content: Content, record: ShardRecord, names: Sequence[str]) -> dict[str, Array]:
    """Read outputs of one shard: name -> [rows, *shape] in the storage dtype, read-only.

    Raises:
        CacheError: naming the shard that is missing or damaged.
    """
    table = read_columns(folder, record, names)
    return {name: _decode(table.column(name), content, name) for name in names}


def read_columns(folder: Path, record: ShardRecord, names: Sequence[str] | None) -> pa.Table:
    """Read columns of one shard, all for None. Raises ``CacheError`` naming the shard that is damaged."""
    path = shard_path(folder, record.name)
    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            return file.read(columns=None if names is None else list(names))
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, str(error).splitlines()[0]) from None


def check_footer(folder: Path, content: Content, record: ShardRecord) -> None:
    """Check existence, size, row count and place of a shard; raises ``CacheError`` naming its file."""
    path = shard_path(folder, record.name)
    if not path.is_file():
        raise CacheError(f"{path}: missing; repair it with `{REPAIR}`")
    size = path.stat().st_size
    if size != record.bytes:
        raise damaged(path, f"{size} bytes instead of {record.bytes}")
    try:
        with pq.ParquetFile(path) as file:
            rows, metadata = file.metadata.num_rows, file.schema_arrow.metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, str(error).splitlines()[0]) from None
    if rows != record.rows:
        raise damaged(path, f"{rows} rows instead of {record.rows}")
    if metadata.get(_PLACE) != _place_text(Place(content.key, record.view, record.first, record.rows)):
        raise damaged(path, "it holds another shard's rows")


def damaged(path: Path, reason: str) -> CacheError:
    """Return the error for a shard that can't be trusted."""
    return CacheError(f"{path}: damaged: {reason}; repair it with `{REPAIR}`")


def plain_columns(content: Content, table: pa.Table) -> dict[str, Array]:
    """Turn a shard's table into arrays; outputs become float32 [rows, *shape]."""
    found: dict[str, Array] = {}
    for name in table.column_names:
        if name in content.teacher.outputs:
            found[name] = _decode(table.column(name), content, name).astype(np.float32)
        else:
            found[name] = table.column(name).to_numpy()
    return found


def row_bytes(content: Content) -> int:
    """Return the bytes of one row before Parquet's own small overhead."""
    numbers = sum(math.prod(shape) for shape in content.teacher.outputs.values())
    return 8 + 2 + (9 if content.views else 0) + numbers * stored_dtype(content).itemsize


def _decode(column: pa.ChunkedArray, content: Content, name: str) -> Array:
    """View the buffers of a column as one array [rows, *shape]; a copy is made only of several chunks."""
    shape = content.teacher.outputs[name]
    width, dtype = math.prod(shape), stored_dtype(content)
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk) * width, chunk.offset * width * dtype.itemsize)
        for chunk in column.chunks
    ]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.reshape(-1, *shape)


def _stored(content: Content, place: Place, ids: Array, name: str, values: Array) -> Array:
    """Cast to the storage dtype, refusing what would be silently lost."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype=stored_dtype(content))
    if np.isfinite(stored).all():
        return stored
    row = int((~np.isfinite(stored.reshape(len(ids), -1))).any(axis=1).argmax())
    where = f"teacher output '{name}' of sample {int(ids[row])} in view {place.view}"
    if np.isfinite(values[row]).all():
        largest = float(np.abs(values[row]).max())
        raise CacheError(f"{where} reaches {largest:.4g}, more than float16 holds; set cache.dtype=float32")
    raise CacheError(f"{where} is not finite: the teacher's weights or the images are broken")


def _field(name: str, shape: tuple[int, ...], content: Content) -> pa.Field:
    dtype = stored_dtype(content)
    described = {"dtype": dtype.str, "shape": json.dumps(list(shape))}
    return pa.field(name, pa.binary(math.prod(shape) * dtype.itemsize), nullable=False, metadata=described)


def _drawn(content: Content, parameters: Mapping[str, Array] | None, rows: int) -> list[tuple[pa.Field, pa.Array]]:
    """Columns of the crop box, the flip and the cutout's centre; null where nothing was drawn."""
    operations = content.augmentation.operations if content.augmentation else {}
    names = (*_BOX, *(_CUTOUT if operations.get("cutout") else ()))
    values: dict[str, pa.Array] = {name: pa.nulls(rows, pa.int16()) for name in names}
    values["flip"] = pa.nulls(rows, pa.bool_())
    if parameters is not None:
        values |= {name: pa.array(parameters["box"][:, index]) for index, name in enumerate(_BOX)}
        values["flip"] = pa.array(parameters["flip"])
        if "cutout" in parameters:
            values |= {name: pa.array(parameters["cutout"][:, index]) for index, name in enumerate(_CUTOUT)}
    return [(pa.field(name, value.type), value) for name, value in values.items()]


def _place_text(place: Place) -> bytes:
    return json.dumps([place.key, place.view, place.first, place.rows]).encode()
