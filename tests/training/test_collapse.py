"""A run without labels says when its embeddings or prototypes collapse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill import display
from raydistill.training.assembly import assemble
from raydistill.training.loop import fit
from raydistill.training.material import prepare
from raydistill.training.run import result_of
from raydistill.training.run_folder import RunFolder
from raydistill.training.session import Session
from tests.conftest import digits

SWAV = {"swav": {"prototypes": 12, "hidden": 16, "dimension": 8, "local_crops": 0}}


def trained(folder: Path, *, collapsed: bool, **sections: Any) -> Session:
    session = assemble(digits(folder, **sections), prepare(digits(folder, **sections)), device=torch.device("cpu"))
    if collapsed:
        session.distiller.student.register_forward_hook(
            lambda module, given, outputs: {name: 0.0 * value + 1.0 for name, value in outputs.items()}
        )
    fit(session, lambda metrics, session: session.history.append(metrics))
    return session


def test_a_healthy_run(tmp_path: Path) -> None:
    session = trained(tmp_path, collapsed=False, methods=SWAV)
    assert session.history[-1]["val/rank"] > 4.0
    assert session.history[-1]["train/swav/entropy"] > 0.1
    assert result_of(session)["warnings"] == []


def test_a_collapsed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = trained(tmp_path, collapsed=True, methods=SWAV)
    assert session.history[-1]["val/rank"] == pytest.approx(1.0, abs=1e-3)
    warnings = result_of(session)["warnings"]
    assert len(warnings) == 2
    assert "epoch 1: the embeddings collapse" in warnings[1] + warnings[0]
    assert "swav collapses" in warnings[1] + warnings[0]

    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with display.training(session.experiment, 2) as watch:
        for epochs in (0, 1, 2, 2):
            folder.write_history(session.history[:epochs])
            watch(folder)
    shown = capsys.readouterr().err
    assert [shown.count(warning) for warning in warnings] == [1, 1]
    assert "rank 1.0" in shown


def test_labels_need_no_rank(tmp_path: Path) -> None:
    session = trained(tmp_path, collapsed=False, methods={"ce": {}}, train={"epochs": 1, "batch_size": 48})
    assert "val/rank" not in session.history[-1]
    assert "val/top1" in session.history[-1]
