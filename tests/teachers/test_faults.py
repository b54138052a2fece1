"""Caches behind a network that cuts, drops and delays, and a server that is busy: whole, or known not to be."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import Experiment
from raydistill.errors import CacheError, InputError, RaydistillError, RunError
from raydistill.teachers.cache import build as building
from raydistill.teachers.cache import lease, store
from raydistill.teachers.cache.build import build_cache
from raydistill.teachers.cache.manifest import ShardRecord, record_path, shard_path
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.shards import Place
from raydistill.teachers.cache.verify import verify
from tests.faulty import Handler, Proxy, busy, cut_answer, cut_upload, dropped, faulty, lost_answer, silent, slow
from tests.s3 import serving
from tests.teachers.conftest import Built
from tests.teachers.stored import store as stored

BUCKET = "faults"
FILES = "shards|records|manifest|_SUCCESS"
FOR_EVER = float("inf")
Kind = Callable[[Handler], None]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(BUCKET) as url:
        yield url


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with faulty(server) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.05)


def through(proxy: Proxy, folder: str) -> str:
    return f"s3://{BUCKET}/{folder}?endpoint_override={proxy.url}"


def straight(proxy: Proxy, path: str) -> str:
    """The URL of the same without the proxy."""
    return path.replace(str(proxy.port), str(proxy.server[1]))


@pytest.fixture(scope="module")
def made(taught: Experiment, tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    """The cache as it is in a folder."""
    return stored(taught, root=str(tmp_path_factory.mktemp("made")))


@pytest.fixture
def experiment(made: TeacherCache, taught: Experiment, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The cache to be built through the proxy; its shards are those of the folder, sent as actors send them."""
    records = {record.name: record for record in made.manifest.shards}

    def computed(build: building._Build, missing: Sequence[Place]) -> Iterator[ShardRecord]:
        for place in missing:
            store.write(shard_path(build.folder, place.name), (Path(made.path) / "shards" / place.name).read_bytes())
            store.write(record_path(build.folder, place.name), records[place.name].model_dump_json())
            yield records[place.name]

    monkeypatch.setattr(building, "_computed", computed)
    return taught.override({"cache.root": through(proxy, f"{time.time_ns()}")})


def assert_equal(path: str, folder: Path) -> None:
    there = store.location(path)
    for shard in sorted((folder / "shards").iterdir()):
        assert (there / "shards" / shard.name).read_bytes() == shard.read_bytes()
    assert verify(path, full=True) == []


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": cut_upload(5000), "method": "PUT", "path": "shards", "times": 2},
        {"kind": busy, "path": FILES, "times": 2},
        {"kind": dropped, "method": "PUT", "times": 2},
        {"kind": lost_answer, "method": "PUT", "path": FILES, "times": 2},
        {"kind": cut_answer(100), "method": "GET", "path": FILES, "times": 2},
        {"kind": slow(0.1), "path": FILES, "times": 4},
        {"kind": silent(0.7), "method": "PUT", "path": "shards", "times": 2},
    ],
    ids=["cut", "busy", "dropped", "answer lost", "answer cut", "slow", "silent"],
)
def test_a_build_outlives_a_fault_that_passes(
    experiment: Experiment, made: TeacherCache, proxy: Proxy, fault: dict[str, Any]
) -> None:
    proxy.expect(**fault)
    report = build_cache(experiment)
    assert proxy.struck == fault["times"]
    assert report.computed_rows == report.rows
    assert_equal(straight(proxy, report.path), Path(made.path))


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": cut_upload(5000), "path": "shards", "after": 2},
        {"kind": busy, "path": "records"},
        {"kind": dropped, "path": "shards", "after": 4},
        {"kind": busy, "path": "_SUCCESS"},
        {"kind": cut_upload(30), "path": "manifest", "after": 1},
    ],
    ids=["cut", "busy", "dropped", "at the mark", "at the manifest"],
)
def test_a_build_that_cannot_go_on_ends_in_one_line_and_is_taken_for_none(
    experiment: Experiment, made: TeacherCache, proxy: Proxy, fault: dict[str, Any]
) -> None:
    proxy.expect(**fault, method="PUT", times=FOR_EVER)
    with pytest.raises(RunError) as caught:
        build_cache(experiment)
    assert "cannot be written" in str(caught.value) and "\n" not in str(caught.value)
    (left,) = store.folders_with(store.location(straight(proxy, experiment.cache.root)), "manifest.json")
    assert verify(left) != []
    with pytest.raises(CacheError, match="not finished"):
        TeacherCache.open(left)
    proxy.heal()
    report = build_cache(experiment)
    assert report.reused_rows + report.computed_rows == report.rows
    assert_equal(straight(proxy, report.path), Path(made.path))


def test_an_object_of_several_parts_is_there_whole_or_not_at_all(proxy: Proxy) -> None:
    data = os.urandom(1 << 20) * 12
    place = store.location(through(proxy, "parts"))
    faults: list[tuple[Kind, str, str]] = [
        (busy, "POST", "uploads"),
        (cut_upload(1 << 19), "PUT", "partNumber=1&"),
        (busy, "PUT", "partNumber=2&"),
        (busy, "POST", "uploadId"),
        (busy, "", ""),
    ]
    for number, (kind, method, path) in enumerate(faults):
        proxy.expect(kind, method, path, times=FOR_EVER)
        with pytest.raises(RunError, match="cannot be written"):
            store.write(place / str(number), data)
        proxy.heal()
        assert store.size_of(place / str(number)) is None
    proxy.expect(cut_upload(1 << 19), "PUT", "partNumber")
    proxy.expect(lost_answer, "POST", "uploadId")
    store.write(place / "whole", data)
    assert proxy.struck >= 2
    assert store.location(straight(proxy, str(place / "whole"))).read_bytes() == data


def test_what_is_cut_while_it_is_read_is_fetched_again_or_one_line(proxy: Proxy) -> None:
    path = store.location(through(proxy, "reading")) / "file"
    data = os.urandom(100_000)
    store.write(path, data)
    proxy.expect(cut_answer(50_000), "GET", "reading", times=2)
    assert path.read_bytes() == data
    proxy.expect(cut_answer(50_000), "GET", "reading", times=FOR_EVER)
    with pytest.raises(InputError) as caught:
        path.read_bytes()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_actors_build_the_same_cache_through_faults(
    built: Built, proxy: Proxy, ray_session: None, tmp_path: Path
) -> None:
    experiment = built.experiment.override({"cache.root": through(proxy, "actors"), "output": str(tmp_path)})
    for number, kind in enumerate((cut_upload(5000), busy, dropped, lost_answer, slow(0.1))):
        proxy.expect(kind, "PUT", "shards|records", after=3 * number)
    report = build_cache(experiment)
    assert proxy.struck == 5
    assert_equal(straight(proxy, report.path), built.path)
    proxy.expect(busy, "PUT", "shards", times=FOR_EVER, after=2)
    with pytest.raises(RaydistillError) as caught:
        build_cache(experiment.override({"cache.seed": 1}))
    assert "\n" not in str(caught.value)
    here, unfinished = sorted(
        store.folders_with(store.location(straight(proxy, experiment.cache.root)), "manifest.json"),
        key=lambda folder: not (folder / "_SUCCESS").is_file(),
    )
    assert (verify(here), bool(verify(unfinished))) == ([], True)
    assert json.loads((unfinished / "manifest.json").read_bytes())["shards"] == []
