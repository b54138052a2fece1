"""Faults brought into a finished cache: when each is noticed, what is said, and what a build then mends."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from raydistill.cli import app
from raydistill.config import Experiment
from raydistill.errors import CacheError
from raydistill.teachers.cache import build as building
from raydistill.teachers.cache.build import build_cache
from raydistill.teachers.cache.compute import compute_shard
from raydistill.teachers.cache.manifest import MANIFEST, RECORDS, SHARDS, SUCCESS, ShardRecord
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.shards import Place
from raydistill.teachers.cache.verify import verify
from raydistill.training.material import prepare
from tests.conftest import digits
from tests.teachers.stored import one_thread, source_of, store

ROWS, IMAGES, VIEWS = 20, 60, 1
SHARD_COUNT = IMAGES * (VIEWS + 1) // ROWS
FIRST, SECOND, THIRD = "v0000-0000000000", "v0000-0000000020", "v0000-0000000040"


@dataclass(frozen=True)
class Kept:
    """A sound cache, its experiment, and a sound cache of the same images by another seed of the views."""

    experiment: Experiment
    path: Path
    other: Path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, teacher_weights: Path) -> Kept:
    folder = tmp_path_factory.mktemp("kept")
    experiment = digits(
        folder,
        teacher={"model": "resnet14", "weights": str(teacher_weights), "batch_size": 64},
        data={"name": "digits", "subset": IMAGES, "validation": 0.2, "augment": {"crop": 1}},
        methods={"kd": {}},
        cache={"root": str(folder / "cache"), "shard_rows": ROWS, "views": VIEWS},
    )
    return Kept(experiment, Path(store(experiment).path), Path(store(experiment, seed=1).path))


@pytest.fixture
def hurt(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """A copy to be damaged; builds compute in this process instead of Ray's."""

    def here(build: building._Build, missing: list[Place]) -> Iterator[ShardRecord]:
        source = source_of(build.experiment, build.images)
        with one_thread():
            for place in missing:
                yield compute_shard(source, build.folder, place)

    monkeypatch.setattr(building, "_computed", here)
    root = tmp_path / "cache"
    shutil.copytree(kept.path.parent, root)
    experiment = kept.experiment.override({"cache.root": str(root)})
    return Kept(experiment, root / kept.path.name, root / kept.other.name)


def shard(cache: Path, stem: str = FIRST) -> Path:
    return cache / SHARDS / f"{stem}.parquet"


def record(cache: Path, stem: str = FIRST) -> Path:
    return cache / RECORDS / f"{stem}.json"


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def block(cache: Path, column: str) -> int:
    """Where a column's numbers begin in the first shard."""
    return int(json.loads(record(cache).read_text())["blocks"][column]["offset"])


def edit(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=1) + "\n")


def edit_and_sign(cache: Path, change: Callable[[dict], object]) -> None:
    """As somebody would who knows of the mark of success."""
    edit(cache / MANIFEST, change)
    (cache / SUCCESS).write_text(hashlib.sha256((cache / MANIFEST).read_bytes()).hexdigest())


