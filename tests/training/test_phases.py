"""Where the time of an epoch goes; without Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.config import Experiment
from raydistill.methods.base import Step
from raydistill.train_config import CheckpointConfig
from raydistill.training.checkpoint import load_checkpoint, read_state
from raydistill.training.due import Due
from raydistill.training.keeping import CheckpointKeeper
from raydistill.training.loop import fit
from raydistill.training.phases import ALWAYS, BACKWARD, DATA, MOST_UNREAD, OPTIMIZER, STUDENT, TEACHER, Phases
from raydistill.training.placement import Placement
from raydistill.training.run import run
from raydistill.training.run_folder import RunFolder
from raydistill.training.session import Session
from raydistill.training.shelf import Shelf
from raydistill.training.waiting import waiting_advice
from tests.conftest import digits, teaching
from tests.training.sessions import session_of

CPU = torch.device("cpu")


def of_phases(record: dict[str, Any]) -> dict[str, float]:
    return {name.removeprefix("time/"): value for name, value in record.items() if name.startswith("time/")}


def trained(session: Session) -> list[dict[str, float]]:
    fit(session, lambda metrics, session: session.history.append(metrics))
    return session.history


def test_every_moment_counts_for_the_innermost_phase() -> None:
    phases = Phases(CPU)
    began = time.perf_counter()
    with phases(DATA):
        time.sleep(0.02)
        with phases(TEACHER):
            time.sleep(0.04)
        time.sleep(0.02)
    time.sleep(0.02)
    with phases(STUDENT):
        time.sleep(0.01)
    gone = time.perf_counter() - began
    found = phases.result()
    assert set(found) == {f"time/{phase}" for phase in (*ALWAYS, TEACHER)}
    assert found["time/data"] >= 0.04 and found["time/teacher"] >= 0.04 and found["time/student"] >= 0.01
    assert sum(found.values()) <= gone - 0.02
    assert sum(phases.result().values()) == 0.0


def test_waits_for_values_count_and_what_is_done_with_them_does_not() -> None:
    def slow() -> Any:
        for number in range(3):
            time.sleep(0.01)
            yield number

    phases = Phases(CPU)
    for _ in phases.each(DATA, slow()):
        time.sleep(0.03)
    assert 0.03 <= phases.seconds()[DATA] < 0.09


def test_what_is_not_added_up_yet_does_not_pile_up() -> None:
    phases = Phases(CPU)
    for _ in range(3 * MOST_UNREAD):
        with phases(STUDENT):
            pass
    assert len(phases._unread) <= MOST_UNREAD
    assert phases.seconds()[STUDENT] > 0.0


def test_an_epoch_says_where_its_time_went(tmp_path: Path, teacher_weights: Path) -> None:
    teacher = teaching(teacher_weights) | {"source": "live"}
    methods = {"ce": {}, "kd": {}, "seed": {"queue": 64}}
    for record in trained(session_of(digits(tmp_path, teacher=teacher, methods=methods, train={"batch_size": 16}))):
        found = of_phases(record)
        assert set(found) == {*ALWAYS, TEACHER}
        assert all(found[phase] > 0.0 for phase in found if phase != "checkpoint")
        # The rest is the loop's own, and whatever else the machine had to do.
        assert 0.5 * record["seconds"] < sum(found.values()) < record["seconds"]


def test_networks_that_teach_each_other_tell_it_too(tmp_path: Path) -> None:
    experiment = digits(tmp_path, peers=[{"model": "resnet8"}], methods={"ce": {}, "dml": {}})
    found = of_phases(trained(session_of(experiment))[0])
    assert found[STUDENT] > 0.0 and found["objective"] > 0.0 and TEACHER not in found


def test_micro_batches_and_clipping_are_counted(tmp_path: Path) -> None:
    experiment = digits(tmp_path, train={"epochs": 1, "batch_size": 48, "accumulate": 3, "clip": 1.0})
    found = of_phases(trained(session_of(experiment))[0])
    assert found[BACKWARD] > 0.0 and found[OPTIMIZER] > 0.0


def checkpointed(experiment: Experiment, folder: Path) -> Session:
    config = CheckpointConfig(steps=2, keep=100)
    run_folder, session = RunFolder(folder), session_of(experiment)
    run_folder.begin(experiment)
    with CheckpointKeeper(Shelf(folder / "shelf"), config, Due(config, CPU)) as keeper:
        run(session, run_folder, after_epoch=lambda metrics, session: None, keeper=keeper, final=False)
    return session


def test_a_resumed_epoch_keeps_the_seconds_of_its_first_part(tmp_path: Path) -> None:
    experiment = digits(tmp_path, train={"epochs": 2, "batch_size": 32})  # six steps an epoch
    checkpointed(experiment, tmp_path / "run")
    cut = tmp_path / "run" / "shelf" / "checkpoint_step000000010"
    before = read_state(cut, CPU)["phases"]
    assert before[STUDENT] > 0.0 and before[OPTIMIZER] > 0.0
    resumed = session_of(experiment)
    load_checkpoint(resumed, cut)
    resumed.phases.restart({phase: seconds + 100.0 for phase, seconds in before.items()})
    found = of_phases(trained(resumed)[-1])
    assert all(found[phase] > before[phase] + 100.0 for phase in (DATA, STUDENT, BACKWARD, OPTIMIZER))


def test_checkpoints_count_for_the_epoch_that_waits_for_them(tmp_path: Path) -> None:
    """That of an epoch's end counts for the next one, as the record is in it."""
    steps = digits(tmp_path, train={"epochs": 2, "batch_size": 32})
    first, second = checkpointed(steps, tmp_path / "run").history
    assert first["time/checkpoint"] > 0.0 and second["time/checkpoint"] > 0.0


