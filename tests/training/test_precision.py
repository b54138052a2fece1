"""Precision by measurement, and compilation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raydistill.config import Experiment
from raydistill.errors import ConfigError
from raydistill.models.zoo import build_model
from raydistill.training.checkpoint import load_checkpoint
from raydistill.training.loop import fit
from raydistill.training.precision import LEAST_GAIN, Probe, probe_precision
from raydistill.training.run import run
from raydistill.training.run_folder import RunFolder
from raydistill.training.session import Session
from tests.conftest import digits
from tests.training.sessions import save_checkpoint, session_of

SHORT = {"epochs": 1, "batch_size": 48}


def automatic(folder: Path) -> Experiment:
    return digits(folder, train=SHORT | {"precision": "auto"})


def test_the_probe_follows_its_figures_and_changes_nothing() -> None:
    student = build_model("resnet8", 10)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    images = torch.randn(16, 3, 8, 8)
    state = torch.get_rng_state()
    probe = probe_precision(student, images)
    assert probe.chosen == ("bf16" if probe.bf16_ms < (1 - LEAST_GAIN) * probe.fp32_ms else "fp32")
    assert min(probe.fp32_ms, probe.bf16_ms) > 0.0
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value.grad is None for value in student.parameters())


def test_the_first_measurement_decides_for_the_whole_run(tmp_path: Path) -> None:
    experiment = automatic(tmp_path)
    first = session_of(experiment)
    assert first.probe is not None and first.precision == first.probe.chosen
    for chosen in ("bf16", "fp32"):
        first.probe = replace(first.probe, chosen=chosen)
        save_checkpoint(first, tmp_path)
        resumed = session_of(experiment)
        load_checkpoint(resumed, tmp_path)
        assert resumed.precision == chosen and resumed.probe == first.probe


def test_the_figures_are_in_the_runs_environment(tmp_path: Path) -> None:
    experiment = automatic(tmp_path)
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    session = session_of(experiment)
    run(session, folder, after_epoch=lambda metrics, session: None, final=False)
    noted = json.loads((folder.path / "environment.json").read_text())["precision"]
    assert Probe(**noted) == session.probe


def test_without_a_compiler_it_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"train\.compile = true: needs the C\+\+ compiler no-such-compiler"):
        session_of(digits(tmp_path, train=SHORT | {"compile": True}))


def test_graphs_need_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.compile = cuda_graphs: needs a CUDA device"):
        session_of(digits(tmp_path, train=SHORT | {"compile": "cuda_graphs"}))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_student_learns_the_same(tmp_path: Path) -> None:
    found: list[Session] = []
    for compiles in (False, True):
        session = session_of(digits(tmp_path, train=SHORT | {"compile": compiles, "optimizer": {"lr": 0.01}}))
        fit(session, lambda metrics, session: session.history.append(metrics))
        found.append(session)
    eager, compiled = found
    assert compiled.history[-1]["train/loss"] == pytest.approx(eager.history[-1]["train/loss"], rel=1e-3)
    assert eager.distiller.state_dict().keys() == compiled.distiller.state_dict().keys()
    for name, value in eager.distiller.state_dict().items():
        torch.testing.assert_close(compiled.distiller.state_dict()[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_the_compiler_is_imported_only_for_it(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from raydistill.training.loop import fit\n"
        "from tests.conftest import digits\n"
        "from tests.training.sessions import session_of\n"
        "options = {'optimizer': {'name': 'lars'}, 'ema': {}, 'precision': 'fp16', 'clip': 1.0, 'accumulate': 2}\n"
        f"experiment = digits(pathlib.Path({str(tmp_path)!r}), train={SHORT!r} | options)\n"
        "fit(session_of(experiment), lambda metrics, session: None)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
