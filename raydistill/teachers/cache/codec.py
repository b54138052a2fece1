"""How the rows of an output become Parquet columns and back: one class for each encoding.

The numbers of an output are one ``FixedSizeBinary`` column, little-endian, named as the output; dtype and shape of a
row stand in the field's metadata. What an encoding needs besides lies in columns ``<output>:<part>``, which the
metadata name too. Rows come back from arrays of the columns, wherever those were read. Nothing here imports torch or
Ray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from raydistill.errors import CacheError

if TYPE_CHECKING:
    from raydistill.teachers.cache.manifest import Content

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Column = tuple[pa.Field, pa.Array]
Columns = Mapping[str, Array]
LOGITS = "logits"
"""The output that ``cache.top_k`` shortens."""

_FLOAT16_LIMIT = 65520.0  # from here on rounding gives infinity
_LEVELS = 127
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class RowType:
    """What one row of a column is."""

    dtype: np.dtype[Any]
    shape: Shape = ()

    @property
    def bytes(self) -> int:
        """Of one row."""
        return math.prod(self.shape) * self.dtype.itemsize


class Codec(Protocol):
    """An encoding of rows [N, *shape]."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows that ``decode`` returns."""

    @property
    def limit(self) -> float:
        """Absolute values must stay below this."""

    def columns(self, name: str) -> dict[str, RowType]:
        """The columns of the output ``name``; its numbers come first."""

    def encode(self, name: str, rows: Array) -> list[Column]:
        """Turn finite float32 [N, *shape] below the limit into columns, in the order of ``columns``."""

    def decode(self, name: str, columns: Columns, out: Array | None = None) -> Array:
        """Turn the columns, each [N, ...] as ``columns`` says, back into [N, *shape].

        They are written to ``out`` where that is given; else they are read-only where no copy was needed.
        """


@dataclass(frozen=True)
class Floats:
    """The numbers themselves, rounded to ``stored``."""

    stored: str
    shape: Shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return np.dtype(self.stored)

    @property
    def limit(self) -> float:
        """What float16 holds."""
        return _FLOAT16_LIMIT if self.dtype.itemsize == 2 else math.inf

    def columns(self, name: str) -> dict[str, RowType]:
        """The numbers alone."""
        return {name: RowType(self.dtype, self.shape)}

    def encode(self, name: str, rows: Array) -> list[Column]:
        """Round."""
        return [_numbers(name, np.ascontiguousarray(rows, dtype=self.dtype), self.shape)]

    def decode(self, name: str, columns: Columns, out: Array | None = None) -> Array:
        """Take them as they are."""
        if out is None:
            return columns[name]
        np.copyto(_bytes(out), _bytes(columns[name]))
        return out


