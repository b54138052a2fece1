"""Caches on an S3 server of this machine, and behind fsspec: as in a folder, and one line for what is wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.fs import S3FileSystem
from typer.testing import CliRunner, Result

from raydistill.cli import app
from raydistill.errors import CacheError, RunError
from raydistill.teachers.cache import build as building
from raydistill.teachers.cache import lease, store
from raydistill.teachers.cache.build import BuildReport, build_cache
from raydistill.teachers.cache.files import locked
from raydistill.teachers.cache.manifest import ShardRecord, record_path, shard_path
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.remote import RemotePath
from raydistill.teachers.cache.shards import Place
from raydistill.teachers.cache.verify import verify
from raydistill.training.trainer import train
from tests.s3 import request, serving
from tests.teachers.conftest import SHARD_ROWS, Built, refuse_ray

BUCKET = "caches"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(BUCKET) as url:
        yield url


@pytest.fixture(autouse=True)
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.1)


@pytest.fixture
def root(server: str, request: pytest.FixtureRequest) -> str:
    """A folder of the test's own in the bucket."""
    name = request.node.name.replace("[", "-").rstrip("]")
    return f"s3://{BUCKET}/{name}?endpoint_override={server}"


@pytest.fixture
def remote(built: Built, root: str) -> Built:
    """The built cache, copied to the server."""
    return copied(built, root)


def copied(built: Built, root: str) -> Built:
    folder = store.location(root) / built.path.name
    for path in built.path.rglob("*"):
        if path.is_file() and path.name != ".lock":
            store.write(folder / path.relative_to(built.path).as_posix(), path.read_bytes())
    return Built(built.experiment.override({"cache.root": root}), built.images, replace(built.report, path=str(folder)))


def at(cache: Built) -> RemotePath:
    found = store.location(cache.report.path)
    assert isinstance(found, RemotePath)
    return found


def shard_files(cache: Built) -> list[RemotePath]:
    return [path for path, _ in (at(cache) / "shards").children()]


def flip_bit(path: RemotePath) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write(bytes(data))


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def answer(*arguments: str) -> dict[str, object]:
    ended = command(*arguments, "--json")
    assert ended.exit_code == 0, ended.output
    found: dict[str, object] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_build_resume_and_train(built: Built, root: str, ray_session: None, tmp_path: Path) -> None:
    experiment = built.experiment.override({"cache.root": root, "output": str(tmp_path), "train.epochs": 1})
    report = build_cache(experiment)
    assert (report.computed_rows, report.reused_rows, report.forwards) == (720, 0, 720)
    assert report.path.startswith(f"s3://{BUCKET}/test_build_resume_and_train/resnet14-")
    there = TeacherCache.open(report.path)
    rows, expected = there.read(built.images.ids, view=1), TeacherCache.open(built.path).read(built.images.ids, view=1)
    torch.testing.assert_close(rows, expected, rtol=2e-3, atol=2e-3)
    lost, damaged, *_ = (shard_path(there.path, record.name) for record in there.manifest.shards)
    assert isinstance(lost, RemotePath)
    assert isinstance(damaged, RemotePath)
    lost.unlink()
    flip_bit(damaged)
    report = build_cache(experiment)
    assert (report.computed_rows, report.reused_rows) == (2 * SHARD_ROWS, 720 - 2 * SHARD_ROWS)
    assert verify(report.path, full=True) == []
    assert train(experiment)["teacher_forwards"] == 0


def test_rows_equal_those_of_the_folder(built: Built, remote: Built) -> None:
    here, there = TeacherCache.open(built.path), TeacherCache.open(remote.report.path)
    ids = built.images.ids[50:180]
    expected = here.table(ids, (2, 0), here.outputs)
    for name, values in there.table(ids, (2, 0), there.outputs).items():
        np.testing.assert_array_equal(values, expected[name])
    assert torch.equal(there.read(ids, view=1)["logits"], here.read(ids, view=1)["logits"])
    assert there.verify(full=True) == []


def test_flipped_byte_is_named(remote: Built) -> None:
    victim = shard_files(remote)[4]
    flip_bit(victim)
    cache = TeacherCache.open(remote.report.path)
    (problem,) = cache.verify(full=True)
    assert problem.startswith(f"{victim}: damaged: ")
    with pytest.raises(CacheError, match=victim.name):
        cache.table(remote.images.ids, cache.views, cache.outputs)


