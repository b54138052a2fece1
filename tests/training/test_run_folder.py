from __future__ import annotations

import errno
import json
import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from raydistill.config import load_experiment
from raydistill.errors import ConfigError, RunError
from raydistill.files import temporary_name
from raydistill.training.run_folder import RunFolder, claimed, locked_run
from tests.conftest import digits


def test_an_earlier_run_is_moved_aside_and_never_lost(tmp_path: Path) -> None:
    for number in range(3):
        with claimed(tmp_path / "run", resume=False) as folder:
            folder.begin(digits(tmp_path, seed=number))
            assert folder.notices() == [f"the earlier run of this name is {tmp_path / 'run'}.{number} now"][:number]
    seeds = {path.name: load_experiment(path / "config.yaml").seed for path in tmp_path.glob("run*")}
    assert seeds == {"run": 2, "run.1": 0, "run.2": 1}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    second = claimed(tmp_path / "run", resume=False)
    with claimed(tmp_path / "run", resume=False), pytest.raises(ConfigError, match="another process"), second:
        raise AssertionError("two runs hold one folder")


def test_nothing_is_left_of_what_was_refused(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    for output in (tmp_path / "made" / "for it", tmp_path / "others"):
        with pytest.raises(ConfigError, match="refused"), claimed(output / "run", resume=False):
            assert (output / ".run.lock").is_file()
            raise ConfigError("refused")
    assert [path.name for path in tmp_path.rglob("*")] == ["others"]


def test_a_lock_that_is_removed_and_made_anew_has_one_holder(tmp_path: Path) -> None:
    """As many try at a time, each time to be refused, and so remove what the others have opened meanwhile."""
    holders, most = 0, []

    def claim() -> int:
        nonlocal holders
        held = 0
        for _ in range(200):
            with suppress(ConfigError), locked_run(tmp_path / "runs" / "run"):
                holders += 1
                time.sleep(0.0001)
                most.append(holders)
                holders -= 1
                held += 1
        return held

    with ThreadPoolExecutor(4) as pool:
        tries = [pool.submit(claim) for _ in range(4)]
    assert sum(one.result() for one in tries) == len(most) > 0
    assert max(most) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run to resume"), claimed(tmp_path / "run", resume=True):
        raise AssertionError("nothing was there to resume")


def test_files_of_a_run(tmp_path: Path) -> None:
    experiment = digits(tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.begin(experiment)
    assert load_experiment(folder.path / "config.yaml") == experiment
    assert "torch" in json.loads((folder.path / "environment.json").read_text())["packages"]
    history = [{"epoch": 1, "train/loss": 2.0}, {"epoch": 2, "train/loss": 1.0, "val/top1": 50.0}]
    folder.write_history(history)
    assert folder.history() == history
    assert (folder.path / "metrics.csv").read_text().split() == ["epoch,train/loss,val/top1", "1,2.0,", "2,1.0,50.0"]
    assert not folder.succeeded
    folder.succeed()
    assert folder.succeeded


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"), claimed(tmp_path / "file" / "run", resume=False):
        raise AssertionError("a file was taken for a folder")


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds other files"), claimed(tmp_path / "run", resume=False):
        raise AssertionError("a folder of something else was taken")
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


@pytest.fixture
def short_files() -> Iterator[None]:
    """No file gets longer than 1000 bytes; what is written beyond is cut off, as on a disk that becomes full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_as_a_run_begins_leaves_a_folder_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = digits(tmp_path)

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        with pytest.raises(RunError, match="No space left"), claimed(tmp_path / "run", resume=False) as folder:
            folder.begin(experiment)
    (tmp_path / "run" / temporary_name("config.yaml")).write_text("half of")  # one that was killed there
    with claimed(tmp_path / "run", resume=False) as folder:
        folder.begin(experiment)
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "environment.json", "logs", "checkpoints"}


@pytest.mark.usefixtures("short_files")
def test_what_a_full_disk_has_no_room_for_leaves_no_half_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "logs").mkdir()
    noted, steps = [], []
    with pytest.raises(RunError, match=r"notices\.jsonl: cannot be written: No space left"):
        while True:
            folder.note(f"notice {len(noted)}")
            noted.append(f"notice {len(noted)}")
    with pytest.raises(RunError, match=r"attempts\.jsonl: cannot be written: No space left"):
        while True:
            folder.begin_attempt(len(steps), 1)
            steps.append(len(steps))
    assert folder.notices() == noted != []
    assert folder.attempts() == steps != []


def test_notices_of_a_run_that_goes_on_are_told_apart_by_their_order_and_not_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claimed(tmp_path / "run", resume=False) as folder:
        folder.begin(digits(tmp_path))
        folder.note("first")
        assert folder.notices() == ["first"]
    monkeypatch.setattr("time.time", lambda: 1.0)  # the clock was set back
    with claimed(tmp_path / "run", resume=True) as folder:
        folder.begin(digits(tmp_path), resume=True)
        RunFolder(folder.path).note("second")
        assert folder.notices() == ["second"]
        assert RunFolder(folder.path).notices() == ["first", "second"]
