"""Copies of runs on an S3 server of this machine, behind a network that cuts, drops and delays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raydistill.errors import ConfigError, DataError, InputError, RunError
from raydistill.teachers.cache import lease, store
from raydistill.teachers.cache.remote import RemotePath
from raydistill.training.backup import copying, keeping
from raydistill.training.backup.copying import Copier
from raydistill.training.backup.index import INDEX, read_index
from raydistill.training.backup.restoring import restore
from raydistill.training.run_folder import RunFolder, claimed
from tests.commands import PATIENCE, Command
from tests.conftest import digits
from tests.faulty import Proxy, busy, cut_answer, cut_upload, dropped, faulty, lost_answer, silent, slow
from tests.nodes import running_ray
from tests.s3 import serving
from tests.security.attacks import files_below
from tests.training.test_backup import put, sealed, until

BUCKET = "runs"
FOR_EVER = float("inf")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving("runs") as url:
        yield url


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with faulty(server) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(keeping, "EVERY_S", 0.05)
    monkeypatch.setattr(keeping, "FRUITLESS_S", 1.0)


@pytest.fixture
def url(proxy: Proxy) -> str:
    """A folder of the test's own, through the proxy."""
    return f"s3://{BUCKET}/{time.time_ns()}?endpoint_override={proxy.url}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint that goes to the server in two parts."""
    put(tmp_path / "run", {"config.yaml": b"config", "metrics.jsonl": b"1"} | sealed(os.urandom(1 << 20) * 11))
    return tmp_path / "run"


def straight(proxy: Proxy, url: str) -> RemotePath:
    """The same place without the proxy."""
    place = store.location(url.replace(str(proxy.port), str(proxy.server[1])))
    assert isinstance(place, RemotePath)
    return place


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": cut_upload(1 << 19), "method": "PUT", "path": "partNumber=2", "times": 2},
        {"kind": cut_upload(3), "method": "PUT", "path": INDEX, "times": 2},
        {"kind": busy, "times": 2, "after": 5},
        {"kind": dropped, "method": "PUT", "times": 2},
        {"kind": lost_answer, "method": "PUT", "times": 2},
        {"kind": lost_answer, "method": "POST", "path": "uploadId"},
        {"kind": slow(0.002), "times": FOR_EVER},
        {"kind": silent(0.5), "times": 3},
    ],
    ids=["cut", "cut index", "busy", "dropped", "answer lost", "completion lost", "slow", "silent"],
)
def test_a_copy_outlives_a_fault_that_passes(
    tmp_path: Path, run: Path, url: str, proxy: Proxy, fault: dict[str, Any]
) -> None:
    copier = Copier(run, store.location(url))
    proxy.expect(**fault)
    copier.turn()
    assert proxy.struck > 0
    restore(straight(proxy, url), tmp_path / "back")
    assert files_below(tmp_path / "back") == files_below(run)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": cut_upload(1 << 19), "method": "PUT", "path": "partNumber=2"},
        {"kind": busy, "method": "POST"},
        {"kind": busy, "method": "PUT", "path": INDEX},
        {"kind": cut_upload(100), "method": "PUT", "path": INDEX},
        {"kind": dropped, "method": "PUT"},
        {"kind": dropped},
    ],
    ids=["cut", "busy", "at the index", "cut index", "dropped", "gone"],
)
def test_what_did_not_get_there_whole_leaves_the_state_before(
    tmp_path: Path, run: Path, url: str, proxy: Proxy, fault: dict[str, Any]
) -> None:
    copier = Copier(run, store.location(url))
    copier.turn()
    before = files_below(run)
    put(run, {"metrics.jsonl": b"12"} | sealed(os.urandom(1 << 20) * 12))
    proxy.expect(**fault, times=FOR_EVER)
    with pytest.raises((RunError, InputError)) as caught:
        copier.turn()
    assert "\n" not in str(caught.value)
    restore(straight(proxy, url), tmp_path / "before")
    assert files_below(tmp_path / "before") == before
    proxy.heal()
    copier.turn()
    restore(straight(proxy, url), tmp_path / "after")
    assert files_below(tmp_path / "after") == files_below(run)


def test_what_is_read_through_faults_is_right_or_not_there(tmp_path: Path, run: Path, url: str, proxy: Proxy) -> None:
    Copier(run, store.location(url)).turn()
    for kind in (cut_answer(1000), busy, dropped, slow(0.001)):
        proxy.expect(kind, "GET", times=2)
        restore(store.location(url), tmp_path / "back" / str(kind))
        assert files_below(tmp_path / "back" / str(kind)) == files_below(run)
        proxy.heal()
    for kind in (cut_answer(1000), busy, dropped):
        proxy.expect(kind, "GET", "objects", times=FOR_EVER)
        with pytest.raises(InputError) as caught:
            restore(store.location(url), tmp_path / "lost")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "lost").exists() and not list(tmp_path.glob(".lost*"))
        proxy.heal()


