"""What a trial does with what goes wrong, without Ray."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from raydistill.errors import RunError
from raydistill.tuning import judging, trial
from raydistill.tuning.agenda import Job
from raydistill.tuning.trial import REFUSED, Sweep, run_trial
from raydistill.tuning.trial_folder import TrialFolder

JOB = Job(number=3, trial=3, folder="trials/0003", values={"train.optimizer.lr": 0.1}, seed=0, searching=True)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was reported to Ray Tune."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", found.append)
    monkeypatch.setattr("ray.tune.get_checkpoint", lambda: None)
    return found


def run_into(error: Exception, monkeypatch: pytest.MonkeyPatch, folder: Path) -> TrialFolder:
    """Run the job, which ``error`` ends whenever it is tried; return its folder."""

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(trial, "_run", fail)
    (folder / JOB.folder / "logs").mkdir(parents=True)
    run_trial(JOB.to_dict(), Sweep({}, str(folder), [], False, pauses=False, generation=None, metric="val/top1"))
    return TrialFolder(folder / JOB.folder)


def full_disk() -> RunError:
    """As the files of a run raise it."""
    error = RunError("metrics.jsonl: cannot be written: No space left on device")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error


def test_a_full_disk_lies_in_no_trial_and_ends_the_sweep(
    reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = run_into(full_disk(), monkeypatch, tmp_path)
    assert folder.record["status"] == "running"  # a sweep that goes on tries it again
    assert [report[REFUSED] for report in reports] == [str(full_disk())]
    judge = judging.Judge(None, None, None, tmp_path)  # type: ignore[arg-type]  none of them is asked
    with pytest.raises(RunError, match="No space left"):
        judge.on_trial_result(None, None, reports[0])  # type: ignore[arg-type]


def test_what_else_goes_wrong_fails_the_trial_alone(
    reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = run_into(RuntimeError("shapes do not fit"), monkeypatch, tmp_path)
    assert (folder.record["status"], folder.record["cause"]) == ("failed", "shapes do not fit")
    assert [REFUSED in report for report in reports] == [False]
