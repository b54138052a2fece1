"""What a cache says about itself, and the name that follows from what decides its content.

A cache is a folder ``<root>/<model>-<key>``, on a disk or behind a URL::

    manifest.json        content, versions and shards
    shards/*.parquet     rows (sample_id, view_id) with one column for each output
    records/*.json       one record for each finished shard: what a resumed build trusts
    errors.parquet       sample_id, path and reason of images that could not be decoded; only where there are any
    _SUCCESS             sha256 of manifest.json, written last

Nothing here imports torch or Ray.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from raydistill.errors import CacheError
from raydistill.files import link_out_of
from raydistill.teachers.cache import store
from raydistill.teachers.cache.remote import Location

MANIFEST = "manifest.json"
SUCCESS = "_SUCCESS"
SHARDS = "shards"
RECORDS = "records"
ERRORS = "errors.parquet"
REPAIR = "raydistill cache build CONFIG"
_KEY_DIGITS = 20
_LATER_DEFAULTS = (("compression", "none"), ("top_k", None))
P = TypeVar("P", bound=BaseModel)
_LARGEST = 2**40
_MOST_BYTES = 1 << 28
"""Of a manifest or record; a file that is none, such as a pipe, has no bytes."""
_Size = Annotated[int, Field(ge=1, le=_LARGEST)]
"""A manifest may come from anybody, and what it counts must not be beyond all machines."""
_LIBRARIES = ("raydistill", "torch", "torchvision", "timm", "numpy", "pyarrow", "ray")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataContent(_Part):
    """Which images, in which order; ``ids`` is the sha256 of the ordered little-endian int64 ids."""

    fingerprint: str
    count: _Size
    ids: str


class TeacherContent(_Part):
    """Which network; ``weights`` is ``weights_fingerprint``, ``outputs`` and ``taps`` map names to shapes and paths."""

    model: str
    weights: str
    outputs: dict[str, tuple[_Size, ...]]
    taps: dict[str, str] = {}

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As in Content: teachers without taps keep the names of their caches.
        values: dict[str, Any] = handler(self)
        return values if self.taps else {name: value for name, value in values.items() if name != "taps"}


class Preprocessing(_Part):
    """How pixels become the network's input; ``image_shape`` is (C, H, W)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[_Size, _Size, _Size]


class PartnersContent(_Part):
    """The images that views are mixed with: what ``split_seed`` and ``validation`` leave for training.

    ``ids`` is the sha256 of their ascending little-endian int64 ids.
    """

    ids: str
    count: int = Field(ge=2, le=_LARGEST)
    split_seed: int
    validation: float


class Augmentation(_Part):
    """What the views 1 to V show; ``partners`` where ``operations`` mix images."""

    operations: dict[str, Any]
    seed: int
    partners: PartnersContent | None = None

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As in Content: where nothing is mixed, caches keep their names.
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if (name, value) != ("partners", None)}


class Content(_Part):
    """Everything that decides what lies in a cache; ``views`` counts the augmented views beside view 0."""

    format: Literal[1] = 1
    data: DataContent
    teacher: TeacherContent
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    views: int = Field(ge=0, le=1000)
    dtype: Literal["float16", "float32", "int8"]
    shard_rows: _Size
    compression: Literal["none", "zstd"] = "none"
    top_k: _Size | None = None

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Caches from before these fields keep their names, which are hashes of what is written here.
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if (name, value) not in _LATER_DEFAULTS}

    @property
    def mixes(self) -> bool:
        """Whether views are mixed with other images."""
        return self.augmentation is not None and self.augmentation.partners is not None

    @property
    def key(self) -> str:
        """The hash that names the cache."""
        return content_hash(self)

    @property
    def folder_name(self) -> str:
        """``<model>-<key>``, with the model's slash or colon replaced."""
        return f"{self.teacher.model.replace('/', '-').replace(':', '-')}-{self.key}"

    @property
    def shard_count(self) -> int:
        """Number of shards."""
        return (self.views + 1) * math.ceil(self.data.count / self.shard_rows)

    def shards(self) -> Iterator[tuple[int, int, int]]:
        """Yield (view, first position, rows) of every shard, the same for every builder."""
        for view in range(self.views + 1):
            for first in range(0, self.data.count, self.shard_rows):
                yield view, first, min(self.shard_rows, self.data.count - first)


class Block(_Part):
    """A column's numbers as one stretch of a shard's file: its first byte, and the XXH3-64 of the stretch."""

    offset: int = Field(ge=0, le=_LARGEST)
    xxh3: str


