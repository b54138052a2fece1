"""Brings a run from its copy into a folder: all of it and as it was, or nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import xxhash

from raydistill.errors import ConfigError, DataError, RunError, StorageError
from raydistill.files import TEMPORARY, make_folders, move_folder, write_atomically
from raydistill.progress import Progress, unwatched
from raydistill.teachers.cache import store
from raydistill.teachers.cache.remote import Location
from raydistill.training.backup.index import INDEX, Index, Stored, object_path, read_index
from raydistill.training.run_folder import locked_run

_ATTEMPTS = 5


class _ObjectError(DataError):
    """An object is missing or not the one that the index names."""


def pull(url: str, folder: Path | None = None, *, progress: Progress = unwatched) -> tuple[Path, Index]:
    """Bring a run here from its copy; return its folder, ``runs/<name>`` where none is given, and what it holds.

    Raises:
        ConfigError: where the folder is there already, or is being written.
        DataError: where there is no copy, or it is damaged.
        StorageError: where the storage cannot be reached or refuses.
        RunError: where the folder cannot be written.
    """
    place = store.location(url)
    target = folder or Path("runs") / place.name
    with locked_run(target):
        if target.exists():
            raise ConfigError(f"{target}: is there already; name another folder, as in `raydistill pull URL FOLDER`")
        index = restore(place, target, progress=progress)
    if index is None:
        held = [folder.name for folder in store.folders_with(place, INDEX)]
        raise DataError(f"{place}: holds no copy of a run{f', but {held} below it do' if held else ''}")
    return target, index


def restore(place: Location, folder: Path, *, progress: Progress = unwatched) -> Index | None:
    """Make a folder of a copy and return the copy's index; None where there is no copy, and so no folder.

    The caller holds the run's lock. While the run goes on elsewhere, the copy may become a newer one meanwhile; then
    that is taken.

    Raises:
        DataError: where the copy is damaged; nothing is left then.
        StorageError: where the storage cannot be reached or refuses.
        RunError: where the folder cannot be written, or has no room.
    """
    aside = folder.with_name(f".{folder.name}.restored{TEMPORARY}")
    shutil.rmtree(aside, ignore_errors=True)  # of a command that was killed
    index = read_index(place)
    try:
        for _ in range(_ATTEMPTS):
            if index is None:
                return None
            try:
                _fetch(place, index, aside, progress)
                break
            except _ObjectError:
                before, index = index, read_index(place)
                if index == before:
                    raise
        else:
            raise RunError(f"{place}: changes faster than it can be read; try again, or when that run has ended")
        move_folder(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return index


def _fetch(place: Location, index: Index, folder: Path, progress: Progress) -> None:
    """Write all files of an index; of a newer one only those that are not there yet."""
    make_folders(folder, *{(folder / path).parent for path in index.files})
    room, needed = shutil.disk_usage(folder).free, sum(stored.bytes for stored in index.files.values())
    if needed > room:
        raise RunError(
            f"{folder.parent}: {needed} bytes are to come from {place}, but {room} are free; name a folder elsewhere"
        )

    def fetch(item: tuple[str, Stored]) -> None:
        path, stored = item
        data = _content(place, stored)
        write_atomically(folder / path, data)

    store.spread(place, fetch, index.files.items(), lambda share, counted: progress(share, f"{counted} files"))


def _content(place: Location, stored: Stored) -> bytes:
    path = object_path(place, stored.object)
    try:
        size = store.size_of(path)
        if size != stored.bytes:
            raise _damaged(path, "missing" if size is None else f"{size} bytes instead of {stored.bytes}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise _damaged(path, "missing") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if xxhash.xxh3_128_hexdigest(data) != stored.object:
        raise _damaged(path, "its content does not have the checksum that is its name")
    return data


def _damaged(path: Location, reason: str) -> _ObjectError:
    return _ObjectError(
        f"{path}: damaged: {reason}; nothing was restored. Where the run's folder still is, remove this object and "
        "--resume, which mends the copy; else start the run anew under another name=..."
    )
