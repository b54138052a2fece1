"""How the rows of an output become Parquet columns and back: one class for each encoding.

The numbers of an output are one ``FixedSizeBinary`` column, little-endian, named as the output; dtype and shape of a
row stand in the field's metadata. What an encoding needs besides lies in columns ``<output>:<part>``, which the
metadata name too. Nothing here imports torch or Ray.
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

if TYPE_CHECKING:
    from raydistill.teachers.cache.manifest import Content

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Column = tuple[pa.Field, pa.Array]
LOGITS = "logits"
"""The output that ``cache.top_k`` shortens."""

_FLOAT16_LIMIT = 65520.0  # from here on rounding gives infinity
_LEVELS = 127
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


class Codec(Protocol):
    """An encoding of rows [N, *shape]."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the rows that ``decode`` returns."""

    @property
    def limit(self) -> float:
        """Absolute values must stay below this."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all columns together, before compression."""

    def columns(self, name: str) -> list[str]:
        """Names of the columns of the output ``name``; its numbers come first."""

    def encode(self, name: str, rows: Array) -> list[Column]:
        """Turn finite float32 [N, *shape] below the limit into columns, in the order of ``columns``."""

    def decode(self, name: str, table: pa.Table) -> Array:
        """Turn the columns back into [N, *shape]; read-only where no copy was needed."""


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

    @property
    def row_bytes(self) -> int:
        """One number each."""
        return math.prod(self.shape) * self.dtype.itemsize

    def columns(self, name: str) -> list[str]:
        """The numbers alone."""
        return [name]

    def encode(self, name: str, rows: Array) -> list[Column]:
        """Round."""
        return [_numbers(name, np.ascontiguousarray(rows, dtype=self.dtype), self.shape)]

    def decode(self, name: str, table: pa.Table) -> Array:
        """View the buffers."""
        return _view(table.column(name), self.dtype, self.shape)


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

    @property
    def row_bytes(self) -> int:
        """One byte each, and the scale."""
        return math.prod(self.shape) + 4

    def columns(self, name: str) -> list[str]:
        """Numbers and scales."""
        return [name, f"{name}:scale"]

    def encode(self, name: str, rows: Array) -> list[Column]:
        """Round to the nearest multiple of the scale."""
        flat = rows.reshape(len(rows), -1)
        scale = (np.abs(flat).max(axis=1) / np.float32(_LEVELS)).astype(np.float32)
        scale[scale < _LEAST_SCALE] = 0.0  # subnormal: too coarse to divide by
        whole = flat / np.where(scale, scale, np.inf).astype(np.float32)[:, None]
        stored = np.rint(whole, out=whole).clip(-_LEVELS, _LEVELS).astype("|i1")
        _, part = self.columns(name)
        return [_numbers(name, stored, self.shape, scale=part), _plain(part, scale)]

    def decode(self, name: str, table: pa.Table) -> Array:
        """Multiply."""
        numbers, part = self.columns(name)
        scale = table.column(part).to_numpy().reshape(-1, *[1] * len(self.shape))
        found: Array = _view(table.column(numbers), np.dtype("|i1"), self.shape) * scale
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
    def row_bytes(self) -> int:
        """Values, classes, and the number for the others."""
        return self.values.row_bytes + self.kept * self._class_dtype.itemsize + 4

    @property
    def _class_dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.classes <= 1 << 16 else "<u4")

    def columns(self, name: str) -> list[str]:
        """Those of the values, then the classes and the number for the others."""
        return [*self.values.columns(name), f"{name}:classes", f"{name}:rest"]

    def encode(self, name: str, rows: Array) -> list[Column]:
        """Choose, and average what is left out."""
        chosen = np.argpartition(rows, self.classes - self.kept, axis=1)[:, self.classes - self.kept :]
        best_first = np.argsort(-np.take_along_axis(rows, chosen, axis=1), axis=1, kind="stable")
        chosen = np.take_along_axis(chosen, best_first, axis=1)
        stored = self.values.encode(name, np.take_along_axis(rows, chosen, axis=1))
        smallest = self.values.decode(name, _table(stored)).min(axis=1)
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

    def decode(self, name: str, table: pa.Table) -> Array:
        """Fill whole rows."""
        *_, classes, rest = self.columns(name)
        values = self.values.decode(name, table)
        fill = table.column(rest).to_numpy().astype(self.dtype)
        whole = np.repeat(fill[:, None], self.classes, axis=1)
        chosen = _view(table.column(classes), self._class_dtype, (self.kept,)).astype(np.int64)
        np.put_along_axis(whole, chosen, values, axis=1)
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


def columns_of(content: Content, names: Sequence[str]) -> list[str]:
    """Return all columns of some outputs."""
    return [column for name in names for column in codec_of(content, name).columns(name)]


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


def _table(columns: list[Column]) -> pa.Table:
    fields, values = zip(*columns, strict=True)
    return pa.Table.from_arrays(list(values), schema=pa.schema(fields))


def _view(column: pa.ChunkedArray, dtype: np.dtype[Any], shape: Shape) -> Array:
    """View the buffers of a column as one array [N, *shape]; a copy is made only of several chunks."""
    width = math.prod(shape)
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk) * width, chunk.offset * width * dtype.itemsize)
        for chunk in column.chunks
    ]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.reshape(-1, *shape)


def _log_mean_exp_of_others(rows: Array, chosen: Array) -> Array:
    """log(mean(exp(z))) over the columns of [N, C] that ``chosen`` [N, k] leaves out, float32 [N]."""
    others = rows.astype(np.float32)
    np.put_along_axis(others, chosen, -np.inf, axis=1)
    largest = others.max(axis=1, keepdims=True)
    total = np.exp(others - largest).sum(axis=1)
    found: Array = largest[:, 0] + np.log(total / (rows.shape[1] - chosen.shape[1]))
    return found
