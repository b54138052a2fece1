"""What experiments/benchmarks/chaos.py takes for a difference, for torn and for done twice; and its clock and disk."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("chaos")


@pytest.fixture
def workloads(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("workloads")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A cache of one shard, a run with a checkpoint, and the table of a sweep, in one folder."""
    for name in ("model-key/records", "model-key/shards", "checkpoints/checkpoint_step000000012", "trials/0001"):
        (tmp_path / name).mkdir(parents=True)
    shard = bytes(1000)
    record = {"bytes": len(shard), "sha256": hashlib.sha256(shard).hexdigest()}
    (tmp_path / "model-key/shards/view000-00000.parquet").write_bytes(shard)
    (tmp_path / "model-key/records/view000-00000.json").write_text(json.dumps(record))
    (tmp_path / "checkpoints/checkpoint_step000000012/state.pt").write_bytes(shard)
    (tmp_path / "checkpoints/checkpoint_step000000012/checkpoint.json").write_text(json.dumps({"bytes": 1000}))
    (tmp_path / "trials/0001/metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    (tmp_path / "trials.csv").write_text("trial,epochs,seconds\n0,9,1.5\n1,3,0.5\n")
    (tmp_path / "_SUCCESS").touch()
    return tmp_path


def test_a_changed_byte_is_a_difference_and_another_time_is_none(workloads: Any, output: Path) -> None:
    before = workloads.results(output)
    (output / "trials.csv").write_text("trial,epochs,seconds\n0,9,2.5\n1,3,9.5\n")
    assert workloads.differences(workloads.results(output), before) == []
    (output / "trials.csv").write_text("trial,epochs,seconds\n0,9,1.5\n1,1,0.5\n")
    shard = output / "model-key/shards/view000-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    (output / "_SUCCESS").unlink()
    (output / "student.safetensors").write_bytes(b"")
    said = workloads.differences(workloads.results(output), before)
    assert sorted(said) == [
        "_SUCCESS is missing",
        "model-key/shards/view000-00000.parquet differs",
        "student.safetensors is too many",
        "trials.csv differs",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trials/0001/metrics.jsonl", '{"epoch": 1}\n{"epo'),
        ("model-key/shards/view000-00000.parquet", "short"),
        ("checkpoints/checkpoint_step000000012/state.pt", "short"),
        ("student.safetensors", ""),
        ("result.json", ""),
        ("config.yaml", "name: x\nseed"),
    ],
)
def test_a_file_that_ends_too_early_is_torn_but_not_one_being_written(
    workloads: Any, output: Path, name: str, content: str
) -> None:
    (output / f".{name.rpartition('/')[2]}.1-ab.tmp").write_text(content)
    assert workloads.torn(output) == []
    (output / name).write_text(content)
    (said,) = workloads.torn(output)
    assert "is torn" in said
    assert len(workloads.left_over(output)) == 1


def test_progress_counts_what_can_be_taken_up_again(workloads: Any, output: Path) -> None:
    assert workloads.progress(output / "nothing") == 0
    assert workloads.progress(output) == 1 + 12 + 2


def test_work_is_that_of_workers_and_not_of_drivers(workloads: Any, tmp_path: Path) -> None:
    (tmp_path / "batches").write_text("10 24\n11 24\n10 6\n12 1\n")
    assert workloads.work_done(tmp_path / "batches", [12]) == 54
    assert workloads.work_done(tmp_path / "batches", [10, 12]) == 24


@pytest.mark.parametrize(
    ("said", "code", "problems"),
    [
        ("raydistill: disk full", 1, 0),
        ("done", 0, 0),
        ("nothing of ours", 1, 1),
        ("raydistill: your file is wrong", 2, 1),
        ("Traceback (most recent call last):\n...\nOSError", 1, 2),
        ("Fatal Python error: Aborted", -6, 2),
    ],
)
def test_an_end_is_clean_with_a_documented_code_and_one_line(
    workloads: Any, said: str, code: int, problems: int
) -> None:
    assert len(workloads.unclean(said, code)) == problems


def test_every_command_meets_every_fault_before_one_comes_again(chaos: Any) -> None:
    commands, faults = ["cache", "train", "tune"], ["kill", "disk", "clock", "slow"]
    for seed in range(5):
        found = Counter(islice(chaos.turns(commands, faults, random.Random(seed)), 24))
        assert found == dict.fromkeys([(command, fault) for command in commands for fault in faults], 2)


def test_the_table_sums_rounds(chaos: Any) -> None:
    rounds = [
        chaos.Round(1, "train", "kill", 5.0, ["driver"], starts=2, ended=1, recovered_s=20.0, lost=3),
        chaos.Round(
            2, "train", "kill", 9.0, ["raylet"], starts=3, ended=2, recovered_s=30.0, lost=4, unclean=["hangs"]
        ),
        chaos.Round(3, "train", "kill", 99.0, starts=1),
        chaos.Round(4, "cache", "slow", 9.0, ["slow"], starts=1, recovered_s=1.0, differences=["a", "b"]),
    ]
    *_, cache, train, total = chaos.table(rounds)
    assert cache == "| cache | slow | 1 | 0 | 1 | 0 | 1.0 | 0 | 0 | 2 |"
    assert train == "| train | kill | 6 | 2 | 0 | 1 | 25.0 | 7 | 1 | 0 |"
    assert total == "| all |  | 7 | 2 | 1 | 1 | 17.0 | 7 | 1 | 2 |"


WATCH = """
import os, sys, time
folder = sys.argv[1]
def look():
    began = time.monotonic()
    with open(folder + "/disk/file", "wb") as file:
        os.fsync(file.fileno())
    print(time.time(), time.monotonic() - began, flush=True)
look()
for line in sys.stdin:
    look()
"""


@pytest.fixture
def scene(chaos: Any, tmp_path: Path) -> Iterator[Any]:
    with chaos.scene(tmp_path) as scene:
        yield scene


def test_a_running_process_sees_the_clock_jump_and_the_disk_slow_down(scene: Any, tmp_path: Path) -> None:
    if "clock" in scene.lacking:
        pytest.skip(scene.lacking["clock"])

    def look() -> tuple[float, float]:
        print(file=process.stdin, flush=True)
        shown, took = map(float, process.stdout.readline().split())
        return shown - time.time(), took

    command = [sys.executable, "-c", WATCH, str(tmp_path)]
    environment = os.environ | scene.environment
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        scene.deceive(clock_s=-7200)
        assert look()[0] == pytest.approx(-7200, abs=100)
        scene.deceive(delay_us=300_000)
        ahead, took = look()
        assert ahead == pytest.approx(0, abs=100)
        assert took >= 0.3
        process.stdin.close()


def test_a_full_disk_takes_nothing_until_it_is_freed(scene: Any) -> None:
    if "disk" in scene.lacking:
        pytest.skip(scene.lacking["disk"])
    scene.empty()
    scene.fill()
    with pytest.raises(OSError, match="No space left"):
        (scene.disk / "file").write_bytes(bytes(10_000))
    scene.free()
    (scene.disk / "file").write_bytes(bytes(10_000))
