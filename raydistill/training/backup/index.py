"""What a copy of a run says about itself, and which files of a run's folder it can hold.

A copy is a folder ``<backup>/<name>``, behind a URL or on a disk::

    index.json     path -> object and bytes of every file, with a checksum: the state of the run that this copy is
    objects/*      contents, each named after its own XXH3-128

All objects of an index are there before it is, and it is replaced in one request. So a copy is always one state of the
run: a cut upload leaves an object that no index names. Nothing here imports torch or Ray.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raydistill.errors import DataError, StorageError
from raydistill.files import TEMPORARY, possible_path
from raydistill.teachers.cache import store
from raydistill.teachers.cache.remote import Location
from raydistill.training.checkpoint_files import PREFIX
from raydistill.training.run_folder import CHECKPOINTS, PROGRESS

INDEX = "index.json"
OBJECTS = "objects"
MOST_FILES = 200_000
MOST_INDEX_BYTES = 1 << 26
_LARGEST = 2**40
_READS, _BETWEEN_READS_S = 3, 0.1
"""An index that is replaced between the request for its length and that for its bytes comes cut, but not each time."""
_RAYS_STATE = "ray_"
"""With what the names of Ray's folders in ``logs/`` begin: pickles of one machine, which nothing goes on from."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Stored(_Part):
    """Where the content of a file lies, and how long it is."""

    object: str = Field(pattern="^[0-9a-f]{32}$")
    bytes: int = Field(ge=0, le=_LARGEST)


class Index(_Part):
    """The file ``index.json``; it may come from anybody, and its paths are where files will be written."""

    format: Literal[1] = 1
    files: Annotated[dict[str, Stored], Field(max_length=MOST_FILES)]
    xxh3: str

    @classmethod
    def of(cls, files: dict[str, Stored]) -> Index:
        """Seal a list of files."""
        return cls(files=files, xxh3=_seal(files))

    @model_validator(mode="after")
    def _a_run_and_nothing_else(self) -> Index:
        if self.xxh3 != _seal(self.files):
            raise ValueError("the list of files does not have its checksum")
        for path in self.files:
            if not travels(path):
                raise ValueError(f"{path!r} is no file that a copy of a run holds")
            if within := next((str(above) for above in PurePosixPath(path).parents if str(above) in self.files), None):
                raise ValueError(f"{within!r} is a file and a folder")
        return self

    @property
    def objects(self) -> dict[str, int]:
        """Object -> bytes."""
        return {stored.object: stored.bytes for stored in self.files.values()}


def _seal(files: dict[str, Stored]) -> str:
    listed = [(path, stored.object, stored.bytes) for path, stored in sorted(files.items())]
    return xxhash.xxh3_128_hexdigest(json.dumps(listed).encode())


def travels(path: str) -> bool:
    """Whether a file or folder of a run, by its path below the run's folder with ``/``, goes into a copy.

    Not what is being written, Ray's own state, what tells of the step under way, and checkpoints that are damaged.
    """
    parts = path.split("/")
    if any(part.startswith(".") or part.endswith(TEMPORARY) or not _is_name(part) for part in parts):
        return False
    try:
        possible_path(path)
    except ValueError:
        return False
    return not any(
        (folder == "logs" and (name.startswith(_RAYS_STATE) or name == PROGRESS))
        or (folder == CHECKPOINTS and not name.startswith(PREFIX))
        for folder, name in pairwise(parts)
    )


def _is_name(part: str) -> bool:
    return bool(part) and part.isprintable() and "\\" not in part


def read_index(place: Location) -> Index | None:
    """Read and check a copy's index; None where there is none.

    Raises:
        DataError: if it is damaged, or lists what no copy of a run holds.
        StorageError: if the storage cannot be reached or refuses.
    """
    for _ in range(_READS - 1):
        with suppress(DataError):
            return _read_index(place / INDEX)
        time.sleep(_BETWEEN_READS_S)
    return _read_index(place / INDEX)


def _read_index(path: Location) -> Index | None:
    try:
        size = store.size_of(path)
        if size is None:
            return None
        if size > MOST_INDEX_BYTES:
            raise DataError(f"{path}: damaged: {size} bytes, which no list of a run's files has")
        return Index.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        said = f"{where}: {first['msg'].removeprefix('Value error, ')}"
        raise DataError(f"{path}: damaged: {' '.join(said.split())[:300]}") from None


def object_path(place: Location, name: str) -> Location:
    """Return where an object lies."""
    return place / OBJECTS / name
