"""A copy of the encoded images of Parquet files, one behind the other, so that any of them is one small read.

Parquet gives rows by whole row groups. Images in a random order lie each in another group, so a block of them costs
the reading of as many groups: with groups of a hundred images a hundred times what is wanted, unless the files fit into
memory. The copy takes the files' space once more, is made at the first use and found again as long as they stay the
same. Its layout: the bytes of all images, then int64 [N], little-endian, the byte behind each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raydistill.data.decoding import reason_of
from raydistill.errors import DataError
from raydistill.files import make_folders, writing
from raydistill.lazy import Tensor

if TYPE_CHECKING:
    from raydistill.data.encoded import Encoded

_SECONDS_BETWEEN_LINES = 10.0
_Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Spooled:
    """Images in one file.

    Attributes:
        file: of the bytes.
        starts: int64 [N], where each image begins.
        lengths: int64 [N], its bytes; 0 where there is none.
        original: what was copied, for the names.
        known_as: the original's stamp.
    """

    file: Path
    starts: _Numbers
    lengths: _Numbers
    original: Encoded
    known_as: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.starts)

    def name(self, position: int) -> str:
        """Return what the original calls it."""
        return self.original.name(position)

    def read(self, position: int) -> bytes | None:
        """Read the bytes; raises ``OSError``."""
        with open(self.file, "rb", buffering=0) as file:
            file.seek(int(self.starts[position]))
            return file.read(int(self.lengths[position])) or None

    def take(self, positions: Tensor) -> Spooled:
        """The images at ``positions``."""
        chosen = positions.numpy()
        starts, lengths = self.starts[chosen], self.lengths[chosen]
        return replace(self, starts=starts, lengths=lengths, original=self.original.take(positions))

    def stamp(self) -> str | None:
        """The original's: they hold the same bytes."""
        return self.known_as


def spooled(encoded: Encoded, folder: Path) -> Encoded:
    """Return the same images, read from a copy below ``folder``, which is made where it is not there yet.

    Images in files of their own, of which any is one read already, are returned as they are.

    Raises:
        DataError: an image can't be read, or the copy is not whole.
        RunError: the copy can't be written.
    """
    stamp = encoded.stamp()
    if stamp is None or not len(encoded):
        return encoded
    path = folder.absolute() / f"{stamp[:32]}.images"
    if not path.is_file():
        make_folders(path.parent)
        _copy(encoded, path)
    ends = _ends(path, len(encoded))
    starts = np.concatenate([[0], ends[:-1]])
    return Spooled(path, starts, ends - starts, encoded, stamp)


def _copy(encoded: Encoded, path: Path) -> None:
    lengths = np.zeros(len(encoded), dtype="<i8")
    with writing(path) as file:
        for position, data in enumerate(_contents(encoded)):
            lengths[position] = file.write(data)
        file.write(lengths.cumsum(dtype="<i8").tobytes())


def _contents(encoded: Encoded) -> Iterator[bytes]:
    started = told = time.monotonic()
    for position in range(len(encoded)):
        try:
            yield encoded.read(position) or b""
        except OSError as error:
            raise DataError(f"{encoded.name(position)}: {reason_of(error)}") from error
        if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            print(
                f"copied {position} of {len(encoded)} images, {position / (told - started):.0f} images/s",
                file=sys.stderr,
            )


def _ends(path: Path, count: int) -> _Numbers:
    """Read where the images end, int64 [N]."""
    try:
        size = path.stat().st_size
        ends: _Numbers = np.fromfile(path, dtype="<i8", offset=max(0, size - 8 * count)).astype(np.int64)
    except OSError as error:
        raise DataError(f"{path}: {reason_of(error)}") from error
    if len(ends) != count or int(ends[-1]) != size - 8 * count or bool((np.diff(ends, prepend=0) < 0).any()):
        raise DataError(f"{path}: not a whole copy of {count} images; remove it, and it is made again")
    return ends
