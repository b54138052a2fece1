"""What a user sees of progress: bars at a terminal, whole lines in a log, nothing where quiet is wanted."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from raydistill import display
from raydistill.manner import be_quiet
from raydistill.progress import Progress, counted, part
from raydistill.training.run_folder import RunFolder
from tests.conftest import digits

WORK = """
import time
from raydistill import display
with display.working("work") as progress:
    progress(0.5, "half of it")
    time.sleep(0.6)
with display.redrawn("begins") as draw:
    time.sleep(0.3)
display.tell("told")
display.say("said")
"""
COLOUR = re.compile(r"\x1b\[(\d+;)*(3[0-8]|9[0-7])(;\d+)*m")


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    yield
    be_quiet(False)


def at_terminal(**environment: str) -> str:
    """What the work writes to stderr where that is a terminal."""
    above, below = pty.openpty()
    told = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "FORCE_COLOR")}
    started = subprocess.Popen(
        [sys.executable, "-c", WORK], stderr=below, env=told | {"TERM": "xterm-256color", **environment}
    )
    os.close(below)
    found = b""
    with suppress(OSError):  # the other end is closed
        while data := os.read(above, 1 << 16):
            found += data
    os.close(above)
    assert started.wait() == 0
    return found.decode()


def in_log(**environment: str) -> str:
    """What the work writes to stderr where that is a file."""
    environment = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", WORK], stderr=subprocess.PIPE, text=True, env=environment, check=True
    ).stderr


def test_a_terminal_shows_a_bar_in_colours_and_the_time_left() -> None:
    seen = at_terminal()
    assert COLOUR.search(seen)
    assert "half of it, 50% after" in seen
    assert "left" in seen
    assert "begins" in seen


def test_no_color_leaves_the_bar_without_colours() -> None:
    seen = at_terminal(NO_COLOR="1")
    assert "half of it" in seen
    assert not COLOUR.search(seen)


@pytest.mark.parametrize("name", ["CI", "none"])
def test_a_log_has_whole_lines_alone(name: str) -> None:
    """Also that of a continuous integration which gives its jobs a terminal, or takes colours."""
    seen = at_terminal(CI="true") if name == "CI" else in_log(FORCE_COLOR="1")
    assert seen.replace("\r\n", "\n") == "told\nsaid\n"


def test_a_log_gets_a_line_now_and_then_while_a_step_lasts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "_SECONDS_BETWEEN_LINES", 0.01)
    lines: list[str] = []
    with display.working("work") as progress, redirect_stderr(StringIO()):
        time.sleep(0.1)
        assert capsys.readouterr().err == "", "input is looked at, and what is wrong with it has one line"
        progress(0.25, "the first of four")
        while len(lines) < 3:
            time.sleep(0.001)
            lines += capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"work: the first of four, 25% after 1 s, about \d+ s left", lines[-1])


def test_what_has_no_share_yet_is_told_by_its_time_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "_SECONDS_BETWEEN_LINES", 0.01)
    line = ""
    with display.working("work") as progress, redirect_stderr(StringIO()):
        progress(0.0, "the first of four")
        while not line:
            time.sleep(0.001)
            line = capsys.readouterr().err
    assert re.match(r"work: the first of four, after \d+ s\n", line)


@pytest.mark.parametrize(("epoch", "left"), [(0, "23 min 20 s left"), (1, "10 min 00 s left")])
def test_neither_the_start_of_ray_nor_epochs_before_a_resume_count_in_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], epoch: int, left: str
) -> None:
    now = [0.0]
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: now[0]))
    folder = RunFolder(tmp_path)
    (tmp_path / "logs").mkdir()
    with display.training(digits(tmp_path), 2) as watch:
        for now[0], step in ((100.0, 1), (200.0, 2)):  # a sixteenth of the run in a hundred seconds
            folder.write_progress({"epoch": epoch, "step": step, "steps": 8, "images_per_s": 5.0, "train/loss": 0.25})
            watch(folder)
    first, second = capsys.readouterr().err.splitlines()
    assert "left" not in first
    assert second.endswith(left)


def test_quiet_hides_progress_and_not_what_is_to_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    be_quiet(True)
    display.tell("progress")
    display.say("warning")
    assert capsys.readouterr().err == "warning\n"


def test_parts_of_work_tell_their_share_of_the_whole() -> None:
    told: list[tuple[float, str]] = []

    def listen(share: float, step: str) -> None:
        told.append((share, step))

    progress: Progress = listen
    half = part(progress, 0.5, 1.0)
    assert [*counted("ab", half, "letter")] == ["a", "b"]
    part(half, 0.5, 0.75)(1.0, "nested")
    assert told == [(0.5, "letter 1 of 2"), (0.75, "letter 2 of 2"), (0.875, "nested")]