@pytest.mark.parametrize("damage", ["truncated", "deleted", "swapped"])
def test_damaged_shards_are_named_on_open(remote: Built, damage: str) -> None:
    victim, other, *_ = shard_files(remote)
    if damage == "truncated":
        victim.write(victim.read_bytes()[:-10])
    elif damage == "deleted":
        victim.unlink()
    else:
        first, second = victim.read_bytes(), other.read_bytes()
        victim.write(second)
        other.write(first)
    with pytest.raises(CacheError, match=victim.name) as caught:
        TeacherCache.open(remote.report.path)
    assert "raydistill cache build CONFIG" in str(caught.value)
    assert any(victim.name in problem for problem in verify(remote.report.path))


def test_commands(built: Built, remote: Built, root: str, tmp_path: Path) -> None:
    url = remote.report.path
    config = tmp_path / "experiment.yaml"
    config.write_text(remote.experiment.to_yaml())
    (listed,) = answer("cache", "ls", root)["caches"]  # type: ignore[misc]
    (here,) = answer("cache", "ls", str(built.path.parent))["caches"]  # type: ignore[misc]
    assert listed == {**here, "path": url}
    assert answer("cache", "verify", url, "--full") == {"ok": True, "problems": []}
    assert answer("cache", "plan", str(config))["missing_rows"] == 0
    assert answer("cache", "build", str(config))["computed_rows"] == 0
    assert answer("cache", "diff", url, str(built.path))["overlap"] == 1.0
    (ranked,) = answer("cache", "rank", str(config), url)["candidates"]  # type: ignore[misc]
    assert ranked["path"] == url
    answer("cache", "export", url, str(tmp_path / "out.npz"))
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["logits"], np.stack(TeacherCache.open(built.path).to_pandas()["logits"]))
    assert answer("cache", "rm", url) == {"removed": url}
    assert answer("cache", "ls", root) == {"caches": []}
    assert "no such folder" in command("cache", "verify", url).stderr


def test_cache_that_was_not_built_names_the_nearest(remote: Built) -> None:
    from raydistill.teachers.cache.read import find_cache

    with pytest.raises(CacheError, match=rf"in 's3://{BUCKET}/.*{at(remote).name}, differs in dtype"):
        find_cache(remote.experiment.override({"cache.dtype": "float32"}), remote.images)


