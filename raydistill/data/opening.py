"""From encoded images to a set: all are decoded once, to be kept or to know which of them can be."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
from PIL import Image

from raydistill.data.decoding import Pixels, attempt, reason_of, threads
from raydistill.data.encoded import DIGEST_BYTES, Encoded, EncodedImages, digest_of
from raydistill.data.image_set import DecodedImages, ImageSet, Skipped, describe
from raydistill.data.machine import fits
from raydistill.data.spool import spooled
from raydistill.errors import DataError, RunError
from raydistill.files import make_folders, write_atomically
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

_CHUNK = 512
_SECONDS_BETWEEN_LINES = 10.0
_Result = tuple[Pixels | str, bytes]


@dataclass(frozen=True)
class Checked:
    """What one decoding of all images told.

    Attributes:
        digests: uint8 [N, 16], without meaning where an image is damaged.
        damaged: position -> reason.
        frame: (H, W) of every other image.
    """

    digests: np.ndarray[tuple[int, int], np.dtype[np.uint8]]
    damaged: dict[int, str]
    frame: tuple[int, int]


def open_images(
    config: DataConfig,
    encoded: Encoded,
    ids: Tensor,
    labels: Tensor | None,
    *,
    num_classes: int,
    targets: Tensor | None = None,
) -> ImageSet:
    """Make a set of encoded images with their ids, int64 [N], and labels, int64 [N], or targets, int8 [N, C].

    By ``data.reading`` its pixels are one tensor or decoded on demand; either way damaged images are found now, and
    both have the same order, ids and fingerprint.

    Raises:
        DataError: an image is damaged (or too many are, with ``on_error: skip``), sizes differ without an
            ``image_size``, or labels and ids are wrong.
        RunError: the copy that ``data.spool`` asks for can't be written.
    """
    kept = None if _streams(config, encoded) else _Kept(len(encoded))
    if kept is None and config.spool is not None:
        encoded = spooled(encoded, Path(config.spool))
    checked = (kept is None and _remembered(config, encoded)) or _check(config, encoded, kept)
    damaged = checked.damaged
    _check_damage(config, encoded, damaged)
    whole = torch.tensor([position for position in range(len(encoded)) if position not in damaged])
    described = describe(
        config, ids[whole], None if labels is None else labels[whole], num_classes=num_classes, channels=3
    )
    digests = torch.from_numpy(checked.digests)[whole]
    targets = None if targets is None else targets[whole]
    skipped = tuple(Skipped(int(ids[position]), encoded.name(position), reason) for position, reason in damaged.items())
    if kept is not None:
        return DecodedImages(decoded=kept.tensor(whole), digests=digests, skipped=skipped, targets=targets, **described)
    return EncodedImages(
        encoded=encoded.take(whole),
        size=config.image_size,
        frame=checked.frame,
        digests=digests,
        skipped=skipped,
        targets=targets,
        **described,
    )


class _Kept:
    """Pixels of the images that could be decoded, filled in as they come."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pixels: Tensor | None = None

    def put(self, position: int, pixels: Pixels) -> None:
        if self._pixels is None:
            self._pixels = torch.empty((self._count, 3, *pixels.shape[:2]), dtype=torch.uint8)
        self._pixels[position] = torch.tensor(pixels).permute(2, 0, 1)

    def tensor(self, positions: Tensor) -> Tensor:
        """Uint8 [M, 3, H, W] of the positions, int64 [M] ascending."""
        assert self._pixels is not None
        return self._pixels if len(positions) == self._count else self._pixels[positions]


def _streams(config: DataConfig, encoded: Encoded) -> bool:
    if config.reading != "auto":
        return config.reading == "stream"
    size = config.image_size
    frame = (size, size) if size else _first_frame(encoded)
    return not fits(len(encoded) * 3 * frame[0] * frame[1])


def _first_frame(encoded: Encoded) -> tuple[int, int]:
    """(H, W) of the first whole image, which all others must have; (0, 0) where none is whole."""
    for position in range(len(encoded)):
        found, _ = _examine(encoded, position, None)
        if not isinstance(found, str):
            return found.shape[0], found.shape[1]
    return 0, 0


