"""Images that stay encoded, in files of their own or in rows of Parquet, and are decoded when they are asked for."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import pyarrow as pa

from raydistill.data.decoding import Pixels, attempt, reason_of, threads
from raydistill.data.image_set import ImageSet
from raydistill.data.machine import check_fits
from raydistill.data.modalities import converted
from raydistill.errors import DataError
from raydistill.lazy import Tensor, torch

DIGEST_BYTES = 16


class Encoded(Protocol):
    """Where encoded images lie: small, and quick to send to another process."""

    def __len__(self) -> int:
        """Number of images."""

    def name(self, position: int) -> str:
        """What errors call an image."""

    def read(self, position: int) -> bytes | None:
        """Return the encoded bytes, or None where there are none; raises ``OSError``."""

    def take(self, positions: Tensor) -> Self:
        """The images at ``positions``, int64 [M], in that order."""

    def stamp(self) -> str | None:
        """Names, sizes and times of change of all files in one hash, or None where they can't all be told."""


@dataclass(frozen=True)
class Files:
    """A file for each image; ``paths`` is binary [N], whose memory other processes can share."""

    paths: pa.Array

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Files:
        """Take the paths, which another process may not see from the same folder."""
        return cls(pa.array([os.fsencode(path.absolute()) for path in paths], pa.large_binary()))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def name(self, position: int) -> str:
        """Return the path."""
        return os.fsdecode(self.paths[position].as_py())

    def read(self, position: int) -> bytes:
        """Read the file."""
        return read_whole(self.paths[position].as_py())

    def take(self, positions: Tensor) -> Files:
        """The files at ``positions``."""
        return Files(self.paths.take(pa.array(positions.numpy())))

    def stamp(self) -> str | None:
        """Ask the file system about every file."""
        digest = hashlib.sha256()
        try:
            for path in self.paths.to_pylist():
                found = os.stat(path)
                digest.update(b"%b\0%d %d\0" % (path, found.st_size, found.st_mtime_ns))
        except OSError:
            return None
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedImages(ImageSet):
    """A set that knows where its images lie and decodes them on demand, with threads.

    Its order and ids were settled when it was opened, by decoding every image once. Each image is compared with the
    digest of then, so nobody is ever shown other pixels than the fingerprint speaks of.

    Attributes:
        encoded: where the images lie.
        size: that the shorter side is scaled to and the centre cut, or None.
        frame: (H, W) of every decoded image.
    """

    encoded: Encoded
    size: int | None
    frame: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return len(self.mean), *self.frame

    @property
    def images(self) -> Tensor:
        """Decode all: uint8 [N, C, H, W]; raises ``DataError`` where they would not fit into memory."""
        check_fits(len(self) * int(np.prod(self.shape)))
        return self.pixels(torch.arange(len(self)))

    def pixels(self, positions: Tensor) -> Tensor:
        """The images at ``positions``, int64 [B], as uint8 [B, C, H, W] on the CPU.

        Raises:
            DataError: a file was changed or lost since the set was opened, or has colours where all should be grey.
        """
        wanted = positions.tolist()
        decoded = np.empty((len(wanted), 3, *self.frame), dtype=np.uint8)

        def fill(row: int) -> None:
            decoded[row] = self._pixels_of(wanted[row]).transpose(2, 0, 1)

        # In the order of the files: rows of one group of a Parquet file are then read together.
        in_order = sorted(range(len(wanted)), key=wanted.__getitem__)
        for _ in threads().map(fill, in_order):
            pass
        return converted(torch.from_numpy(decoded), self.modality)

    def take(self, positions: Tensor) -> Self:
        """The images at ``positions``, int64 [M], in that order."""
        return replace(super().take(positions), encoded=self.encoded.take(positions))

    def _pixels_of(self, position: int) -> Pixels:
        name = self.encoded.name(position)
        try:
            data = self.encoded.read(position)
        except OSError as error:
            raise DataError(f"{name}: {reason_of(error)}; it was there when the images were checked") from error
        assert self.digests is not None
        if data is None or digest_of(data) != self.digests[position].numpy().tobytes():
            raise DataError(f"{name}: changed since the images were checked; run again (or `touch` it first) to use it")
        found = attempt(data, self.size)
        if isinstance(found, str):
            raise DataError(f"{name}: {found}; it could be decoded when the images were checked")
        return found


def read_whole(path: bytes | Path) -> bytes:
    """Read a file; what is none, such as a pipe or a device, might never end. Raises ``OSError``."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("no regular file")
        return file.read()


def digest_of(data: bytes) -> bytes:
    """Return the digest that stands for an image's encoded bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