def test_the_times_are_in_the_runs_files(tmp_path: Path) -> None:
    checkpointed(digits(tmp_path), tmp_path / "run")
    names = {f"time/{phase}" for phase in ALWAYS}
    assert all(names <= set(record) for record in RunFolder(tmp_path / "run").history())
    assert names <= set((tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(","))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert names <= set(events.Tags()["scalars"])


def test_a_run_that_waits_for_data_says_which_knob_helps(tmp_path: Path) -> None:
    session = session_of(digits(tmp_path))
    slow = {"epoch": 2, "seconds": 10.0, "time/validation": 1.0, "time/data": 4.0}
    fine = slow | {"epoch": 1, "time/data": 2.9}
    told = []
    for record in (fine, slow, slow | {"epoch": 3}):
        session.history.append(record)
        told.append(waiting_advice(session))
    assert told[0] is told[2] is None
    assert told[1] is not None and "epoch 2: 44 %" in told[1] and "data.augment" in told[1]
    session.history = [slow]
    session.placement = Placement("stream", "a table as large as the disk")
    assert "cache.read=shared" in (waiting_advice(session) or "")
    session.data.resident = False
    assert "data.reading=resident" in (waiting_advice(session) or "")
    session.history = [{"epoch": 1, "seconds": 10.0}]  # as older versions wrote it
    assert waiting_advice(session) is None


def test_the_advice_is_a_notice_of_the_run(tmp_path: Path) -> None:
    experiment = digits(tmp_path, train={"epochs": 2, "batch_size": 48})  # four steps an epoch
    session, folder = session_of(experiment), RunFolder(tmp_path / "run")
    folder.begin(experiment)
    steps = session.steps

    def slow(*arguments: Any, **options: Any) -> Iterator[Step]:
        for step in steps(*arguments, **options):
            time.sleep(0.3)
            yield step

    session.steps = slow  # type: ignore[method-assign]
    run(session, folder, after_epoch=lambda metrics, session: None, final=False)
    (said,) = folder.notices()
    assert "epoch 1: " in said and "waiting for data" in said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_time_of_a_gpu_is_that_of_its_stream() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    matrix @ matrix
    torch.cuda.synchronize()
    phases = Phases(device)
    began = time.perf_counter()
    with phases(STUDENT):
        for _ in range(50):
            matrix @ matrix
    queued = time.perf_counter() - began
    found = phases.seconds()[STUDENT]
    assert queued < found < 2.0 * (time.perf_counter() - began)
