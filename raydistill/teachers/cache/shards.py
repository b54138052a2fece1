"""One shard as a Parquet file: how rows become columns and back.

The numbers of an output are one buffer on the way in and out, with no Python object for a row; ``codec`` says which
columns they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistill.errors import CacheError, first_line
from raydistill.teachers.cache import store
from raydistill.teachers.cache.blocks import are_blocks_of, find_blocks, is_sound, page_options, view_blocks
from raydistill.teachers.cache.codec import Array, Codec, RowType, array_of, codec_of, columns_of
from raydistill.teachers.cache.manifest import REPAIR, Block, Content, ShardRecord, shard_name, shard_path
from raydistill.teachers.cache.remote import Location

SAMPLE_ID = "sample_id"
VIEW_ID = "view_id"
_BOX = ("crop_top", "crop_left", "crop_height", "crop_width")
_CUTOUT = ("cutout_row", "cutout_column")
_PARTNER, _SHARE = "partner_id", "own_share"
_COVERED = ("partner_top", "partner_left", "partner_height", "partner_width")
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


@dataclass(frozen=True)
class Encoded:
    """A shard's file, not yet written, and the columns of it that can be read without Parquet."""

    place: Place
    ids: str
    data: memoryview
    blocks: Mapping[str, Block]

    def record(self, forwards: int, device: str = "") -> ShardRecord:
        """Return the record of the shard, for which so many images went through the teacher on a type of device."""
        return ShardRecord(
            name=self.place.name,
            view=self.place.view,
            first=self.place.first,
            rows=self.place.rows,
            bytes=self.data.nbytes,
            sha256=hashlib.sha256(self.data).hexdigest(),
            ids=self.ids,
            forwards=forwards,
            device=device,
            blocks=dict(self.blocks),
        )


def encode(
    content: Content,
    place: Place,
    ids: Array,
    outputs: Mapping[str, Array],
    parameters: Mapping[str, Array] | None,
) -> Encoded:
    """Make a shard's Parquet file.

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
    table = pa.Table.from_arrays(columns, schema=schema)
    sink = pa.BufferOutputStream()
    # Floats gain nothing from dictionaries or statistics; page checksums let every read see damage.
    pq.write_table(
        table,
        sink,
        row_group_size=len(ids),
        compression=content.compression,
        use_dictionary=False,
        write_statistics=[SAMPLE_ID, VIEW_ID],
        write_page_checksum=True,
        **page_options(table),
    )
    data = sink.getvalue()
    blocks = find_blocks(data, table, [SAMPLE_ID, *columns_of(content, list(content.teacher.outputs))])
    return Encoded(place, ids_sha256(ids), memoryview(data), blocks)


def read_outputs(folder: Location, content: Content, record: ShardRecord, names: Sequence[str]) -> dict[str, Array]:
    """Read outputs of one shard: name -> [rows, *shape] in the codec's dtype, perhaps read-only.

    Raises:
        CacheError: naming the shard that is missing or damaged.
    """
    columns = read_stored(shard_path(folder, record.name), record, columns_of(content, names))
    return {name: codec_of(content, name).decode(name, columns) for name in names}


def read_ids(folder: Location, record: ShardRecord) -> Array:
    """Read the ids of one shard, int64 [rows]. Raises ``CacheError`` if they are not those of its record."""
    path = shard_path(folder, record.name)
    ids = read_stored(path, record, {SAMPLE_ID: RowType(np.dtype("<i8"))})[SAMPLE_ID]
    if ids_sha256(ids) != record.ids:
        raise damaged(path, "its sample ids are not those of the manifest")
    return ids


def read_stored(
    path: Location, record: ShardRecord, columns: Mapping[str, RowType], *, checked: Container[str] = ()
) -> dict[str, Array]:
    """Read columns of one shard as they are stored: name -> [rows, *shape], read-only.

    Args:
        path: of the shard, or of a copy.
        record: of the shard; columns that it lists as blocks are viewed in the file, others are read by Arrow.
        columns: what is wanted.
        checked: those that were found sound before. The others are compared with their checksums.

    Raises:
        CacheError: naming the shard that is missing or damaged.
    """
    try:
        found = view_blocks(path, record.blocks, columns, record.rows)
    except (OSError, pa.ArrowException, ValueError) as error:
        store.size_of(path)  # raises where it is a remote storage that fails
        raise damaged(path, first_line(error)) from None
    for name, numbers in found.items():
        if name not in checked and not is_sound(record.blocks[name], numbers):
            raise damaged(path, f"column '{name}' is not what was written")
    others = [name for name in columns if name not in found]
    if others:
        table = _read_parquet(path, others)
        try:
            found |= {name: array_of(table.column(name), columns[name]) for name in others}
        except (IndexError, TypeError, ValueError) as error:
            raise damaged(path, first_line(error)) from None
        if any(len(found[name]) != record.rows or table.column(name).null_count for name in others):
            raise damaged(path, f"it does not hold {record.rows} whole rows")
    return found


def read_columns(folder: Location, record: ShardRecord, names: Sequence[str] | None) -> pa.Table:
    """Read columns of one shard, all for None. Raises ``CacheError`` naming the shard that is damaged."""
    return _read_parquet(shard_path(folder, record.name), names)


def _read_parquet(path: Location, names: Sequence[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(store.opened(path), memory_map=True, page_checksum_verification=True) as file:
            table = file.read(columns=None if names is None else list(names))
    except (OSError, pa.ArrowException, ValueError) as error:
        store.size_of(path)  # as above
        raise damaged(path, first_line(error)) from None
    lacking = [name for name in names or () if name not in table.column_names]
    if lacking:
        raise damaged(path, f"it has no column '{lacking[0]}'")
    return table


def check_footer(folder: Location, content: Content, record: ShardRecord) -> None:
    """Check existence, size, row count and place of a shard; raises ``CacheError`` naming its file."""
    path = shard_path(folder, record.name)
    size = store.size_of(path)
    if size is None:
        raise CacheError(f"{path}: missing; repair it with `{REPAIR}`")
    if size != record.bytes:
        raise damaged(path, f"{size} bytes instead of {record.bytes}")
    try:
        with pq.ParquetFile(store.opened(path)) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
        metadata = schema.metadata or {}
        columns = columns_of(content, list(content.teacher.outputs))
        wrong = [name for name, row_type in columns.items() if not _holds(schema, name, row_type)]
    except (OSError, pa.ArrowException, ValueError) as error:
        store.size_of(path)  # as above
        raise damaged(path, first_line(error)) from None
    if wrong:
        raise damaged(path, f"column '{wrong[0]}' is missing or not as wide as the manifest says")
    if content.compression == "none" and size < record.rows * sum(row_type.bytes for row_type in columns.values()):
        raise damaged(path, f"{size} bytes are too few for the numbers of {record.rows} rows")
    if rows != record.rows:
        raise damaged(path, f"{rows} rows instead of {record.rows}")
    if metadata.get(_PLACE) != _place_text(Place(content.key, record.view, record.first, record.rows)):
        raise damaged(path, "it holds another shard's rows")


def check_record(folder: Location, content: Content, record: ShardRecord) -> None:
    """Check every byte of a shard by its record, and what the record says of the file by the file.

    Raises:
        CacheError: naming the shard that is missing or damaged, or its record where that is wrong.
    """
    check_footer(folder, content, record)
    path = shard_path(folder, record.name)
    file = store.buffer_of(path)
    if hashlib.sha256(memoryview(file)).hexdigest() != record.sha256:
        raise damaged(path, "its sha256 is not the recorded one")
    try:
        with pq.ParquetFile(pa.BufferReader(file)) as written:
            ids = ids_sha256(written.read(columns=[SAMPLE_ID]).column(SAMPLE_ID).to_numpy())
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise damaged(path, first_line(error)) from None
    if ids != record.ids:
        raise damaged(path, "its sample ids are not the recorded ones")
    columns = {SAMPLE_ID: RowType(np.dtype("<i8")), **columns_of(content, list(content.teacher.outputs))}
    if record.forwards != record.rows:
        raise damaged(path, f"its record tells of {record.forwards} forwards for {record.rows} rows")
    if not are_blocks_of(file, record.blocks, columns, record.rows):
        raise damaged(path, "its columns do not lie where the record says")


def _holds(schema: pa.Schema, name: str, row_type: RowType) -> bool:
    """Whether a file has a column, and its rows are as many bytes as they should be."""
    if name not in schema.names:
        return False
    kind = schema.field(name).type
    try:
        return bool(kind.bit_width == 8 * row_type.bytes)
    except ValueError:  # of rows that differ in length
        return False


def damaged(path: Location, reason: str) -> CacheError:
    """Return the error for a shard that can't be trusted."""
    return CacheError(f"{path}: damaged: {reason}; repair it with `{REPAIR}`")


