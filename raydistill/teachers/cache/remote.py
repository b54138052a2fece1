"""Folders behind a URL, with the few methods of ``pathlib.Path`` that a cache uses.

``s3://bucket/prefix`` and whatever else ``pyarrow.fs.FileSystem.from_uri`` knows, or an installed fsspec. Credentials
come from the environment (for S3 ``AWS_ACCESS_KEY_ID`` and its like, a profile or the machine's role), never from a
URL, which is written into run folders. ``AWS_ENDPOINT_URL`` or ``?endpoint_override=`` names another server than
Amazon's. Nothing here imports torch or Ray.
"""

from __future__ import annotations

import contextlib
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlencode, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from raydistill.errors import ConfigError, StorageError, did_you_mean
from raydistill.files import TEMPORARY, temporary_name

_CONNECT_SECONDS = 5
_SILENT_SECONDS = 10
_ATTEMPTS = 3
_LONGEST = 200
_ONE_REQUEST = 4 << 20
"""Bytes up to which an object is surely sent to S3 in one request; larger ones may go in parts."""
_S3_OPTIONS = ("endpoint_override", "region", "scheme")
_WHOLE_AT_ONCE = {"s3", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "cos"}
"""Schemes of object stores, where nobody sees an object before all of it is there."""
_DENIED = (
    "access was denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights that they have in this bucket"
)
_REASONS = {
    "NETWORK_CONNECTION": "the server cannot be reached; check the network and AWS_ENDPOINT_URL",
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED": _DENIED,
    "INVALID_ACCESS_KEY_ID": _DENIED,
    "INVALID_CLIENT_TOKEN_ID": _DENIED,
    "SIGNATURE_DOES_NOT_MATCH": _DENIED,
}
_AWS_ERROR = re.compile(r"AWS Error (\w+)[^:]*?during \w+ operation: (.*)", re.DOTALL)
_OTHER_REGION = re.compile(r"the bucket is located in '([^']+)'")