def _check(config: DataConfig, encoded: Encoded, kept: _Kept | None) -> Checked:
    """Decode every image and, for a set that decodes on demand, remember what that told."""
    stamp = encoded.stamp() if kept is None else None  # of before, so that a file changed meanwhile is looked at again
    digests = np.zeros((len(encoded), DIGEST_BYTES), dtype=np.uint8)
    damaged: dict[int, str] = {}
    first: tuple[int, tuple[int, ...]] | None = None
    started = told = time.monotonic()
    for position, (found, digest) in enumerate(_examined(encoded, config.image_size)):
        if isinstance(found, str):
            damaged[position] = found
            _check_damage(config, encoded, damaged)
            continue
        first = first or (position, found.shape)
        if found.shape != first[1]:
            raise DataError(
                f"images differ in size: {encoded.name(first[0])} is {first[1][1]} x {first[1][0]}, "
                f"{encoded.name(position)} is {found.shape[1]} x {found.shape[0]}; set data.image_size"
            )
        digests[position] = np.frombuffer(digest, dtype=np.uint8)
        if kept is not None:
            kept.put(position, found)
        if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            rate = position / (told - started)
            print(f"checked {position} of {len(encoded)} images, {rate:.0f} images/s", file=sys.stderr)
    if first is None:
        raise DataError(f"data set '{config.name}' at {config.root}: no image in it")
    checked = Checked(digests, damaged, (first[1][0], first[1][1]))
    if stamp is not None:
        _remember(_record_path(config, stamp), checked)
    return checked


def _examined(encoded: Encoded, size: int | None) -> Iterator[_Result]:
    """Pixels, or the reason why there are none, and digest of each image in turn.

    Work is handed out in chunks so that an error on an early image stops before all others are decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for start in range(0, len(encoded), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(encoded)))
            yield from threads().map(lambda position: _examine(encoded, position, size), chunk)


def _examine(encoded: Encoded, position: int, size: int | None) -> _Result:
    try:
        data = encoded.read(position)
    except OSError as error:
        return reason_of(error), b""
    return ("no image", b"") if data is None else (attempt(data, size), digest_of(data))


def _check_damage(config: DataConfig, encoded: Encoded, damaged: dict[int, str]) -> None:
    """Raise ``DataError`` for more damage than the configuration allows."""
    if not damaged:
        return
    position = next(iter(damaged)) if config.on_error == "stop" else next(reversed(damaged))
    example = f"{encoded.name(position)}: {damaged[position]}"
    if config.on_error == "stop":
        raise DataError(f"{example} (set data.on_error to skip to go on without damaged images)")
    if len(damaged) > config.max_errors * len(encoded):
        raise DataError(
            f"{len(damaged)} of {len(encoded)} images can't be decoded, above data.max_errors {config.max_errors}; "
            f"the last: {example}"
        )


def _record_path(config: DataConfig, stamp: str) -> Path:
    """Where the check of these files is remembered: in the user's cache folder, since data are often read-only."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    decides = json.dumps([stamp, config.image_size, Image.MAX_IMAGE_PIXELS, PIL.__version__])
    return Path(base, "raydistill", "checked", f"{hashlib.sha256(decides.encode()).hexdigest()[:32]}.npz")


def _remember(path: Path, checked: Checked) -> None:
    buffer = io.BytesIO()
    rest = json.dumps({"damaged": list(checked.damaged.items()), "frame": checked.frame})
    np.savez(buffer, digests=checked.digests, rest=np.array(rest))
    with contextlib.suppress(RunError):  # then the images are checked again the next time
        make_folders(path.parent)
        write_atomically(path, buffer.getvalue())


def _remembered(config: DataConfig, encoded: Encoded) -> Checked | None:
    """Return what was found when the very same files were checked before."""
    stamp = encoded.stamp()
    if stamp is None:
        return None
    try:
        with np.load(_record_path(config, stamp), allow_pickle=False) as file:
            digests, rest = file["digests"], json.loads(str(file["rest"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if digests.shape != (len(encoded), DIGEST_BYTES):
        return None
    height, width = rest["frame"]
    return Checked(digests, dict(rest["damaged"]), (height, width))