def swap(one: Path, other: Path) -> None:
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def make_folder(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


OPEN, USE, FULL = "at open", "at first use", "by verify --full"


@dataclass(frozen=True)
class Damage:
    """What is done to a cache, when that is noticed, which file and reason are named, and how many shards are lost."""

    do: Callable[[Kept], object]
    noticed: str
    named: str
    lost: int


DAMAGES = {
    "bit of a logit": Damage(lambda c: flip(shard(c.path), block(c.path, "logits")), USE, f"{FIRST}.*'logits'", 1),
    "bit of a key": Damage(lambda c: flip(shard(c.path), block(c.path, "sample_id")), USE, f"{FIRST}.*'sample_id'", 1),
    "bit of the footer": Damage(lambda c: flip(shard(c.path), -100), OPEN, FIRST, 1),
    "bit of the footer's length": Damage(lambda c: flip(shard(c.path), -7), OPEN, FIRST, 1),
    "truncated": Damage(lambda c: os.truncate(shard(c.path), 999), OPEN, f"{FIRST}.*999 bytes instead of", 1),
    "zero bytes": Damage(lambda c: os.truncate(shard(c.path), 0), OPEN, f"{FIRST}.* 0 bytes instead of", 1),
    "deleted shard": Damage(lambda c: shard(c.path).unlink(), OPEN, f"{FIRST}.*missing", 1),
    "folder for a shard": Damage(lambda c: make_folder(shard(c.path)), OPEN, f"{FIRST}.*missing", 1),
    "two shards swapped": Damage(
        lambda c: swap(shard(c.path, SECOND), shard(c.path, THIRD)), OPEN, f"{SECOND}.*another shard's rows", 2
    ),
    "shard of another cache": Damage(
        lambda c: shutil.copy(shard(c.other), shard(c.path)), OPEN, f"{FIRST}.*another shard's rows", 1
    ),
    "shard and record of another cache": Damage(
        lambda c: [shutil.copy(part(c.other), part(c.path)) for part in (shard, record)], OPEN, FIRST, 1
    ),
    "manifest: a field": Damage(
        lambda c: edit(c.path / MANIFEST, lambda m: m["content"].update(dtype="float32")), OPEN, "content was edited", 0
    ),
    "manifest: a hash": Damage(
        lambda c: edit(c.path / MANIFEST, lambda m: m["shards"][0].update(sha256="0" * 64)), OPEN, "changed after", 0
    ),
    "manifest: a row count": Damage(
        lambda c: edit(c.path / MANIFEST, lambda m: m["shards"][0].update(rows=ROWS - 1)), OPEN, "does not cover", 0
    ),
    "manifest: a hash, signed": Damage(
        lambda c: edit_and_sign(c.path, lambda m: m["shards"][0].update(sha256="0" * 64)), FULL, FIRST, 0
    ),
    "manifest: ids, signed": Damage(
        lambda c: edit_and_sign(c.path, lambda m: m["shards"][0].update(ids="0" * 64)), USE, f"{FIRST}.*ids", 0
    ),
    "manifest: a checksum, signed": Damage(
        lambda c: edit_and_sign(c.path, lambda m: m["shards"][0]["blocks"]["logits"].update(xxh3="0" * 16)),
        USE,
        f"{FIRST}.*'logits'",
        0,
    ),
    "manifest: no JSON": Damage(
        lambda c: (c.path / MANIFEST).write_bytes(b"\x80PAR1"), OPEN, "manifest.json.*damaged", 0
    ),
    "manifest: zero bytes": Damage(lambda c: os.truncate(c.path / MANIFEST, 0), OPEN, "manifest.json.*damaged", 0),
    "folder for the manifest": Damage(lambda c: make_folder(c.path / MANIFEST), OPEN, "no manifest.json", 0),
    "no mark of success": Damage(lambda c: (c.path / SUCCESS).unlink(), OPEN, "not finished", 0),
    "mark of another manifest": Damage(
        lambda c: shutil.copy(c.other / SUCCESS, c.path / SUCCESS), OPEN, "manifest.json: changed after", 0
    ),
    "folder for the mark": Damage(lambda c: make_folder(c.path / SUCCESS), OPEN, "not finished", 0),
    "record: ids": Damage(lambda c: edit(record(c.path), lambda r: r.update(ids="0" * 64)), FULL, FIRST, 1),
    "record: a checksum": Damage(
        lambda c: edit(record(c.path), lambda r: r["blocks"]["logits"].update(xxh3="0" * 16)), FULL, FIRST, 1
    ),
    "record: one column for another": Damage(
        lambda c: edit(record(c.path), lambda r: r["blocks"].update(logits=r["blocks"]["embedding"])), FULL, FIRST, 1
    ),
    "record: rows": Damage(lambda c: edit(record(c.path), lambda r: r.update(rows=ROWS - 1)), FULL, FIRST, 1),
    "record: forwards": Damage(lambda c: edit(record(c.path), lambda r: r.update(forwards=0)), FULL, FIRST, 1),
    "record: no JSON": Damage(lambda c: record(c.path).write_bytes(b"\xff"), FULL, FIRST, 1),
    "no record": Damage(lambda c: record(c.path).unlink(), FULL, FIRST, 1),
    "folder for a record": Damage(lambda c: make_folder(record(c.path)), FULL, FIRST, 1),
}


def noticed(cache: Kept, named: str) -> str:
    """When a fault is noticed first; every message names it, and the repair."""
    for moment, act in (
        (OPEN, lambda: TeacherCache.open(cache.path)),
        (USE, lambda: prepare(cache.experiment)),
        (FULL, lambda: complain(verify(cache.path, full=True))),
    ):
        try:
            act()
        except CacheError as error:
            assert error.exit_code == 2
            assert re.search(named, str(error)) and "`raydistill cache build CONFIG`" in str(error)
            return moment
    return "never"


def complain(problems: list[str]) -> None:
    if problems:
        raise CacheError("; ".join(problems))


def files(cache: Path, stem: str) -> list[tuple[bytes, int, int]]:
    """Bytes, inode and time of a shard and its record; none where one of them is no file."""
    pair = (shard(cache, stem), record(cache, stem))
    if not all(path.is_file() for path in pair):
        return []
    return [(path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) for path in pair]


def contents(cache: Path) -> dict[str, bytes | dict]:
    """All that a cache says but when it was finished."""
    found = {path.name: path.read_bytes() for path in cache.glob("*/*")}
    return found | {MANIFEST: {**json.loads((cache / MANIFEST).read_text()), "created": None}}


def exit_code(cache: Path, *options: str) -> int:
    return CliRunner().invoke(app, ["cache", "verify", str(cache), *options]).exit_code


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_noticed_named_and_mended(kept: Kept, hurt: Kept, damage: Damage) -> None:
    damage.do(hurt)
    assert noticed(hurt, damage.named) == damage.noticed
    assert exit_code(hurt.path, "--full") == 1
    stems = [path.stem for path in (kept.path / SHARDS).iterdir()]
    sound = {stem: files(hurt.path, stem) for stem in stems}
    sound = {stem: now for stem, now in sound.items() if [part[0] for part in now] == contents_of(kept.path, stem)}
    assert len(sound) == SHARD_COUNT - damage.lost

    report = build_cache(hurt.experiment)
    assert report.computed_rows == report.forwards == damage.lost * ROWS
    assert report.reused_rows == len(sound) * ROWS
    assert {stem: files(hurt.path, stem) for stem in sound} == sound
    assert contents(hurt.path) == contents(kept.path)
    assert exit_code(hurt.path, "--full") == 0
    prepare(hurt.experiment)


def contents_of(cache: Path, stem: str) -> list[bytes]:
    return [part[0] for part in files(cache, stem)]


def test_training_on_a_damaged_cache_ends_with_one_line(hurt: Kept, tmp_path: Path) -> None:
    os.truncate(shard(hurt.path), 999)
    with pytest.raises(CacheError, match=rf"^{re.escape(str(shard(hurt.path)))}: damaged: 999 bytes .*CONFIG`$"):
        prepare(hurt.experiment)
    assert not Path(hurt.experiment.output).exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_every_flipped_bit_is_found(hurt: Kept, choice: st.DataObject) -> None:
    # The lock is empty; _CHECKED, which says that a spot check was done, is only asked whether it is due again.
    path = choice.draw(st.sampled_from([path for path in sorted(hurt.path.rglob("*")) if path.is_file()]))
    before = path.read_bytes()
    flip(path, choice.draw(st.integers(0, len(before) - 1)), choice.draw(st.integers(0, 7)))
    try:
        assert verify(hurt.path, full=True) != []
    finally:
        path.write_bytes(before)
    assert verify(hurt.path, full=True) == []
