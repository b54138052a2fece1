"""Steps under torch's profiler; without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydistill.training.loop import fit
from raydistill.training.profiling import Profiler, TorchProfiler, Window
from raydistill.training.session import Session
from tests.conftest import digits
from tests.training.sessions import assert_equal_states, session_of


@pytest.mark.parametrize(
    ("steps", "window"),
    [
        (1, Window(0, 0, 1)),
        (2, Window(0, 1, 1)),
        (3, Window(0, 2, 1)),
        (7, Window(0, 2, 5)),
        (9, Window(2, 2, 5)),
        (1000, Window(5, 2, 5)),
    ],
)
def test_the_window_fits_the_epoch(steps: int, window: Window) -> None:
    assert Window.within(steps) == window
    assert window.wait + window.warm_up + window.record <= steps


def trained(folder: Path, batch_size: int, profiler: Profiler) -> Session:
    session = session_of(digits(folder, train={"epochs": 2, "batch_size": batch_size}))
    fit(session, lambda metrics, session: session.history.append(metrics), profiler=profiler)
    return session


@pytest.mark.parametrize(
    ("batch_size", "recorded"),
    [
        (12, "steps 8 to 12 of epoch 1, after 2"),
        (64, "step 3 of epoch 1, after 2"),
        (192, "step 1 of epoch 1, after 0"),
    ],
)
def test_a_profile_shows_the_phases_and_changes_nothing(tmp_path: Path, batch_size: int, recorded: str) -> None:
    notes: list[str] = []
    profiled = trained(tmp_path, batch_size, TorchProfiler(tmp_path / "profile", notes.append))
    assert_equal_states(profiled, trained(tmp_path, batch_size, Profiler()))
    (said,) = notes
    assert recorded in said and str(tmp_path / "profile" / "profile.txt") in said
    table = (tmp_path / "profile" / "profile.txt").read_text()
    assert table.startswith(recorded) and "aten::" in table
    (trace,) = (tmp_path / "profile").glob("*.pt.trace.json")
    events = json.loads(trace.read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    steps = 5 if batch_size == 12 else 1
    assert {names.count(phase) for phase in ("student", "backward")} == {steps}
    assert any("conv" in str(event.get("name")) for event in events)


def test_a_profile_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file in the folder's place")
    notes: list[str] = []
    assert len(trained(tmp_path, 64, TorchProfiler(tmp_path / "profile", notes.append)).history) == 2
    assert "could not be written" in notes[0]
