"""Caches from anybody: rows or one line, whatever manifest, shards and links say."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydistill.errors import CacheError
from raydistill.teachers.cache.commit import begin, clear_the_way, finish
from raydistill.teachers.cache.files import locked
from raydistill.teachers.cache.manifest import (
    MANIFEST,
    RECORDS,
    SHARDS,
    SUCCESS,
    Content,
    DataContent,
    Preprocessing,
    TeacherContent,
    content_hash,
    write_part,
)
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.shards import Place, encode, ids_sha256
from raydistill.teachers.cache.verify import verify
from tests.security.attacks import Trap, as_json, command, mutated_values, nothing_written, refused

ROWS = 6
SHARD_ROWS = 4


def a_cache(root: Path, **fields: Any) -> Path:
    """A sound cache of made-up numbers, without a teacher."""
    ids = np.arange(ROWS, dtype=np.int64)
    content = Content(
        data=DataContent(fingerprint="f", count=ROWS, ids=ids_sha256(ids)),
        teacher=TeacherContent(model="resnet8", weights="w", outputs={"embedding": (3,), "logits": (5,)}),
        preprocessing=Preprocessing(mean=(0.5,), std=(0.5,), image_shape=(1, 8, 8)),
        augmentation=None,
        **{"views": 0, "dtype": "float16", "shard_rows": SHARD_ROWS, **fields},
    )
    folder = root / content.folder_name
    for name in (SHARDS, RECORDS):
        (folder / name).mkdir(parents=True)
    begin(folder, content)
    draw, done = np.random.default_rng(0), {}
    for shard in content.shards():
        place = Place(content.key, *shard)
        rows = {name: draw.normal(size=(place.rows, *shape)) for name, shape in content.teacher.outputs.items()}
        numbers = {name: values.astype(np.float32) for name, values in rows.items()}
        encoded = encode(content, place, ids[place.first : place.first + place.rows], numbers, None)
        (folder / SHARDS / place.name).write_bytes(encoded.data)
        done[place.name] = encoded.record(place.rows)
        write_part(folder / RECORDS / place.name.replace(".parquet", ".json"), done[place.name])
    finish(folder, content, done)
    return folder


def sign(folder: Path, manifest: bytes) -> None:
    """Put a manifest in place as its builder would."""
    (folder / MANIFEST).write_bytes(manifest)
    (folder / SUCCESS).write_text(hashlib.sha256(manifest).hexdigest())


def read_all(folder: Path) -> None:
    cache = TeacherCache.open(folder)
    cache.read(cache.ids[:2])
    cache.table(cache.ids, cache.views, cache.outputs)


def rehashed(values: Any) -> Any:
    """The manifest with the key that its content has, if it has one, so that what comes behind is reached."""
    try:
        content = Content.model_validate_json(as_json(values["content"]))
    except (ValueError, KeyError, TypeError):
        return values
    return {**values, "key": content_hash(content)}


def check_mutations(folder: Path, count: int) -> None:
    draw = random.Random(count)
    sound = json.loads((folder / MANIFEST).read_text())
    opened = 0
    for number in range(count):
        values = sound
        for _ in range(draw.choice((1, 1, 2))):
            values = mutated_values(values, draw)
        manifest = as_json(rehashed(values) if isinstance(values, dict) else values)
        if draw.random() < 0.1:
            place = draw.randrange(len(manifest))
            manifest = manifest[:place] + bytes([draw.randrange(256)]) + manifest[place + draw.choice((0, 1, 9)) :]
        sign(folder, manifest)
        try:
            with nothing_written(folder.parent):
                read_all(folder)
            opened += 1
        except CacheError as error:
            assert "\n" not in str(error)
        except BaseException as error:
            error.add_note(repr(manifest))
            raise
        if number % 10 == 0:
            assert all("\n" not in problem for problem in verify(folder, full=True))
        if number % 100 == 0:
            assert command("cache", "verify", str(folder)).exit_code in (0, 1)
            assert command("cache", "ls", str(folder.parent)).exit_code == 0
    assert opened > count / 100


def test_mutated_manifests_are_manifests_or_refused(tmp_path: Path) -> None:
    check_mutations(a_cache(tmp_path / "cache"), 1_000)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"compression": "zstd", "top_k": 2}], ids=["plain", "top_k"])
def test_ten_thousand_mutated_manifests(tmp_path: Path, fields: dict[str, Any]) -> None:
    check_mutations(a_cache(tmp_path / "cache", **fields), 5_000)


def changed(folder: Path, change: Callable[[dict[str, Any]], object], *, key: bool = True) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    sign(folder, as_json(rehashed(values) if key else values))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["shards"][0].update(name="../../../outside.parquet"),
        lambda m: m["shards"][0].update(name="/etc/passwd"),
        lambda m: m["shards"][0].update(name="v0000-0000000000.parquet/../../x"),
        lambda m: m["shards"][0].update(sha256="../../../../x"),
        lambda m: m["content"]["data"].update(count=10**12),
        lambda m: m["content"].update(views=10**9),
        lambda m: m["content"].update(shard_rows=10**30),
        lambda m: m["content"]["teacher"]["outputs"].update(embedding=[10**9]),
        lambda m: m["content"]["teacher"]["outputs"].update(embedding=[2**39, 2**39]),
        lambda m: m["content"]["teacher"]["outputs"].update(embedding=[-3]),
        lambda m: m["content"]["teacher"]["outputs"].update(more=[3]),
        lambda m: m["shards"][0].update(rows=10**9),
        lambda m: m.update(shards=[]),
        lambda m: m.update(shards=m["shards"][:1] * 1000),
    ],
    ids=range(14),
)
def test_manifests_that_lead_away_or_lie_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    folder = a_cache(tmp_path / "cache")
    changed(folder, change)
    with nothing_written(tmp_path):
        assert str(folder) in refused("cache", "export", str(folder), str(tmp_path / "out.npz"))


def test_a_key_that_is_none_and_a_block_beyond_its_file_are_refused(tmp_path: Path) -> None:
    folder = a_cache(tmp_path / "cache")
    changed(folder, lambda m: m["shards"][0]["blocks"]["embedding"].update(offset=2**39))
    with pytest.raises(CacheError, match="damaged"):
        read_all(folder)
    changed(folder, lambda m: m.update(key="../../x"), key=False)
    with pytest.raises(CacheError, match="content was edited"):
        read_all(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "", "null", "\x00", "NaN"])
def test_manifests_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    folder = a_cache(tmp_path / "cache")
    sign(folder, text.encode())
    refused("cache", "export", str(folder), str(tmp_path / "out.npz"))


def test_pickles_in_a_cache_are_read_by_nothing(tmp_path: Path, sprung: Path) -> None:
    folder = a_cache(tmp_path / "cache")
    trap = pickle.dumps(Trap(sprung))
    (shard, *_), (record, *_) = ((folder / name).iterdir() for name in (SHARDS, RECORDS))
    for path in (folder / "manifest.pkl", folder / SHARDS / "x.pkl", record, shard):
        path.write_bytes(trap)
    assert command("cache", "verify", str(folder), "--full").exit_code == 1
    assert "damaged" in refused("cache", "export", str(folder), str(tmp_path / "out.npz"))
    sign(folder, trap)
    refused("cache", "export", str(folder), str(tmp_path / "out.npz"))


@pytest.mark.parametrize("place", [SHARDS, RECORDS, "shard"])
def test_links_that_lead_out_of_a_cache_are_refused(tmp_path: Path, place: str) -> None:
    folder = a_cache(tmp_path / "cache")
    path = min((folder / SHARDS).iterdir()) if place == "shard" else folder / place
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    assert "leads out of the cache" in refused("cache", "export", str(folder), str(tmp_path / "out.npz"))
    assert any("leads out of the cache" in problem for problem in verify(folder))


def test_links_within_a_cache_and_to_a_cache_stay_allowed(tmp_path: Path) -> None:
    folder = a_cache(tmp_path / "cache")
    shard = min((folder / SHARDS).iterdir())
    shard.rename(folder / "real.parquet")
    shard.symlink_to(folder / "real.parquet")
    (tmp_path / "link").symlink_to(folder)
    read_all(tmp_path / "link")


def test_a_repair_removes_nothing_behind_a_link(tmp_path: Path) -> None:
    folder = a_cache(tmp_path / "cache")
    (tmp_path / "home" / "precious").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "home")
    clear_the_way(folder)
    assert (tmp_path / "home" / "precious").is_dir()


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(Exception, match="cannot write"), locked(tmp_path):
        pass
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("fields", [{}, {"compression": "zstd", "top_k": 2, "dtype": "int8"}], ids=["plain", "top_k"])
def test_mutated_shards_with_a_record_that_fits_are_rows_or_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = a_cache(tmp_path / "cache", **fields)
    shard = min((folder / SHARDS).iterdir())
    sound, draw, damages = shard.read_bytes(), random.Random(0), 0
    for _ in range(150):
        data = bytearray(sound)
        for _ in range(draw.choice((1, 2, 8))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        shard.write_bytes(data)
        changed(folder, lambda m, data=data: m["shards"][0].update(sha256=hashlib.sha256(data).hexdigest(), blocks={}))
        try:
            read_all(folder)
            TeacherCache.open(folder).to_pandas(limit=3)
        except CacheError as error:
            assert "\n" not in str(error)
            damages += 1
    assert damages > 10


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[0.0] * 3] * SHARD_ROWS),
        pa.array(["abcdef"] * SHARD_ROWS),
        pa.array([b"abcde"] * SHARD_ROWS, pa.binary(5)),
        pa.array([None] * SHARD_ROWS, pa.binary(6)),
        pa.array([b"abcdef"] * (SHARD_ROWS + 1), pa.binary(6)),
    ],
    ids=range(5),
)
def test_columns_that_are_not_what_the_manifest_says_are_refused(tmp_path: Path, column: pa.Array) -> None:
    folder = a_cache(tmp_path / "cache")
    shard = min((folder / SHARDS).iterdir())
    table = pq.read_table(shard)
    others = [table.column(name).combine_chunks() for name in table.column_names if name != "embedding"]
    names = [name for name in table.column_names if name != "embedding"]
    whole = [pa.concat_arrays([values, values])[: len(column)] for values in others]
    pq.write_table(pa.table([*whole, column], [*names, "embedding"], metadata=table.schema.metadata), shard)
    data = shard.read_bytes()
    about = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "blocks": {}}
    changed(folder, lambda m: m["shards"][0].update(about))
    with pytest.raises(CacheError):
        read_all(folder)
