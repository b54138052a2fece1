"""Builds that are killed, and builds at the same time: whole commands on a Ray of two nodes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raydistill.config import Experiment
from raydistill.files import TEMPORARY
from raydistill.teachers.cache.manifest import RECORDS, SHARDS, SUCCESS
from raydistill.teachers.cache.read import TeacherCache
from tests.commands import PATIENCE
from tests.conftest import digits
from tests.nodes import running_ray
from tests.teachers.stored import store

IMAGES, VIEWS, SHARD_ROWS, BATCH = 240, 1, 20, 10
ROWS = IMAGES * (VIEWS + 1)
SHARD_COUNT = ROWS // SHARD_ROWS

NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
for _ in range(2):
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", include_dashboard=False)
print("RAY", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass
class Builds:
    """Starts the build command of one experiment, and knows from the teacher itself what it computed."""

    experiment: Experiment
    environment: dict[str, str]
    folder: Path
    drivers: list[int] = field(default_factory=list)

    def start(self) -> subprocess.Popen[str]:
        config = self.folder / "experiment.yaml"
        config.write_text(self.experiment.to_yaml())
        command = [sys.executable, "-m", "raydistill.cli", "cache", "build", str(config), "--json"]
        process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.drivers.append(process.pid)
        return process

    @property
    def forwards(self) -> list[tuple[int, int]]:
        """(process, images) of every forward in an actor; a driver asks the teacher for shapes only."""
        log = Path(self.environment["FORWARDS"])
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(int(pid), int(images)) for pid, images in lines if int(pid) not in self.drivers]

    def files(self, pattern: str) -> list[Path]:
        return sorted(Path(self.experiment.cache.root).glob(f"*/{pattern}"))

    def finished(self) -> dict[str, tuple[int, int]]:
        """Inode and time of each shard that has a record."""
        shards = (path.parent.parent / SHARDS / f"{path.stem}.parquet" for path in self.files(f"{RECORDS}/*.json"))
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of builds on a Ray of two nodes with one CPU each, in processes of their own."""
    more = {"FORWARDS": str(tmp_path / "forwards"), "SECONDS_PER_FORWARD": "0.15"}
    with running_ray(NODES, tmp_path, **more) as (_, environment):
        yield environment


@pytest.fixture
def builds(tmp_path: Path, nodes: dict[str, str]) -> Builds:
    """24 shards that take a third of a second each."""
    experiment = digits(
        tmp_path,
        teacher={"model": "tests.models.foreign:watched", "batch_size": BATCH},
        data={"name": "digits", "subset": IMAGES, "validation": 0.2, "augment": {"crop": 1}},
        methods={"kd": {}},
        cache={
            "root": str(tmp_path / "cache"),
            "shard_rows": SHARD_ROWS,
            "views": VIEWS,
            "actors": 1,
            "cpus_per_actor": 1,
        },
    )
    return Builds(experiment, nodes, tmp_path)


def until(met: Callable[[], object], process: subprocess.Popen[str], step: float = 0.01) -> bool:
    """Wait; False where the build ended before."""
    deadline = time.monotonic() + PATIENCE
    while not met():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(step)
    return True


def wait_for(moment: str, builds: Builds, process: subprocess.Popen[str], chance: random.Random) -> None:
    if moment == "start":
        time.sleep(chance.uniform(0.5, 6.0))
        return
    wanted = SHARD_COUNT if moment == "end" else len(builds.finished()) + 1
    assert until(lambda: len(builds.files(f"{RECORDS}/*.json")) >= wanted, process, step=0.001)
    if moment == "shard":
        time.sleep(chance.uniform(0.0, 0.6))
    elif moment == "write":
        until(lambda: builds.files(f"{SHARDS}/.*{TEMPORARY}"), process, step=0.0)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def cache_of(builds: Builds) -> Path:
    """The folder of the cache; a killed command may leave beside it what it asked other nodes by, for an hour."""
    (path,) = (path for path in Path(builds.experiment.cache.root).iterdir() if not path.name.startswith("."))
    return path


