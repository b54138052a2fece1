"""What is computed, what is reused, and what a crash or a full disk leaves."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from raydistill.config import Experiment
from raydistill.data.datasets import load_train
from raydistill.data.views import render
from raydistill.errors import CacheError, ConfigError, RunError, WeightsError
from raydistill.files import write_atomically
from raydistill.models.weights import save_weights
from raydistill.teachers.cache import build as building
from raydistill.teachers.cache.build import BuildReport, build_cache
from raydistill.teachers.cache.files import locked
from raydistill.teachers.cache.manifest import RECORDS, SHARDS, SUCCESS, ShardRecord, read_manifest
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.shards import Place
from raydistill.teachers.network import teacher_of
from tests.conftest import digits
from tests.teachers.conftest import SHARD_ROWS, VIEWS, Built, refuse_ray, small


def live(built: Built, view: int, rows: slice) -> dict[str, torch.Tensor]:
    """The teacher's outputs in this process."""
    images = built.images
    ids = images.ids[rows]
    pixels = render(
        images.images[rows],
        ids,
        torch.full_like(ids, view),
        augment=built.experiment.data.augment,
        seed=built.experiment.cache.seed,
        mean=images.mean,
        std=images.std,
    )
    with torch.no_grad():
        return dict(teacher_of(built.experiment, images)(pixels, outputs=("logits", "embedding")))


def test_report_counts_rows_of_all_views(built: Built) -> None:
    report = built.report
    assert report.rows == 240 * (VIEWS + 1) == report.computed_rows == report.forwards
    assert (report.views, report.reused_rows) == (VIEWS + 1, 0)
    assert report.bytes_per_row > 2 * (10 + 64)
    assert not list(built.path.rglob("*.tmp"))


def test_finished_cache_is_reused_without_ray(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_ray(monkeypatch)
    told: list[tuple[int, int]] = []
    report = build_cache(built.experiment, progress=lambda *rows: told.append(rows))
    assert (report.computed_rows, report.reused_rows, report.forwards) == (0, 720, 0)
    assert told == [(720, 720)]


@pytest.mark.parametrize("view", range(VIEWS + 1))
def test_rows_are_the_networks_outputs_on_the_replayed_view(built: Built, view: int) -> None:
    rows = slice(0, 64)
    stored = TeacherCache.open(built.path).read(built.images.ids[rows], view=view)
    for name, values in live(built, view, rows).items():
        torch.testing.assert_close(stored[name], values, rtol=2e-3, atol=2e-3)


def test_views_differ(built: Built) -> None:
    cache = TeacherCache.open(built.path)
    first, second = (cache.read(built.images.ids, view=view)["logits"] for view in (1, 2))
    assert not torch.equal(first, second)


def test_float32_rows_equal_live_ones_bit_for_bit(exact: Built) -> None:
    stored = TeacherCache.open(exact.path).read(exact.images.ids[:SHARD_ROWS])
    torch.set_num_threads(2)
    for start in range(0, SHARD_ROWS, 32):  # the batches in which the actor ran
        rows = slice(start, min(start + 32, SHARD_ROWS))
        for name, values in live(exact, 0, rows).items():
            assert torch.equal(stored[name][rows], values)


def test_only_lost_and_damaged_shards_are_computed_again(built: Built, tmp_path: Path) -> None:
    copy = built.copy(tmp_path)
    before = TeacherCache.open(copy.path).read(copy.images.ids, view=1)
    lost, flipped, *_ = sorted((copy.path / SHARDS).iterdir())
    lost.unlink()
    (copy.path / RECORDS / lost.with_suffix(".json").name).unlink()
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    report = build_cache(copy.experiment)
    assert (report.computed_rows, report.reused_rows) == (2 * SHARD_ROWS, 720 - 2 * SHARD_ROWS)
    cache = TeacherCache.open(copy.path)
    assert cache.verify(full=True) == []
    assert torch.equal(before["logits"], cache.read(copy.images.ids, view=1)["logits"])


def test_unfinished_cache_says_so(built: Built, tmp_path: Path) -> None:
    copy = built.copy(tmp_path)
    (copy.path / SUCCESS).unlink()
    with pytest.raises(CacheError, match=r"not finished.*raydistill cache build CONFIG"):
        TeacherCache.open(copy.path)


def test_lost_mark_of_success_costs_no_forward(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = built.copy(tmp_path)
    (copy.path / SUCCESS).unlink()
    refuse_ray(monkeypatch)
    assert build_cache(copy.experiment).forwards == 0
    TeacherCache.open(copy.path)


def test_values_beyond_float16_are_refused(tmp_path: Path, teacher_weights: Path, ray_session: None) -> None:
    experiment = small(tmp_path, teacher_weights)
    network = teacher_of(experiment, load_train(experiment.data))
    with torch.no_grad():
        for parameter in list(network.parameters())[-2:]:
            parameter.fill_(1e6)
    loud = tmp_path / "loud.safetensors"
    save_weights(network, loud)
    with pytest.raises(CacheError, match=r"'logits' of sample \d+ in view 0 .*cache\.dtype=float32"):
        build_cache(experiment.override({"teacher.weights": str(loud)}))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"teacher.weights": None}, ConfigError, "raydistill teacher CONFIG"),
        ({"teacher.weights": "nowhere.safetensors"}, WeightsError, "no weights at nowhere"),
        ({"cache.outputs": ["logit"]}, ConfigError, "did you mean 'logits'"),
    ],
)
def test_wrong_input_writes_nothing(
    tmp_path: Path, teacher_weights: Path, change: dict[str, object], error: type[Exception], text: str
) -> None:
    experiment = small(tmp_path, teacher_weights).override(change)
    with pytest.raises(error, match=text):
        build_cache(experiment)
    assert not (tmp_path / "cache").exists()


