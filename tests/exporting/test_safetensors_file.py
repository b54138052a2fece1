"""Weights that bring their network with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import raydistill
from raydistill.errors import ConfigError, WeightsError
from raydistill.exporting.export import export_run
from raydistill.exporting.safetensors_file import load_exported
from tests.exporting.conftest import Exports
from tests.exporting.folders import make_trained_run


def rewritten(source: str, target: Path, **changes: Any) -> Path:
    with safe_open(source, framework="pt") as file:
        described = json.loads(file.metadata()["raydistill"])
    save_file(load_file(source), target, metadata={"raydistill": json.dumps({**described, **changes})})
    return target


def test_the_weights_keep_the_students_own_names(exported: Exports, run: Path) -> None:
    written, own = load_file(exported("safetensors")["path"]), load_file(run / "student.safetensors")
    assert written.keys() == own.keys()
    assert all(torch.equal(written[name], own[name]) for name in own)


def test_it_loads_frozen_and_in_evaluation_mode_from_file_or_folder(exported: Exports) -> None:
    found = exported("safetensors")
    images = torch.rand(3, 1, 8, 8)
    for place in (found["path"], found["folder"], Path(found["path"])):
        student = raydistill.load_exported(place)
        assert not student.training
        outputs = student(images)
        assert not outputs["logits"].requires_grad
        assert outputs["logits"].shape == (3, 10)
    assert student.description.image_shape == (1, 8, 8)


def test_an_embedding_of_the_users_choice_comes_back(tmp_path: Path) -> None:
    run = make_trained_run(tmp_path, steps=1, student={"model": "resnet8", "taps": {"embedding": "layer2"}})
    student = load_exported(export_run(run, "safetensors")["folder"])
    assert student(torch.rand(2, 1, 8, 8))["embedding"].shape == (2, 32)


def test_what_is_no_exported_student_is_said(exported: Exports, run: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no exported student at .*nowhere"):
        load_exported(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="holds weights alone; write one with raydistill export"):
        load_exported(run / "student.safetensors")
    broken = tmp_path / "student.safetensors"
    broken.write_bytes(Path(exported("safetensors")["path"]).read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot read"):
        load_exported(broken)
    with pytest.raises(WeightsError, match="its description is damaged"):
        load_exported(rewritten(exported("safetensors")["path"], tmp_path / "a.safetensors", num_classes="many"))
    with pytest.raises(WeightsError, match="does not fit the network"):
        load_exported(rewritten(exported("safetensors")["path"], tmp_path / "b.safetensors", model="resnet14"))
    with pytest.raises(ConfigError, match="unknown model"):
        load_exported(rewritten(exported("safetensors")["path"], tmp_path / "c.safetensors", model="resnet9"))


def test_a_file_cannot_have_code_imported(exported: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("from pathlib import Path\nPath('sprung').touch()\ndef build(): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = rewritten(exported("safetensors")["path"], tmp_path / "x.safetensors", model="trap:build")
    with pytest.raises(ConfigError, match="code of one's own"):
        load_exported(file)
    assert not Path("sprung").exists()
