"""Copies of runs from anybody: an index names files below the run's folder, or nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from raydistill.errors import DataError
from raydistill.training.backup import index
from raydistill.training.backup.copying import Copier
from raydistill.training.backup.index import INDEX, Index, Stored
from raydistill.training.backup.restoring import restore
from tests.security.attacks import nothing_written


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes(b"config")
    Copier(tmp_path / "run", tmp_path / "there").turn()
    return tmp_path / "there"


def index_with(files: dict[str, Any], **more: Any) -> str:
    """An index by somebody who can compute its checksum."""
    listed = [(path, entry.get("object"), entry.get("bytes")) for path, entry in sorted(files.items())]
    seal = xxhash.xxh3_128_hexdigest(json.dumps(listed).encode())
    return json.dumps({"format": 1, "files": files, "xxh3": seal, **more})


GOOD = {"object": xxhash.xxh3_128_hexdigest(b"config"), "bytes": 6}


@pytest.mark.parametrize(
    "text",
    [
        *(
            index_with({"config.yaml": GOOD, path: GOOD})
            for path in ("../escaped", "/tmp/escaped", "a/../../b", "a//b")
        ),
        *(index_with({path: GOOD}) for path in ("", ".", "..", "x\0", "logs/ray_tune/tuner.pkl", ".ssh", "a\\..\\b")),
        index_with({"a": GOOD, "a/b": GOOD}),
        index_with({"a": GOOD | {"object": "../../secret"}}),
        index_with({"a": GOOD | {"object": GOOD["object"].upper() + "/"}}),
        index_with({"a": GOOD | {"bytes": 2**50}}),
        index_with({"a": GOOD | {"bytes": -1}}),
        index_with({"a": GOOD | {"bytes": "6"}}),
        index_with({"a": GOOD | {"mode": 0o4755}}),
        index_with({"a": GOOD}, xxh3="0" * 32),
        index_with({"a": GOOD}, format=2),
        index_with({f"{number}": GOOD for number in range(20)}),
        "",
        "[]",
        "{",
        "[" * 100_000,
        "\x80",
    ],
)
def test_an_index_of_a_stranger_writes_nothing_elsewhere(
    tmp_path: Path, place: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MOST_INDEX_BYTES", 1000)
    (place / INDEX).write_text(text)
    with nothing_written(tmp_path), pytest.raises(DataError, match=r"index.json: damaged: ") as caught:
        restore(place, tmp_path / "back")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_an_index_of_too_many_files_is_refused() -> None:
    files = dict.fromkeys(map(str, range(index.MOST_FILES + 1)), Stored(object="0" * 32, bytes=0))
    with pytest.raises(ValueError, match="at most 200000 items"):
        Index.of(files)
