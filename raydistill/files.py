"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from raydistill.errors import RunError

TEMPORARY = ".tmp"
_LONGEST_PATH = 4000
_LONGEST_NAME = 255
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def write_atomically(path: Path, data: str | bytes | memoryview) -> None:
    """Write a file so that a crash or a full disk leaves the old one or the new one, never a part.

    Raises:
        RunError: with the path and the system's reason; nothing is left behind.
    """
    with writing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be written piece by piece; it gets its name at the end, as ``write_atomically`` says.

    Raises:
        RunError: for an ``OSError`` of the file or of the context.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error


def is_refusal(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, a disk that is full or takes nothing more, and so from nothing else."""
    while error is not None and not (isinstance(error, OSError) and error.errno in _REFUSALS):
        error = error.__cause__
    return error is not None


def temporary_name(name: str) -> str:
    """Return a name under which ``name`` can be written; another for each attempt, as a lost one may still write."""
    return f".{name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}"


def temporary_names(name: str) -> str:
    """Return the pattern of all that ``temporary_name`` returns for a name."""
    return f".{name}.*{TEMPORARY}"


def possible_path(text: str) -> str:
    """Return a path, or URL, that a file system can hold. Raises ``ValueError``."""
    if "\0" in text or len(os.fsencode(text)) > _LONGEST_PATH:
        raise ValueError(f"must be a path of at most {_LONGEST_PATH} bytes, none of them 0")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in text.split("/")):
        raise ValueError(f"must be a path of names of at most {_LONGEST_NAME} bytes each")
    return text


def link_out_of(folder: Path) -> Path | None:
    """Return the first link below a folder that leads out of it, through which others would be read or written."""
    inside, waiting = folder.resolve(), [folder]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:  # what cannot be read leads nowhere
            for entry in entries:
                if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(inside):
                    return Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
    return None


def open_lock(path: Path) -> int:
    """Open a lock file, made where there is none, as a descriptor; never through a link. Raises ``OSError``."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def move_folder(source: Path, target: Path) -> None:
    """Give a finished folder its name, for good; a folder that has that name already is removed.

    Raises:
        RunError: with the path and the system's reason.
    """
    try:
        if target.exists():
            shutil.rmtree(target)
        source.rename(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise RunError(f"{target}: cannot be written: {error.strerror or error}") from error


def make_folders(*folders: Path) -> None:
    """Create folders. Raises ``RunError`` with the path and the system's reason."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder}: cannot be made: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