@dataclass(frozen=True)
class Int8:
    """Whole numbers from -127 to 127 times a float32 scale of each row: max|row| / 127.

    No number is off by more than max|row| / 254 beside float32's own rounding. Rows below 1.5e-36 become zero.
    """

    shape: Shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32: a product of scale and number may exceed float16."""
        return np.dtype("<f4")

    @property
    def limit(self) -> float:
        """The scale takes any."""
        return math.inf

    def columns(self, name: str) -> dict[str, RowType]:
        """Numbers and scales."""
        return {name: RowType(np.dtype("|i1"), self.shape), f"{name}:scale": RowType(np.dtype("<f4"))}

    def encode(self, name: str, rows: Array) -> list[Column]:
        """Round to the nearest multiple of the scale."""
        flat = rows.reshape(len(rows), -1)
        scale = (np.abs(flat).max(axis=1) / np.float32(_LEVELS)).astype(np.float32)
        scale[scale < _LEAST_SCALE] = 0.0  # subnormal: too coarse to divide by
        whole = flat / np.where(scale, scale, np.inf).astype(np.float32)[:, None]
        stored = np.rint(whole, out=whole).clip(-_LEVELS, _LEVELS).astype("|i1")
        _, part = self.columns(name)
        return [_numbers(name, stored, self.shape, scale=part), _plain(part, scale)]

    def decode(self, name: str, columns: Columns, out: Array | None = None) -> Array:
        """Multiply."""
        numbers, part = self.columns(name)
        scale = columns[part].copy().reshape(-1, *[1] * len(self.shape))  # a copy is aligned, and small
        found: Array = np.multiply(columns[numbers], scale, out=out)
        return found


@dataclass(frozen=True)
class TopK:
    """The largest logits of each row with their classes, best first; ``values`` encodes those [N, k].

    All other classes are read back as one number, log(mean(exp(z))) over them, so that at temperature 1 the softmax
    of the k classes, and of all others together, is the teacher's. At higher temperatures the others weigh too much.
    """

    classes: int
    values: Codec
    kept: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """As the values."""
        return self.values.dtype

    @property
    def limit(self) -> float:
        """As the values."""
        return self.values.limit

    @property
    def _class_dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.classes <= 1 << 16 else "<u4")

    def columns(self, name: str) -> dict[str, RowType]:
        """Those of the values, then the classes and the number for the others."""
        return self.values.columns(name) | {
            f"{name}:classes": RowType(self._class_dtype, (self.kept,)),
            f"{name}:rest": RowType(np.dtype("<f4")),
        }

    def encode(self, name: str, rows: Array) -> list[Column]:
        """Choose, and average what is left out."""
        chosen = np.argpartition(rows, self.classes - self.kept, axis=1)[:, self.classes - self.kept :]
        best_first = np.argsort(-np.take_along_axis(rows, chosen, axis=1), axis=1, kind="stable")
        chosen = np.take_along_axis(chosen, best_first, axis=1)
        stored = self.values.encode(name, np.take_along_axis(rows, chosen, axis=1))
        smallest = self.values.decode(name, _arrays(stored, self.values.columns(name))).min(axis=1)
        # Rounding may push the smallest value that is kept below the others, which it is not.
        fill = np.minimum(_log_mean_exp_of_others(rows, chosen).astype(self.dtype), smallest).astype(np.float32)
        *_, classes, rest = self.columns(name)
        (field, numbers), *others = stored
        about = {**field.metadata, "classes": classes, "rest": rest, "width": str(self.classes)}
        return [
            (field.with_metadata(about), numbers),
            *others,
            _numbers(classes, chosen.astype(self._class_dtype), (self.kept,)),
            _plain(rest, fill),
        ]

    def decode(self, name: str, columns: Columns, out: Array | None = None) -> Array:
        """Fill whole rows."""
        *_, classes, rest = self.columns(name)
        whole = np.empty((len(columns[rest]), self.classes), self.dtype) if out is None else out
        whole[...] = columns[rest].astype(self.dtype)[:, None]
        if columns[classes].max(initial=0) >= self.classes:
            raise CacheError(f"output '{name}' is damaged: it tells of a class beyond the teacher's {self.classes}")
        np.put_along_axis(whole, columns[classes].astype(np.int64), self.values.decode(name, columns), axis=1)
        return whole


_DTYPES: Mapping[str, Callable[[Shape], Codec]] = {
    "float16": partial(Floats, "<f2"),
    "float32": partial(Floats, "<f4"),
    "int8": Int8,
}


def codec_of(content: Content, name: str) -> Codec:
    """Return the encoding of an output of a cache."""
    shape, dtype = content.teacher.outputs[name], _DTYPES[content.dtype]
    if name == LOGITS and content.top_k is not None:
        return TopK(math.prod(shape), dtype((content.top_k,)), content.top_k)
    return dtype(shape)


def columns_of(content: Content, names: Sequence[str]) -> dict[str, RowType]:
    """Return all columns of some outputs."""
    return {column: row_type for name in names for column, row_type in codec_of(content, name).columns(name).items()}


def array_of(column: pa.ChunkedArray, row_type: RowType) -> Array:
    """View the buffers of a column without nulls as one array [N, *shape]; only several chunks are copied."""
    width = math.prod(row_type.shape)
    parts = [
        np.frombuffer(chunk.buffers()[1], row_type.dtype, len(chunk) * width, chunk.offset * row_type.bytes)
        for chunk in column.chunks
    ]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.reshape(-1, *row_type.shape)


def take_rows(column: Array, positions: Array | slice) -> Array:
    """Return rows of a column: a view for a slice, else a copy."""
    if isinstance(positions, slice):
        return column[positions]
    return _bytes(column).take(positions, axis=0).view(column.dtype).reshape(-1, *column.shape[1:])


def _bytes(rows: Array) -> Array:
    """View contiguous rows as uint8 [N, bytes]; numbers of a file may lie at odd places, which numpy copies slowly."""
    return rows.reshape(len(rows), -1).view(np.uint8)


def _numbers(name: str, stored: Array, shape: Shape, **about: str) -> Column:
    """Make the column of [N, *shape] that is described by its metadata."""
    width = math.prod(shape) * stored.dtype.itemsize
    described = {"dtype": stored.dtype.str, "shape": json.dumps(list(shape)), **about}
    field = pa.field(name, pa.binary(width), nullable=False, metadata=described)
    rows = np.ascontiguousarray(stored)
    return field, pa.FixedSizeBinaryArray.from_buffers(field.type, len(rows), [None, pa.py_buffer(rows)])


def _plain(name: str, values: Array) -> Column:
    column = pa.array(values)
    return pa.field(name, column.type, nullable=False), column


def _arrays(columns: list[Column], row_types: Mapping[str, RowType]) -> dict[str, Array]:
    """What a reader would find in columns that are not yet written."""
    return {field.name: array_of(pa.chunked_array([column]), row_types[field.name]) for field, column in columns}


def _log_mean_exp_of_others(rows: Array, chosen: Array) -> Array:
    """log(mean(exp(z))) over the columns of [N, C] that ``chosen`` [N, k] leaves out, float32 [N]."""
    others = rows.astype(np.float32)
    np.put_along_axis(others, chosen, -np.inf, axis=1)
    largest = others.max(axis=1, keepdims=True)
    total = np.exp(others - largest).sum(axis=1)
    found: Array = largest[:, 0] + np.log(total / (rows.shape[1] - chosen.shape[1]))
    return found