def test_damage_on_the_server_is_named(tmp_path: Path, run: Path, url: str) -> None:
    place = store.location(url)
    Copier(run, place).turn()
    index = read_index(place)
    assert index is not None
    victim = place / "objects" / index.files["config.yaml"].object
    for data, said in ((b"Config", "checksum"), (b"conf", "4 bytes instead of 6"), (b"", "0 bytes instead of 6")):
        store.write(victim, data)
        with pytest.raises(DataError, match=rf"objects/{victim.name}.*: damaged: .*{said}"):
            restore(place, tmp_path / "back")
    victim.unlink()
    with pytest.raises(DataError, match=rf"objects/{victim.name}.*: damaged: missing"):
        restore(place, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_index_that_grows_while_it_is_read_is_read_again(
    run: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Copier(run, store.location(url)).turn()
    left = [7, 7, 0]

    def cut(path: RemotePath, real: Any = RemotePath.read_bytes) -> bytes:
        data: bytes = real(path)
        return data[: len(data) - left.pop(0)]

    monkeypatch.setattr(RemotePath, "read_bytes", cut)
    assert read_index(store.location(url)) is not None


def test_behind_fsspec_it_is_the_same(tmp_path: Path, run: Path) -> None:
    place = store.location(f"memory://runs/{time.time_ns()}")
    copier = Copier(run, place)
    for metrics in (b"12", b"123", b"1234"):
        copier.turn()
        put(run, {"metrics.jsonl": metrics})
    copier.turn()
    restore(place, tmp_path / "back")
    assert files_below(tmp_path / "back") == files_below(run)
    assert len(store.file_sizes(place / "objects", "")) == len(files_below(run)) + 1
    copier.remove()
    assert read_index(place) is None


def test_a_run_through_faults_is_told_once_and_copied_in_the_end(tmp_path: Path, url: str, proxy: Proxy) -> None:
    experiment = digits(tmp_path, backup=url)
    with claimed(experiment.folder, resume=False, backup=url) as folder:
        folder.begin(experiment)
        until(lambda: read_index(straight(proxy, url) / "digits"))
        proxy.expect(busy, "PUT", "objects", times=FOR_EVER)
        folder.write_history([{"epoch": 0}])
        until(folder.notices)
        proxy.heal()
        until(lambda: len(folder.notices()) == 2)
        folder.succeed()
    assert "SLOW_DOWN" in folder.notices()[0] and folder.notices()[1] == "backup: goes on"
    restore(straight(proxy, url) / "digits", tmp_path / "back")
    assert files_below(tmp_path / "back") == files_below(folder.path)
    assert not (straight(proxy, url) / "digits" / lease.LEASE).is_file()


def test_a_server_that_is_gone_at_the_end_is_one_line(tmp_path: Path, url: str, proxy: Proxy) -> None:
    experiment = digits(tmp_path, backup=url)
    with (
        pytest.raises(RunError, match=r"lacks the end \(.*cannot be reached.*\); the same command with --resume"),
        claimed(experiment.folder, resume=False, backup=url) as folder,
    ):
        folder.begin(experiment)
        proxy.expect(dropped, times=FOR_EVER)
        folder.succeed()
    proxy.heal()
    time.sleep(0.1)
    assert folder.succeeded and read_index(straight(proxy, url) / "digits") is None
    _age(straight(proxy, url) / "digits")  # it could not be given back either
    with claimed(experiment.folder, resume=True, backup=url):
        pass
    restore(straight(proxy, url) / "digits", tmp_path / "back")
    assert files_below(tmp_path / "back") == files_below(folder.path)


def _age(place: RemotePath) -> None:
    """Let a minute pass for a lease."""
    found = json.loads((place / lease.LEASE).read_bytes())
    store.write(place / lease.LEASE, json.dumps(found | {"time": found["time"] - lease._FRESH_SECONDS}))


def test_a_server_that_is_not_there_is_told_before_anything_is_written(tmp_path: Path) -> None:
    for url, said in (
        (f"s3://{BUCKET}/x?endpoint_override=http://127.0.0.1:1", "cannot be reached"),
        ("s3:///x", "names no bucket"),
        ("s3://user:password@runs/x", "holds credentials"),
    ):
        folder = digits(tmp_path, backup=url).folder
        with pytest.raises(InputError, match=said), claimed(folder, resume=False, backup=url):
            pass
        assert not folder.exists()


def test_two_machines_do_not_write_one_copy(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 0.3)
    here, there = digits(tmp_path / "here", backup=url), digits(tmp_path / "there", backup=url)
    with claimed(here.folder, resume=False, backup=url) as folder:
        folder.begin(here)
        for resume in (False, True):
            with (
                pytest.raises(
                    ConfigError, match=rf"digits.*: process {os.getpid()} of .* writes this copy; wait until"
                ),
                claimed(there.folder, resume=resume, backup=url),
            ):
                pass
    assert not there.folder.exists()


def test_who_was_taken_for_dead_writes_no_more(
    tmp_path: Path, url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_RENEW_SECONDS", 1000.0)  # it sleeps, with its whole machine
    here, there = digits(tmp_path / "here", backup=url), digits(tmp_path / "there", backup=url)
    lost = pytest.raises(RunError, match=r"another process has taken over this copy")
    with lost, claimed(here.folder, resume=False, backup=url) as asleep:
        asleep.begin(here)
        until(lambda: read_index(straight(proxy, url) / "digits"))
        _age(straight(proxy, url) / "digits")
        with claimed(there.folder, resume=True, backup=url) as folder:
            folder.begin(there, resume=True)
            folder.write_history([{"epoch": 1}])
            folder.succeed()
        asleep.write_history([{"epoch": 0}])
        asleep.succeed()
    restore(straight(proxy, url) / "digits", tmp_path / "back")
    assert files_below(tmp_path / "back") == files_below(there.folder)


ONE_NODE = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster()
cluster.add_node(num_cpus=2, node_ip_address="127.0.0.1", include_dashboard=False, object_store_memory=200 * 2**20)
print("RAY", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
OFTEN = """
from raydistill.training.backup import keeping
keeping.EVERY_S = 0.2
from raydistill.cli import main
main()
"""


class Run(Command):
    """``raydistill train`` that copies often."""

    verb = "train"

    def start(self, *options: str) -> None:
        self.experiment.folder.parent.parent.mkdir(parents=True, exist_ok=True)
        config = self.experiment.folder.parent.parent / "digits.yaml"
        config.write_text(self.experiment.to_yaml())
        self.process = subprocess.Popen(
            [sys.executable, "-c", OFTEN, self.verb, str(config), *options],
            env=self.environment,
            cwd=config.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self) -> str:
        _, told = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, told
        return told

    @property
    def student(self) -> bytes:
        return (self.experiment.folder / "student.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_an_upload_goes_on_elsewhere_to_the_same_student(
    tmp_path: Path, url: str, proxy: Proxy
) -> None:
    sections: dict[str, Any] = {
        "data": {"name": "digits", "subset": 400, "validation": 0.2, "augment": {"crop": 1}},
        "train": {"epochs": 5, "batch_size": 16, "checkpoint": {"steps": 7, "keep": 3}},
        "scale": {"workers": 1, "cpus_per_worker": 1, "use_gpu": False},
    }
    with running_ray(ONE_NODE, tmp_path) as (_, environment):
        whole = Run(digits(tmp_path / "whole", **sections), environment)
        whole.start()
        lost = Run(digits(tmp_path / "lost", backup=url, **sections), environment)
        proxy.expect(busy, "PUT", "objects", times=2)
        proxy.expect(cut_upload(50_000), "PUT", "objects", after=3, times=2, least=60_000)
        lost.start()
        place = straight(proxy, url) / "digits"
        lost.until(lambda: (found := read_index(place)) and any("checkpoint" in path for path in found.files))
        sent = proxy.struck
        proxy.expect(slow(0.3), "PUT", "objects", least=100_000, times=FOR_EVER)
        lost.until(lambda: proxy.struck > sent)
        time.sleep(0.5)  # of the several seconds that this upload takes
        os.killpg(lost.process.pid, signal.SIGKILL)
        lost.process.communicate()
        proxy.heal()
        assert not (lost.experiment.folder / "_SUCCESS").exists()
        lost.experiment.folder.rename(tmp_path / "gone")
        _age(place)
        resumed = Run(digits(tmp_path / "elsewhere", backup=url, **sections), environment)
        resumed.start("--resume")
        assert "taken from s3://" in resumed.end()
        whole.end()
        attempts = RunFolder(resumed.experiment.folder).attempts()
        assert attempts[0] > 0, "it began anew"
        assert resumed.student == whole.student
        restore(place, tmp_path / "back")
        assert files_below(tmp_path / "back") == {
            path: data
            for path, data in files_below(resumed.experiment.folder).items()
            if path in copying.signatures(resumed.experiment.folder)
        }