class ShardRecord(_Part):
    """One finished shard: its place, its file, and how many images went through the teacher for it.

    ``device`` is the type of the teacher's, as ``cpu``. ``blocks`` names the columns that can be read without Parquet.
    Caches from before have neither.
    """

    name: str
    view: int = Field(ge=0, le=1000)
    first: int = Field(ge=0, le=_LARGEST)
    rows: _Size
    bytes: _Size
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # a part of it names the copies of remote shards
    ids: str
    forwards: int = Field(ge=0, le=_LARGEST)
    device: str = ""
    blocks: dict[str, Block] = {}

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Records from before are written as they were.
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if value or name not in ("device", "blocks")}

    @model_validator(mode="after")
    def _named_after_its_place(self) -> ShardRecord:
        # Names become paths: nothing but the one possible name may pass.
        if self.name != shard_name(self.view, self.first):
            raise ValueError(f"shard '{self.name}' is not the one of view {self.view} from row {self.first}")
        return self


class Manifest(_Part):
    """The file ``manifest.json``; ``shards`` is empty while the cache is being built."""

    key: str
    content: Content
    versions: dict[str, str]
    created: str
    shards: tuple[ShardRecord, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.key != self.content.key:
            raise ValueError(f"content was edited: its hash is {self.content.key}, not {self.key}")
        if self.shards and len(self.shards) != self.content.shard_count:
            raise ValueError(f"{len(self.shards)} shards instead of {self.content.shard_count}")
        places = [(shard.view, shard.first, shard.rows) for shard in self.shards]
        if places and places != list(self.content.shards()):
            raise ValueError("the list of shards does not cover the images")
        return self

    @property
    def rows(self) -> int:
        """Rows of all views."""
        return self.content.data.count * (self.content.views + 1)


def content_hash(content: Content) -> str:
    """Return the hexadecimal hash of all fields: equal requests share a name, unequal ones do not."""
    text = json.dumps(content.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def shard_name(view: int, first: int) -> str:
    """Return the file name of the shard of ``view`` that begins at position ``first``."""
    return f"v{view:04d}-{first:010d}.parquet"


def shard_path(folder: Location, name: str) -> Location:
    """Return where a shard lies."""
    return folder / SHARDS / name


def record_path(folder: Location, name: str) -> Location:
    """Return where the record of a shard lies."""
    return folder / RECORDS / PurePath(name).with_suffix(".json").name


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that may decide a last bit of the values."""
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_part(path: Location, part: BaseModel) -> None:
    """Write a manifest or a record atomically. Raises ``RunError`` where the disk refuses."""
    store.write(path, (part.model_dump_json(indent=1) + "\n").encode())


def read_manifest(folder: Location) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        CacheError: if the folder is no cache, or the file is damaged, edited or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CacheError(f"{folder}: not a teacher cache (no {MANIFEST}); build one with `{REPAIR}`")
    return _parse(Manifest, path)


def check_links(folder: Location) -> None:
    """Raise ``CacheError`` where a link leads out of a local cache: its builder writes, and its readers read, there."""
    if isinstance(folder, Path) and (link := link_out_of(folder)):
        raise CacheError(f"{link}: a link that leads out of the cache; remove it, then run `{REPAIR}`")


def read_record(folder: Location, name: str) -> ShardRecord | None:
    """Return the record of a shard, or None where there is none that can be trusted."""
    try:
        record = _parse(ShardRecord, record_path(folder, name))
    except CacheError:
        return None
    return record if record.name == name else None


def check_success(folder: Location) -> None:
    """Raise ``CacheError`` unless the build was finished and the manifest is the one it wrote."""
    marker, manifest = folder / SUCCESS, folder / MANIFEST
    if not marker.is_file():
        raise CacheError(f"{folder}: not finished (no {SUCCESS}); finish it with `{REPAIR}`")
    if marker.read_text(errors="replace").strip() != hashlib.sha256(manifest.read_bytes()).hexdigest():
        raise CacheError(f"{manifest}: changed after the build; repair it with `{REPAIR}`")


def _parse(kind: type[P], path: Location) -> P:
    try:
        if isinstance(path, Path) and not 0 < (size := store.size_of(path) or 0) <= _MOST_BYTES:
            raise CacheError(f"{path}: not there, or damaged: {size} bytes; repair it with `{REPAIR}`")
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        reason = first["msg"].removeprefix("Value error, ")
        said = " ".join(f"{place}: {reason}".split())
        raise CacheError(f"{path}: damaged: {said}; repair it with `{REPAIR}`") from None