def test_full_disk_names_file_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "shard.parquet"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"shard\.parquet: cannot be written: No space left on device"):
        write_atomically(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["shard.parquet"]
    assert target.read_bytes() == b"old"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_full_disk_stops_the_build_and_it_resumes(tmp_path: Path, teacher_weights: Path, ray_session: None) -> None:
    disk = tmp_path / "cache"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        experiment = small(tmp_path, teacher_weights)
        with pytest.raises(RunError, match=r"\.(parquet|json): cannot be written: No space left on device"):
            build_cache(experiment)
        (folder,) = disk.iterdir()
        assert not (folder / SUCCESS).exists()
        assert not list(folder.rglob("*.tmp"))
        assert read_manifest(folder).shards == ()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        report = build_cache(experiment)
        assert report.reused_rows > 0
        assert TeacherCache.open(folder).verify(full=True) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


KILLED = """
import sys
from pathlib import Path
from raydistill.cluster import ensure_ray
from raydistill.config import load_experiment
from raydistill.teachers.cache.build import build_cache
ensure_ray(num_cpus=1)
build_cache(load_experiment(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_build_is_finished_with_equal_rows(built: Built, tmp_path: Path, ray_session: None) -> None:
    # 90 small shards: time enough to be killed in the middle.
    root = tmp_path / "cache"
    experiment = built.experiment.override({"cache.root": str(root), "cache.shard_rows": 8})
    config = tmp_path / "experiment.yaml"
    config.write_text(experiment.to_yaml())
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(config)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_records(root, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with the Ray of its own, in its own session
        process.wait()
    assert not list(root.rglob(SUCCESS))
    report = build_cache(experiment)
    assert report.reused_rows > 0
    assert report.computed_rows > 0
    finished, reference = TeacherCache.open(report.path), TeacherCache.open(built.path)
    assert finished.verify(full=True) == []
    ids = built.images.ids
    for view in finished.views:
        table, expected = (cache.read(ids, view=view) for cache in (finished, reference))
        torch.testing.assert_close(table["embedding"], expected["embedding"], rtol=2e-3, atol=2e-3)


def wait_for_records(root: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while len(list(root.glob(f"*/{RECORDS}/*.json"))) < 3:
        assert process.poll() is None, "the build ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_records_tell_what_was_done(built: Built) -> None:
    records = [json.loads(path.read_text()) for path in (built.path / RECORDS).iterdir()]
    assert sum(record["forwards"] for record in records) == 720
    assert np.unique([record["sha256"] for record in records]).size == len(records)


def test_second_builder_waits_and_reuses(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = built.copy(tmp_path)
    refuse_ray(monkeypatch)
    reports: list[BuildReport] = []
    second = threading.Thread(target=lambda: reports.append(build_cache(copy.experiment)), daemon=True)
    with locked(copy.path):
        second.start()
        second.join(1.0)
        assert reports == []
    second.join(60.0)
    assert [report.reused_rows for report in reports] == [720]


def test_lost_actors_are_replaced_a_few_times(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = TeacherCache.open(built.path).manifest.shards
    asked: list[int] = []

    def one_each(_: object, missing: list[Place]) -> Iterator[ShardRecord]:
        asked.append(len(missing))
        yield next(record for record in records if record.name == missing[0].name)
        raise building._ActorsLostError("ActorDiedError: out of memory")

    monkeypatch.setattr(building, "_computed", one_each)
    copy = built.copy(tmp_path)
    lost = sorted((copy.path / RECORDS).iterdir())
    for path in lost[:2]:
        path.unlink()
    assert build_cache(copy.experiment).forwards == 2 * SHARD_ROWS
    for path in lost[2:5]:
        path.unlink()
    with pytest.raises(RunError, match="failed 3 times: ActorDiedError: out of memory"):
        build_cache(copy.experiment)
    assert asked == [2, 1, 5, 4, 3]


def test_experiment_without_teacher_is_refused(tmp_path: Path) -> None:
    experiment: Experiment = digits(tmp_path)
    with pytest.raises(ConfigError, match="teacher: required"):
        build_cache(experiment)