def assert_equal_to_uninterrupted(builds: Builds, path: Path, folder: Path) -> None:
    """Byte for byte; then no row can be there twice or be missing, which is looked for all the same."""
    expected = Path(store(builds.experiment, root=str(folder / "uninterrupted")).path)
    assert path.name == expected.name
    for whole in sorted((expected / SHARDS).iterdir()):
        table, other = pq.read_table(path / SHARDS / whole.name), pq.read_table(whole)
        assert table.column_names == other.column_names
        assert [name for name in table.column_names if not table[name].equals(other[name])] == []
        assert (path / SHARDS / whole.name).read_bytes() == whole.read_bytes()
    cache = TeacherCache.open(path)
    keys = cache.to_pandas()[["sample_id", "view_id"]]
    assert len(keys) == len(keys.drop_duplicates()) == ROWS
    assert set(keys["sample_id"]) == set(cache.ids.tolist())
    assert len(list((path / SHARDS).iterdir())) == len(list((path / RECORDS).iterdir())) == SHARD_COUNT
    assert [found for found in path.rglob("*") if found.name.endswith(TEMPORARY)] == []
    assert cache.verify(full=True) == []


@pytest.mark.slow
def test_ten_kills_leave_the_cache_of_an_uninterrupted_build(builds: Builds, tmp_path: Path) -> None:
    chance = random.Random(20)
    # Kills fall while the build starts, within a shard, while one is written, and when the last one is there.
    moments = [("driver", "start"), ("driver", "start"), ("driver", "shard"), ("driver", "shard"), ("driver", "write")]
    moments += [("actor", "shard"), ("actor", "write"), ("actor", "shard")]
    chance.shuffle(moments)
    moments += [("driver", "write"), ("driver", "end")]
    kept: dict[str, tuple[int, int]] = {}
    deaths: Counter[str] = Counter()
    process = builds.start()
    for victim, moment in moments:
        if process.poll() is not None:
            process = builds.start()
        wait_for(moment, builds, process, chance)
        finished = builds.finished()
        assert kept.items() <= finished.items(), "a finished shard was written again"
        kept = finished
        kill(builds.forwards[-1][0] if victim == "actor" else process.pid)
        deaths[victim] += 1
        if victim == "driver":
            process.wait()
            time.sleep(1.0)  # Ray ends the actors of a dead driver; a shard may still be finished meanwhile
            kept = builds.finished()
    assert deaths == {"driver": 7, "actor": 3}

    last = process if process.poll() is None else builds.start()
    said, complained = last.communicate(timeout=PATIENCE)
    assert last.returncode == 0, complained
    path = cache_of(builds)
    assert (path / SUCCESS).is_file()
    assert kept.items() <= builds.finished().items()
    computed = sum(images for _, images in builds.forwards)
    print(f"{computed} forwards for {ROWS} rows; {said.splitlines()[-1]}")
    assert ROWS <= computed <= ROWS + len(moments) * SHARD_ROWS
    assert_equal_to_uninterrupted(builds, path, tmp_path)


@pytest.mark.slow
def test_two_builders_on_two_nodes_share_the_work(builds: Builds, tmp_path: Path) -> None:
    builds.experiment = builds.experiment.override({"cache.actors": 2})  # one CPU each, so one on each node
    one, other = builds.start(), builds.start()
    results = [process.communicate(timeout=PATIENCE) for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), results
    assert sum("another build of this cache is at work; waiting" in complained for _, complained in results) == 1
    (path,) = Path(builds.experiment.cache.root).iterdir()
    assert all(f'"path": "{path}"' in said.splitlines()[-1] for said, _ in results)
    assert sum(images for _, images in builds.forwards) == ROWS
    assert len({pid for pid, _ in builds.forwards}) == 2
    assert_equal_to_uninterrupted(builds, path, tmp_path)