def test_two_builders_share_nothing_twice(
    built: Built, root: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    records = {record.name: record for record in TeacherCache.open(built.path).manifest.shards}

    def slowly(build: building._Build, missing: Sequence[Place]) -> Iterator[ShardRecord]:
        for place in missing:
            time.sleep(0.05)
            store.write(shard_path(build.folder, place.name), (built.path / "shards" / place.name).read_bytes())
            store.write(record_path(build.folder, place.name), records[place.name].model_dump_json())
            yield records[place.name]

    monkeypatch.setattr(building, "_computed", slowly)
    experiment = built.experiment.override({"cache.root": root})
    reports: list[BuildReport] = []
    builders = [threading.Thread(target=lambda: reports.append(build_cache(experiment))) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(120)
    assert sorted(report.computed_rows for report in reports) == [0, 720]
    assert capfd.readouterr().err.count("another build of this cache is at work; waiting") == 1
    assert verify(reports[0].path, full=True) == []
    assert not (store.location(reports[0].path) / lease.LEASE).is_file()


def test_builder_of_a_folder_says_that_it_waits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def wait() -> None:
        with locked(tmp_path):
            pass

    second = threading.Thread(target=wait)
    with locked(tmp_path):
        second.start()
        second.join(0.5)
        assert second.is_alive()
    second.join(60)
    assert capfd.readouterr().err == "another build of this cache is at work; waiting\n"


def test_lease_is_renewed_and_keeps_others_away(remote: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.05)
    with locked(at(remote)):
        first = lease_of(remote)
        deadline = time.monotonic() + 60
        while lease_of(remote)["time"] == first["time"]:
            assert time.monotonic() < deadline
        assert lease_of(remote)["owner"] == first["owner"]
        assert "a build is at work" in command("cache", "rm", remote.report.path).stderr
    assert command("cache", "rm", remote.report.path).exit_code == 0


def lease_of(cache: Built) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((at(cache) / lease.LEASE).read_bytes())
    return found


def test_lease_of_a_dead_builder_is_taken_over(remote: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_ray(monkeypatch)
    path = at(remote) / lease.LEASE
    path.write(json.dumps({"owner": "dead", "time": time.time()}))
    with locked(at(remote), wait=False) as mine:
        assert not mine
    started = time.time()
    path.write(json.dumps({"owner": "dead", "time": started - lease._FRESH_SECONDS + 2.0}))
    assert build_cache(remote.experiment).reused_rows == 720
    assert time.time() >= started + 2.0
    assert not path.is_file()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://nobody-made-it/x?endpoint_override={server}", "there is no bucket 'nobody-made-it'"),
        ("s3://caches/x?endpoint_override=http://127.0.0.1:1", "the server cannot be reached"),
        ("s3://caches/x?endpoint={server}", "unknown option 'endpoint'; did you mean 'endpoint_override'?"),
        ("s3:///x", "names no bucket"),
        ("s3://user:password@caches/x", "holds credentials"),
        ("nothing://caches/x", "nothing"),
    ],
)
def test_wrong_place_is_one_line(built: Built, server: str, tmp_path: Path, url: str, said: str) -> None:
    config = tmp_path / "experiment.yaml"
    config.write_text(built.experiment.override({"cache.root": url.format(server=server)}).to_yaml())
    for arguments in (["ls", url.format(server=server)], ["build", str(config)]):
        ended = command("cache", *arguments)
        assert ended.exit_code == 2
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1
        assert "password" not in ended.stderr


def test_refused_credentials_are_one_line(remote: Built, server: str, root: str) -> None:
    request(f"{server}/moto-api/reset-auth", "POST", b"0")  # from now on nobody is let in
    try:
        for path in (root, remote.report.path):
            ended = command("cache", "ls", path)
            assert ended.exit_code == 2
            assert "access was denied; check AWS_ACCESS_KEY_ID" in ended.stderr
            assert ended.stderr.count("\n") == 1
    finally:
        request(f"{server}/moto-api/reset-auth", "POST", b"inf")


def test_storage_that_goes_away_stops_the_writer(server: str) -> None:
    request(f"{server}/gone", "PUT")
    folder = store.location(f"s3://gone/x?endpoint_override={server}")
    store.write(folder / "a", b"1")
    S3FileSystem(endpoint_override=server, region="us-east-1", allow_bucket_deletion=True).delete_dir("gone")
    with pytest.raises(RunError, match=r"^s3://gone/x/b\?.*: cannot be written: there is no such bucket$"):
        store.write(folder / "b", b"1")


def test_other_nodes_are_told_the_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    told = str((store.location(f"s3://{BUCKET}/x") / "y").resolve())
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_REGION")
    store.write(store.location(told) / "z", b"seen")
    assert store.location(f"s3://{BUCKET}/x/y/z?endpoint_override={server}").read_bytes() == b"seen"
    assert "region=eu-west-1" in told
    assert "secret" not in told


def local(cache: TeacherCache, record: ShardRecord) -> Path:
    """A shard as a file of this node."""
    return store.local_file(shard_path(cache.path, record.name), record, cache.manifest.key)


def test_copy_on_the_node_is_checked_and_shared(
    built: Built, remote: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store.SCRATCH, str(tmp_path))
    cache = TeacherCache.open(remote.report.path)
    good, bad, *_ = cache.manifest.shards
    copy = local(cache, good)
    assert copy.read_bytes() == (built.path / "shards" / good.name).read_bytes()
    assert copy.is_relative_to(tmp_path)
    paths = [shard_path(at(remote), record.name) for record in (good, bad)]
    flip_bit(paths[1])  # type: ignore[arg-type]
    paths[0].unlink()
    assert local(cache, good) == copy  # what is there is not fetched again
    with pytest.raises(CacheError, match=f"{bad.name}.*: damaged: its sha256 is not the recorded one"):
        local(cache, bad)
    assert local(TeacherCache.open(built.path), good) == built.path / "shards" / good.name


def test_scratch_of_somebody_else_is_not_used(remote: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(store.SCRATCH, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache = TeacherCache.open(remote.report.path)
    record = cache.manifest.shards[0]
    mine = local(cache, record).parents[1]
    assert mine.parent == tmp_path
    assert mine.stat().st_mode & 0o777 == 0o700
    mine.rename(tmp_path / "elsewhere")
    mine.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="belongs to somebody else; set RAYDISTILL_SCRATCH"):
        local(cache, record)


def test_storage_that_only_fsspec_knows(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    there = copied(built, "memory://caches/deep")
    refuse_ray(monkeypatch)
    (at(there) / "shards" / ".v0.parquet.1-ab.tmp").write(b"left by a killed builder")
    assert build_cache(there.experiment).reused_rows == 720
    cache, here = TeacherCache.open(there.report.path), TeacherCache.open(built.path)
    assert cache.verify(full=True) == []
    assert torch.equal(cache.read(built.images.ids, view=2)["logits"], here.read(built.images.ids, view=2)["logits"])
    assert not [path for path, _ in at(there).children(recursive=True) if path.name.endswith(".tmp")]
    assert command("cache", "rm", there.report.path).exit_code == 0
    assert at(there).children(recursive=True) == []
