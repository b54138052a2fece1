"""Weights & Biases and MLflow beside runs, each told by a process of its own.

What a tracker gets stands in the run's folder first, so no worker knows of one: a process beside looks there now and
then (``following``). A tracker that is slow, hangs or is gone costs the training nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from raydistill.config import Experiment
from raydistill.errors import ConfigError
from raydistill.training.run_folder import RunFolder
from raydistill.training.trackers import Status

WAIT_AT_THE_END_S = 30.0

Processes = Mapping[str, "subprocess.Popen[str]"]


def check_trackers(experiment: Experiment) -> None:
    """Raise ``ConfigError`` where a tracker that the experiment names is not installed."""
    for name in experiment.track.asked:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is no package
            raise ConfigError(f"track.{name}: {name} is not installed; pip install 'raydistill[tracking]'")


@contextmanager
def tracked(experiment: Experiment, folder: RunFolder, *, kind: str) -> Iterator[None]:
    """Let the experiment's trackers follow a run, and the trials of a sweep, for as long as the context lasts.

    At its end they get half a minute to tell the rest. What goes wrong is one notice in the folder; what the tracker
    itself says goes into ``logs/<tracker>.log``.
    """
    processes = {name: _start(name, folder, kind) for name in experiment.track.asked}
    try:
        yield
    except BaseException as error:
        _finish(processes, folder, "failed" if isinstance(error, Exception) else "stopped")
        raise
    _finish(processes, folder, "finished")


def _start(name: str, folder: RunFolder, kind: str) -> subprocess.Popen[str]:
    """Start a process in a session of its own, which the user's interrupt does not reach."""
    command = [sys.executable, "-m", "raydistill.training.following", name, str(folder.path.resolve()), kind]
    with (folder.path / "logs" / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, start_new_session=True
        )


def _finish(processes: Processes, folder: RunFolder, status: Status) -> None:
    """Say how the run ended; whoever takes too long to tell it is ended."""
    deadline = time.monotonic() + WAIT_AT_THE_END_S
    for process in processes.values():
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{status}\n")
            process.stdin.close()
    for name, process in processes.items():
        trouble = _trouble(process, deadline)
        if trouble and folder.path.is_dir():
            folder.note(f"track.{name}: {trouble}; see {folder.path / 'logs' / f'{name}.log'}")


def _trouble(process: subprocess.Popen[str], deadline: float) -> str | None:
    try:
        return "it failed" if process.wait(max(0.0, deadline - time.monotonic())) else None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "it did not answer in time"
