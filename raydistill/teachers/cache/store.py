"""What differs between a cache in a local folder and one behind a URL.

A ``Location`` is a ``pathlib.Path`` or a ``RemotePath``, which has its methods as far as a cache needs them. Nothing
here imports torch or Ray.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from raydistill.errors import RunError, StorageError
from raydistill.files import make_folders, write_atomically
from raydistill.progress import Progress, unwatched
from raydistill.teachers.cache.files import flocked
from raydistill.teachers.cache.remote import Location, RemotePath

if TYPE_CHECKING:
    from raydistill.teachers.cache.manifest import ShardRecord

T = TypeVar("T")
R = TypeVar("R")
SCRATCH = "RAYDISTILL_SCRATCH"
"""The environment variable that names the folder for a node's copies of remote shards."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_REQUESTS = 16


def location(place: str | Location) -> Location:
    """Return where a folder lies: a local path, or a URL whose storage is connected to.

    Raises:
        ConfigError: if a URL is not one, or of a storage that nobody knows.
        StorageError: if the storage cannot be reached, does not exist or refuses.
    """
    if not isinstance(place, str):
        return place
    if place.startswith("file://"):
        return Path(unquote(urlsplit(place).path))
    return RemotePath.parse(place) if _URL.match(place) else Path(place)


def prepare(*folders: Location) -> None:
    """Create local folders; an object store has none. Raises ``RunError``."""
    make_folders(*(folder for folder in folders if isinstance(folder, Path)))


def write(path: Location, data: str | bytes | memoryview) -> None:
    """Write a file that is there whole or not at all. Raises ``RunError`` with the path and the reason."""
    if isinstance(path, Path):
        write_atomically(path, data)
        return
    try:
        path.write(data)
    except StorageError as error:
        raise RunError(str(error).replace(f"{path}: ", f"{path}: cannot be written: ", 1)) from None


def size_of(path: Location) -> int | None:
    """Return the bytes of a file; None where there is no such file."""
    if isinstance(path, RemotePath):
        return path.size()
    return path.stat().st_size if path.is_file() else None


def file_sizes(folder: Location, suffix: str) -> dict[str, int]:
    """Return the bytes of the files in a folder whose names end in ``suffix``."""
    if isinstance(folder, Path):
        return {path.name: path.stat().st_size for path in folder.glob(f"*{suffix}")}
    return {path.name: size for path, size in folder.children() if size is not None and path.name.endswith(suffix)}


def folders_with(root: Location, name: str) -> list[Location]:
    """Return the folders under ``root`` that hold a file ``name``, in the order of their names."""
    if isinstance(root, Path):
        return [*sorted(path.parent for path in root.glob(f"*/{name}"))]
    folders = [path for path, size in root.children() if size is None]
    there = spread(root, lambda folder: (folder / name).is_file(), folders)
    return [folder for folder, holds in zip(folders, there, strict=True) if holds]


def remove_folder(folder: Location) -> None:
    """Delete a folder with all that is in it. Raises ``OSError`` or ``StorageError``."""
    if isinstance(folder, Path):
        shutil.rmtree(folder)
    else:
        folder.remove_folder()


def spread(folder: Location, function: Callable[[T], R], items: Iterable[T], progress: Progress = unwatched) -> list[R]:
    """Call a function for each item, several at a time where ``folder`` is remote and each call waits for answers."""
    items = list(items)
    if isinstance(folder, Path):
        return _counted(map(function, items), len(items), progress)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return _counted(pool.map(function, items), len(items), progress)


def _counted(answers: Iterator[R], total: int, progress: Progress) -> list[R]:
    found: list[R] = []
    for answer in answers:
        found.append(answer)
        progress(len(found) / total, f"{len(found)} of {total}")
    return found


def opened(path: Location) -> Any:
    """Return what Parquet readers take: a local path, or an open remote file of which they fetch what they need."""
    return path if isinstance(path, Path) else path.open()


def buffer_of(path: Location) -> pa.Buffer:
    """Return all bytes of a file: of a local one its memory map, of a remote one a copy. Raises ``OSError``."""
    if isinstance(path, RemotePath):
        return path.read_buffer()
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def local_file(path: Location, record: ShardRecord, key: str) -> Path:
    """Return a shard as a local file: of a remote cache a copy that all processes of this node share.

    Copies lie in ``$RAYDISTILL_SCRATCH``, or in a folder of this user's among the system's temporary ones. Their names
    hold the recorded sha256, which is checked before a copy gets its name: a copy is right, or it is not there.

    Args:
        path: of the shard in its cache.
        record: of the shard.
        key: of the cache.

    Raises:
        CacheError: if the shard is missing or not the recorded one.
        StorageError: if the storage cannot be reached or refuses.
        RunError: if the scratch folder can't be written.
    """
    if isinstance(path, Path):
        return path
    from raydistill.teachers.cache.shards import damaged

    folder = _scratch() / key
    make_folders(folder)
    copy = folder / f"{record.sha256[:16]}-{record.name}"
    with flocked(copy.with_name(f".{copy.name}.lock")):  # one process downloads, the others wait for it
        if size_of(copy) == record.bytes:
            return copy
        try:
            data = path.read_buffer()
        except FileNotFoundError:
            raise damaged(path, "missing") from None
        if hashlib.sha256(memoryview(data)).hexdigest() != record.sha256:
            raise damaged(path, "its sha256 is not the recorded one")
        write_atomically(copy, memoryview(data))
    return copy


def _scratch() -> Path:
    if given := os.environ.get(SCRATCH):
        return Path(given)
    folder = Path(tempfile.gettempdir()) / f"raydistill-{getpass.getuser()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror or error}; set {SCRATCH}") from error
    # In a folder that everybody may write to, another user could have put it, or a link, there.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise RunError(f"{folder}: belongs to somebody else; set {SCRATCH} to a folder of your own")
    return folder