@dataclass(frozen=True)
class RemotePath:
    """A file or folder below ``root``, a URL without its query.

    Every method raises ``StorageError`` with one line where the storage cannot be reached or refuses.
    """

    root: str
    inner: str = ""
    query: str = ""

    @classmethod
    def parse(cls, url: str) -> RemotePath:
        """Connect to the storage of a URL; that once for each process.

        Raises:
            ConfigError: if the URL is not one.
            StorageError: if there is no such bucket, access is denied or the server cannot be reached.
        """
        parts = urlsplit(url)
        if parts.password or (parts.username and parts.scheme == "s3"):
            raise ConfigError(f"a {parts.scheme}:// URL holds credentials; leave them to the environment (AWS_...)")
        path = cls(url.partition("?")[0].rstrip("/"), query=parts.query)
        path._storage()
        return path

    def __str__(self) -> str:
        """The URL, which ``parse`` takes back."""
        url = f"{self.root}/{self.inner}" if self.inner else self.root
        return f"{url}?{self.query}" if self.query else url

    def __truediv__(self, name: str) -> RemotePath:
        """A path below this one."""
        return replace(self, inner=f"{self.inner}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """The last part."""
        return (self.inner or self.root).rpartition("/")[2]

    def resolve(self) -> RemotePath:
        """The same with the server and region written out, as other nodes may have another environment."""
        if not self.root.startswith("s3://"):
            return self
        return replace(self, query=urlencode(_s3_options(str(self), self.query)))

    def size(self) -> int | None:
        """Bytes of a file; None where there is no such file."""
        with self._translated():
            (found,) = self._files.get_file_info([self._path])
        return found.size if found.type == pafs.FileType.File else None

    def is_file(self) -> bool:
        """Whether there is such a file."""
        return self.size() is not None

    def is_dir(self) -> bool:
        """Whether there is such a folder, or anything below it."""
        with self._translated():
            (found,) = self._files.get_file_info([self._path])
        return bool(found.type == pafs.FileType.Directory)

    def children(self, *, recursive: bool = False) -> list[tuple[RemotePath, int | None]]:
        """What lies below, sorted: paths with the bytes of files, None for folders; [] where there is no folder."""
        base = self._path
        with self._translated():
            found = self._files.get_file_info(pafs.FileSelector(base, recursive=recursive, allow_not_found=True))
        rows = [
            (self / info.path[len(base) :].lstrip("/"), info.size if info.type == pafs.FileType.File else None)
            for info in found
        ]
        return sorted(rows, key=lambda row: row[0].inner)

    def open(self) -> Any:
        """Open for reading at any place: a ``pyarrow.NativeFile``. Raises ``FileNotFoundError``."""
        with self._translated():
            return self._files.open_input_file(self._path)

    def read_buffer(self) -> pa.Buffer:
        """Fetch the whole file into memory. Raises ``FileNotFoundError``."""
        with self._translated(), self._files.open_input_file(self._path) as file:
            return file.read_buffer(file.size())

    def read_bytes(self) -> bytes:
        """Fetch the whole file. Raises ``FileNotFoundError``."""
        return bytes(self.read_buffer().to_pybytes())

    def read_text(self, errors: str = "strict") -> str:
        """Fetch a file of UTF-8. Raises ``FileNotFoundError``."""
        return self.read_bytes().decode(errors=errors)

    def write(self, data: str | bytes | memoryview) -> None:
        """Write a file that others see whole or not at all."""
        if self.root.partition("://")[0] in _WHOLE_AT_ONCE:
            self._write(data)
            return
        folder, _, name = self.inner.rpartition("/")
        aside = replace(self, inner=f"{folder}/{temporary_name(name)}".lstrip("/"))
        with self._translated():
            self._files.create_dir(aside._path.rpartition("/")[0], recursive=True)
        try:
            aside._write(data)
            with self._translated():
                self._files.move(aside._path, self._path)
        finally:
            aside.unlink(missing_ok=True)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete a file."""
        try:
            with self._translated():
                self._files.delete_file(self._path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_folder(self) -> None:
        """Delete a folder with all that is in it, if it is there."""
        with self._translated(), contextlib.suppress(FileNotFoundError):
            self._files.delete_dir(self._path)

    def remove_temporaries(self) -> None:
        """Delete what a killed writer left below a folder."""
        for path, size in self.children(recursive=True):
            if size is not None and path.name.startswith(".") and path.name.endswith(TEMPORARY):
                path.unlink(missing_ok=True)

    def _write(self, data: str | bytes | memoryview) -> None:
        content = data.encode() if isinstance(data, str) else data
        files, _ = self._storage(in_parts=len(content) > _ONE_REQUEST)
        with self._translated(), files.open_output_stream(self._path) as file:
            file.write(content)

    def _storage(self, *, in_parts: bool = False) -> tuple[Any, str]:
        # Tests and notebooks change the environment of a living process.
        environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        return _connect(self.root, self.query, environment, in_parts)

    @property
    def _files(self) -> Any:
        return self._storage()[0]

    @property
    def _path(self) -> str:
        base = self._storage()[1]
        return f"{base}/{self.inner}" if self.inner else base

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the file system's errors, which are long, into one line; a missing file stays one."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(2, "no such file", str(self)) from error
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"{self}: {_reason(error)}") from None


Location: TypeAlias = Path | RemotePath
"""Where a cache, or a file of one, lies."""


@lru_cache(maxsize=64)
def _connect(
    root: str, query: str, environment: tuple[tuple[str, str], ...], in_parts: bool = False
) -> tuple[Any, str]:
    """Return the file system and the path of ``root`` in it; ``environment`` is what the credentials are taken from.

    ``in_parts`` is for objects that go to S3 in several requests.
    """
    del environment
    url = f"{root}?{query}" if query else root
    if root.startswith("s3://"):
        return _connect_s3(url, query, in_parts)
    if root.startswith("gs://") and "retry_limit_seconds" not in query:  # by itself it tries for a quarter of an hour
        url += f"{'&' if query else '?'}retry_limit_seconds={_CONNECT_SECONDS}"
    try:
        files, path = pafs.FileSystem.from_uri(url)
    except pa.ArrowInvalid:  # no scheme that pyarrow knows
        files, path = _through_fsspec(url)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{root}: {_reason(error)}") from None
    path = path.rstrip("/")
    try:
        files.get_file_info([path])  # some connect with the first question only
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{root}: {_reason(error)}") from None
    return files, path


def _connect_s3(url: str, query: str, in_parts: bool) -> tuple[Any, str]:
    path = url.partition("://")[2].partition("?")[0]
    bucket = path.partition("/")[0]
    if not bucket:
        raise ConfigError(f"{url}: names no bucket; write s3://BUCKET/FOLDER")
    options = _s3_options(url, query)
    try:
        files = pafs.S3FileSystem(
            **options,
            connect_timeout=_CONNECT_SECONDS,
            request_timeout=_SILENT_SECONDS,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
            # One request for a small object instead of three. A large one whose upload could not be begun would be
            # left there empty, as its stream, once closed, would send what it holds as a small object.
            allow_delayed_open=not in_parts,
        )
        (found,) = files.get_file_info([bucket])
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{url}: {_reason(error)}") from None
    if found.type == pafs.FileType.NotFound:
        raise StorageError(f"{url}: there is no bucket '{bucket}'; make it first")
    return files, path


def _s3_options(url: str, query: str) -> dict[str, str]:
    """Return server, scheme and region, from the URL or else from the environment."""
    given = {name: values[-1] for name, values in parse_qs(query).items()}
    for name in given:
        if name not in _S3_OPTIONS:
            raise ConfigError(f"{url}: unknown option '{name}'{did_you_mean(name, _S3_OPTIONS)}")
    environment = os.environ
    endpoint = given.get("endpoint_override") or environment.get("AWS_ENDPOINT_URL_S3")
    endpoint = endpoint or environment.get("AWS_ENDPOINT_URL") or ""
    region = given.get("region") or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    scheme, _, server = endpoint.rpartition("://")
    scheme = given.get("scheme") or scheme
    options = {"region": region or ("us-east-1" if server else _region_of(url))}
    if server:
        options["endpoint_override"] = server.rstrip("/")
    if scheme:
        options["scheme"] = scheme
    return options


@lru_cache(maxsize=64)
def _region_of(url: str) -> str:
    """Ask Amazon in which region a bucket lies."""
    try:
        return str(pafs.resolve_s3_region(urlsplit(url).netloc))
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{url}: {_reason(error)}") from None


def _through_fsspec(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ConfigError(f"{url}: '{scheme}' is no storage that pyarrow knows, and fsspec is not installed") from None
    try:
        files, path = url_to_fs(url)
    except (ImportError, ValueError) as error:  # of a scheme whose package is missing, or that nobody knows
        raise ConfigError(f"{url}: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise StorageError(f"{url}: {_reason(error)}") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(files)), str(path)


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if region := _OTHER_REGION.search(text):
        return f"the bucket lies in another region; set AWS_REGION={region[1]}"
    if found := _AWS_ERROR.search(text):
        return _REASONS.get(found[1], f"{found[1]}: {found[2]}".splitlines()[0])
    return textwrap.shorten(text.splitlines()[0], _LONGEST, placeholder=" ...")
