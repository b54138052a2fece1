"""Copies a run's folder as it stands, while others write to it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import xxhash

from raydistill.errors import DataError, RunError, StorageError
from raydistill.teachers.cache import store
from raydistill.teachers.cache.remote import Location
from raydistill.training.backup.index import INDEX, OBJECTS, Index, Stored, object_path, read_index, travels
from raydistill.training.checkpoint_files import FILE, RECORD, check_seal
from raydistill.training.run_folder import CHECKPOINTS

Signature = tuple[int, int, int, int]
"""Of a file that is not what it was: its inode, bytes, and times in ns of its content and of its inode."""
LARGE = 1 << 20
"""Bytes from which a file is sent as soon as it is read; smaller ones wait in memory for the whole state."""
LOOKS = 20


class Copier:
    """Brings one folder to its copy, turn by turn; the only one that writes there.

    ``moved`` is the time of the last request of a turn that was served, in seconds of ``time.monotonic``.
    """

    def __init__(self, folder: Path, place: Location, may_write: Callable[[], None] = lambda: None) -> None:
        """See what is there already.

        Args:
            folder: of the run.
            place: of its copy, whether there is one or not.
            may_write: called before each index; raises where this copy has become another process's meanwhile.

        Raises:
            StorageError: if the storage cannot be reached or refuses.
        """
        self.folder, self.place, self._may_write = folder, place, may_write
        store.prepare(place, place / OBJECTS)
        try:
            self._index = read_index(place)
        except DataError:  # the run in the folder is whole, and takes its place
            self._index = None
        self._there = store.file_sizes(place / OBJECTS, "")
        self._read: dict[str, tuple[Signature, Stored]] = {}
        self._records: dict[str, bytes] = {}
        self._copied: dict[str, Signature] | None = None
        self.moved = time.monotonic()

    def turn(self) -> None:
        """Copy the folder's state if it has changed: one in which all its files were together at one moment.

        Raises:
            RunError: where the storage does not take it, or the folder changes faster than it can be read.
            StorageError: where the storage cannot be reached.
        """
        waiting: dict[str, bytes] = {}
        for _ in range(LOOKS):
            seen = signatures(self.folder)
            if seen == self._copied:
                return
            self._read_changed(seen, waiting)
            if signatures(self.folder) == seen:
                self._write(seen, waiting)
                return
        raise RunError(f"{self.folder}: its files change faster than they can be read")

    def remove(self) -> None:
        """Delete the copy, its index first. Raises ``OSError`` or ``StorageError``."""
        self._may_write()
        (self.place / INDEX).unlink(missing_ok=True)
        store.remove_folder(self.place)

    def _read_changed(self, seen: Mapping[str, Signature], waiting: dict[str, bytes]) -> None:
        for path, signature in seen.items():
            before = self._read.get(path)
            if before and before[0] == signature and (self._is_there(before[1]) or before[1].object in waiting):
                continue
            try:
                data = (self.folder / path).read_bytes()
            except FileNotFoundError:  # the next look misses it too
                continue
            except OSError as error:
                raise RunError(f"{self.folder / path}: cannot be read: {error.strerror or error}") from None
            stored = Stored(object=xxhash.xxh3_128_hexdigest(data), bytes=len(data))
            if len(data) < LARGE:
                waiting[stored.object] = data
            elif not self._is_there(stored):
                self._send(stored, data)
            self._read[path] = signature, stored
            if path.endswith(f"/{RECORD}"):
                self._records[path] = data

    def _write(self, seen: Mapping[str, Signature], waiting: Mapping[str, bytes]) -> None:
        """Send what the storage lacks, then the index, and remove what neither it nor the one before names."""
        self._read = {path: self._read[path] for path in seen}
        self._records = {path: data for path, data in self._records.items() if path in seen}
        index = Index.of(dict(self._sealed({path: stored for path, (_, stored) in self._read.items()})))
        missing = {stored.object: stored for stored in index.files.values() if not self._is_there(stored)}
        store.spread(self.place, lambda stored: self._send(stored, waiting[stored.object]), missing.values())
        if index != self._index:
            self._may_write()
            store.write(self.place / INDEX, index.model_dump_json())
            self._remove_all_but(index.objects.keys() | (self._index.objects.keys() if self._index else set()))
            self._index = index
        self._copied = dict(seen)
        self.moved = time.monotonic()

    def _sealed(self, files: Mapping[str, Stored]) -> Iterator[tuple[str, Stored]]:
        """Leave out checkpoints that are not whole: half removed ones, or those without a record that fits."""
        for path, stored in files.items():
            if (checkpoint := _checkpoint_of(path)) is None or self._is_whole(checkpoint, files):
                yield path, stored

    def _is_whole(self, checkpoint: str, files: Mapping[str, Stored]) -> bool:
        state = files.get(f"{checkpoint}/{FILE}")
        try:
            record = json.loads(self._records[f"{checkpoint}/{RECORD}"])
            assert state is not None
            check_seal(record, state.bytes, state.object)
        except (AssertionError, LookupError, ValueError, TypeError, RecursionError):
            return False
        return True

    def _is_there(self, stored: Stored) -> bool:
        return self._there.get(stored.object) == stored.bytes

    def _send(self, stored: Stored, data: bytes) -> None:
        store.write(object_path(self.place, stored.object), data)
        self._there[stored.object] = stored.bytes
        self.moved = time.monotonic()

    def _remove_all_but(self, kept: set[str]) -> None:
        """Delete objects; what cannot be deleted now is left for the next time."""

        def removed(name: str) -> None:
            try:
                object_path(self.place, name).unlink(missing_ok=True)
            except (OSError, StorageError):
                return
            del self._there[name]

        store.spread(self.place, removed, sorted(self._there.keys() - kept))


def signatures(folder: Path) -> dict[str, Signature]:
    """Return the files below a folder that a copy holds, by their paths with ``/``, in order; links are none."""
    found: dict[str, Signature] = {}
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    path = f"{below}/{entry.name}".lstrip("/")
                    if not travels(path):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(path)
                    elif entry.is_file(follow_symlinks=False):
                        about = entry.stat(follow_symlinks=False)
                        found[path] = about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
        except FileNotFoundError:
            continue
    return dict(sorted(found.items()))


def _checkpoint_of(path: str) -> str | None:
    """Return the folder of the checkpoint to which a file belongs."""
    parts = PurePosixPath(path).parts
    if CHECKPOINTS not in parts[:-2]:
        return None
    return "/".join(parts[: parts.index(CHECKPOINTS) + 2])
