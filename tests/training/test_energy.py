"""Joules: counters of a made folder, and what they become in a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from raydistill.training import energy
from raydistill.training.checkpoint import restore, state_of
from raydistill.training.energy import Counter, Energy, energy_on, packages
from raydistill.training.run import run
from raydistill.training.run_folder import RunFolder
from tests.training.sessions import session_of
from tests.training.test_checkpoints import six_steps

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SPAN_UJ = 262_143_000_000


def zone(root: Path, folder: str, name: str, energy_uj: int = 0) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{SPAN_UJ}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path / "energy_uj"


class Steady:
    """A counter that grows by ten joules whenever it is read."""

    def __init__(self) -> None:
        self.joules = 0.0

    def __call__(self) -> float:
        self.joules += 10.0
        return self.joules


def test_packages_add_up_and_their_parts_are_not_counted_again(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 1_000_000)
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core"),
        zone(tmp_path, "intel-rapl:0:1", "dram"),
        zone(tmp_path, "intel-rapl:2", "psys"),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000),
    ]
    (tmp_path / "intel-rapl").mkdir()  # the kind of zones, beside them
    found = packages(tmp_path)
    assert [counter.name for counter in found] == ["package-0", "package-1"]
    spent = energy_on(CPU, tmp_path)
    assert spent.joules == 0.0
    for path in (first, others[-1]):
        path.write_text("8500000\n")
    second.write_text("1250000\n")
    for path in others[:-1]:
        path.write_text("99000000\n")
    assert spent.joules == pytest.approx(3.75)
    assert spent.joules == pytest.approx(3.75)


def test_a_counter_that_begins_anew_goes_on(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", SPAN_UJ - 2_000_000)
    spent = energy_on(CPU, tmp_path)
    path.write_text("3000000\n")
    assert spent.joules == pytest.approx(5.0)


def test_counters_are_read_again_before_they_can_come_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0")
    spent = energy_on(CPU, tmp_path)
    path.write_text(f"{SPAN_UJ - 1_000_000}\n")
    spent.look()  # a moment later: nothing is read
    monkeypatch.setattr(energy, "LOOK_EVERY_S", -1.0)
    spent.look()
    path.write_text("1000000\n")
    assert spent.joules == pytest.approx(SPAN_UJ / 1e6 + 1.0)


def test_nothing_is_known_without_files_that_can_be_read(tmp_path: Path) -> None:
    assert packages(tmp_path / "nowhere") == [] and energy_on(CPU, tmp_path).joules is None
    zone(tmp_path, "intel-rapl:0", "package-0")
    unreadable = zone(tmp_path, "intel-rapl:1", "package-1")
    unreadable.unlink()
    unreadable.mkdir()  # root may read everything but this
    assert packages(tmp_path) == [] and energy_on(CPU, tmp_path).joules is None


def test_a_counter_that_is_lost_makes_the_whole_unknown(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0")
    spent = energy_on(CPU, tmp_path)
    path.unlink()
    assert spent.joules is None
    path.write_text("9000000\n")
    assert spent.joules is None
    went_back = Energy([Counter("gpu", iter([5.0, 3.0]).__next__)])
    assert went_back.joules is None


def test_a_gpus_counter_is_that_of_its_uuid_and_no_share_goes_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    millijoules = {"GPU-1234": 7000}
    nvml = ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})  # type: ignore[attr-defined]
    nvml.nvmlInit = lambda: None  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: uuid  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: millijoules[handle]  # type: ignore[attr-defined]
    properties = SimpleNamespace(uuid="1234", name="a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_on(GPU, tmp_path).joules is None
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    spent = energy_on(GPU, tmp_path)
    assert [counter.name for counter in spent.counters] == ["package-0", "a GPU"]
    millijoules["GPU-1234"] = 9500
    assert spent.joules == pytest.approx(2.5)

    def refused(handle: str) -> int:
        raise nvml.NVMLError("not supported")  # type: ignore[attr-defined]

    nvml.nvmlDeviceGetTotalEnergyConsumption = refused  # type: ignore[attr-defined]
    assert spent.joules is None and energy_on(GPU, tmp_path).joules is None


def test_a_runs_epochs_and_its_result_tell_it(tmp_path: Path) -> None:
    session = session_of(six_steps(tmp_path, {"ce": {}}))
    session.energy = Energy([Counter("package-0", Steady())])
    folder = RunFolder(tmp_path / "run")
    folder.begin(session.experiment)
    run(session, folder, after_epoch=lambda metrics, session: None, final=False)
    told = [record["energy_j"] for record in folder.history()]
    result = folder.result()
    assert told == [10.0, 10.0] and result["energy_j"] == 30.0
    assert json.loads((folder.path / "environment.json").read_text())["energy"] == ["package-0"]


def test_a_resumed_run_adds_up(tmp_path: Path) -> None:
    session = session_of(six_steps(tmp_path, {"ce": {}}))
    session.energy = Energy([Counter("package-0", Steady())])
    session.epoch, session.history = 1, [{"epoch": 1, "energy_j": 15.0}]
    session.energy.restart(15.0)
    state = state_of(session)
    assert state["energy_j"] == 25.0  # ten of them in an epoch that is not at its end
    resumed = session_of(session.experiment)
    resumed.energy = Energy([Counter("package-0", Steady())])
    restore(resumed, state, tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.begin(session.experiment)
    run(resumed, folder, after_epoch=lambda metrics, session: None, final=False)
    assert [record["energy_j"] for record in folder.history()] == [15.0, 20.0]
    assert folder.result()["energy_j"] == 45.0


def test_a_run_of_which_a_part_was_not_measured_has_no_sum(tmp_path: Path) -> None:
    session = session_of(six_steps(tmp_path, {"ce": {}}))
    session.energy = Energy()
    state = state_of(session)
    resumed = session_of(session.experiment)
    resumed.energy = Energy([Counter("package-0", Steady())])
    restore(resumed, state, tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.begin(session.experiment)
    run(resumed, folder, after_epoch=lambda metrics, session: None, final=False)
    assert all("energy_j" not in record for record in [*folder.history(), folder.result()])
