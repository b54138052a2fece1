"""One shard as a Parquet file: how rows become columns and back.

The numbers of an output are one buffer on the way in and out, with no Python object for a row; ``codec`` says which
columns they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.errors import CacheError
from raydistill.teachers.cache.codec import Array, Codec, codec_of, columns_of
from raydistill.teachers.cache.manifest import REPAIR, Content, ShardRecord, shard_name, shard_path

SAMPLE_ID = "sample_id"
VIEW_ID = "view_id"
_BOX = ("crop_top", "crop_left", "crop_height", "crop_width")
_CUTOUT = ("cutout_row", "cutout_column")
_PLACE = b"raydistill"


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
    for name in content.teacher.outputs:
        codec = codec_of(content, name)
        _check_storable(codec, place, ids, name, outputs[name])
        for field, column in codec.encode(name, outputs[name]):
            fields.append(field)
            columns.append(column)
    schema = pa.schema(fields, metadata={_PLACE: _place_text(place)})
    sink = pa.BufferOutputStream()
    # Floats gain nothing from dictionaries or statistics; page checksums let every read see damage.
    pq.write_table(
        pa.Table.from_arrays(columns, schema=schema),
        sink,
        row_group_size=len(ids),
        compression=content.compression,
        use_dictionary=False,
        write_statistics=[SAMPLE_ID, VIEW_ID],
        write_page_checksum=True,
    )
    return memoryview(sink.getvalue())


def read_outputs(folder: Path, content: Content, record: ShardRecord, names: Sequence[str]) -> dict[str, Array]:
    """Read outputs of one shard: name -> [rows, *shape] in the codec's dtype, perhaps read-only.

    Raises:
        CacheError: naming the shard that is missing or damaged.
    """
    table = read_columns(folder, record, columns_of(content, names))
    return {name: codec_of(content, name).decode(name, table) for name in names}


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
    outputs = content.teacher.outputs
    parts = {part for name in outputs for part in codec_of(content, name).columns(name)[1:]}
    found: dict[str, Array] = {}
    for name in table.column_names:
        if name in outputs:
            found[name] = codec_of(content, name).decode(name, table).astype(np.float32)
        elif name not in parts:
            found[name] = table.column(name).to_numpy()
    return found


def row_bytes(content: Content) -> int:
    """Return the bytes of one row before compression and Parquet's own small overhead."""
    numbers = sum(codec_of(content, name).row_bytes for name in content.teacher.outputs)
    return 8 + 2 + (9 if content.views else 0) + numbers


def _check_storable(codec: Codec, place: Place, ids: Array, name: str, values: Array) -> None:
    """Refuse what would be silently lost."""
    # Comparisons with NaN are false, and minimum and maximum pass it on: no copy is needed to find it.
    if -codec.limit < values.min() and values.max() < codec.limit:
        return
    flat = values.reshape(len(ids), -1)
    row = int((~(np.abs(flat) < codec.limit)).any(axis=1).argmax())
    where = f"teacher output '{name}' of sample {int(ids[row])} in view {place.view}"
    if np.isfinite(flat[row]).all():
        largest = float(np.abs(flat[row]).max())
        raise CacheError(f"{where} reaches {largest:.4g}, more than float16 holds; set cache.dtype=float32")
    raise CacheError(f"{where} is not finite: the teacher's weights or the images are broken")


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