def plain_columns(content: Content, table: pa.Table) -> dict[str, Array]:
    """Turn a shard's table into arrays; outputs become float32 [rows, *shape]."""
    outputs = content.teacher.outputs
    stored = columns_of(content, [name for name in table.column_names if name in outputs])
    arrays = {name: array_of(table.column(name), row_type) for name, row_type in stored.items()}
    found: dict[str, Array] = {}
    for name in table.column_names:
        if name in outputs:
            found[name] = codec_of(content, name).decode(name, arrays).astype(np.float32)
        elif name not in arrays:
            found[name] = _numbers(table.column(name))
    return found


def _numbers(column: pa.ChunkedArray) -> Array:
    """Turn a column into an array; ids with nulls into Python's whole numbers and None, as floats would round them."""
    if pa.types.is_int64(column.type) and column.null_count:
        return np.array(column.to_pylist(), dtype=object)
    numbers: Array = column.to_numpy()
    return numbers


def row_bytes(content: Content) -> int:
    """Return the bytes of one row before compression and Parquet's own small overhead."""
    numbers = sum(row_type.bytes for row_type in columns_of(content, list(content.teacher.outputs)).values())
    return 8 + 2 + (9 if content.views else 0) + (20 if content.mixes else 0) + numbers


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
    if content.mixes:
        values |= _mixed(parameters, rows)
    return [(pa.field(name, value.type), value) for name, value in values.items()]


def _mixed(parameters: Mapping[str, Array] | None, rows: int) -> dict[str, pa.Array]:
    """Columns of the partner's id, lambda and the box that shows the partner; null where there is none."""
    if parameters is None:
        nothing = {_PARTNER: pa.nulls(rows, pa.int64()), _SHARE: pa.nulls(rows, pa.float32())}
        return nothing | {name: pa.nulls(rows, pa.int16()) for name in _COVERED}
    share, box = parameters["share"], parameters["covered"]
    alone, whole = share == 1.0, box[:, 2] == 0
    found = {_PARTNER: pa.array(parameters["partner"], mask=alone), _SHARE: pa.array(share, mask=alone)}
    return found | {name: pa.array(box[:, index].astype(np.int16), mask=whole) for index, name in enumerate(_COVERED)}


def _place_text(place: Place) -> bytes:
    return json.dumps([place.key, place.view, place.first, place.rows]).encode()
