"""A run becomes a file that others can run, or nothing at all."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from raydistill.cli import app
from raydistill.config import load_experiment
from raydistill.data.datasets import load_test
from raydistill.data.views import normalise
from raydistill.errors import ConfigError, DataError, RunError
from raydistill.exporting import deployed
from raydistill.exporting.export import export_run
from raydistill.exporting.formats import FORMATS
from raydistill.exporting.subject import read_run
from raydistill.models.weights import load_weights
from raydistill.models.zoo import build_model
from tests.exporting.conftest import Exports
from tests.exporting.folders import make_trained_run
from tests.reporting.folders import make_sweep


def outputs_of_the_students_own_weights(run: Path, pixels: Tensor) -> dict[str, Tensor]:
    data = load_test(load_experiment(run / "config.yaml").data)
    student = build_model("resnet8", 10, in_channels=1).eval()
    load_weights(student, run / "student.safetensors")
    with torch.no_grad():
        found: dict[str, Tensor] = student(normalise(pixels, data.mean, data.std))
    return found


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_computes_what_the_student_computes(exported: Exports, format: str) -> None:
    found = exported(format)
    assert 0.0 <= found["max_abs_diff"] <= 1e-4
    assert found["compared_images"] == 256
    assert Path(found["path"]).stat().st_size == found["bytes"]
    assert Path(found["card"]).parent == Path(found["folder"]) == Path(found["path"]).parent


@pytest.mark.parametrize("format", FORMATS)
def test_the_three_lines_of_the_card_run_as_they_stand(
    exported: Exports, run: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = exported(format)
    monkeypatch.chdir(found["folder"])
    block = re.search(r"```python\n(.*?)```", Path(found["card"]).read_text(), re.DOTALL)
    assert block is not None
    lines = block[1].strip().splitlines()
    assert len(lines) == 3
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    outputs = names["outputs"]
    by_name = outputs if isinstance(outputs, dict) else dict(zip(("logits", "embedding"), outputs, strict=True))
    wanted = outputs_of_the_students_own_weights(run, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    for name, value in wanted.items():
        np.testing.assert_allclose(np.asarray(by_name[name]), value.numpy(), atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_any_number_of_images_may_be_shown(exported: Exports, run: Path, format: str) -> None:
    predict = FORMATS[format].load(Path(exported(format)["path"]))
    pixels = load_test(load_experiment(run / "config.yaml").data).images
    for batch in (1, 2, 7, 64, 333):
        found, wanted = predict(pixels[:batch] / 255), outputs_of_the_students_own_weights(run, pixels[:batch])
        assert set(found) == {"logits", "embedding"}
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=1e-4, rtol=0)


def test_the_record_tells_what_was_compared(exported: Exports) -> None:
    record = json.loads((Path(exported("torch")["folder"]) / "export.json").read_text())
    assert (record["run"], record["format"], record["file"]) == ("digits", "torch", "student.pt2")
    assert max(record["differences"].values()) == record["max_abs_diff"]
    assert record["compared_on"] == "test images"


def test_the_command_ends_with_json(run: Path, tmp_path: Path) -> None:
    arguments = ["export", str(run), "--format", "safetensors", "--output", str(tmp_path / "out"), "--json"]
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["path"] == str(tmp_path / "out" / "student.safetensors")
    assert found["max_abs_diff"] <= 1e-4
    assert files_below(tmp_path) == {
        "out",
        *(f"out/{name}" for name in ("README.md", "export.json", FORMATS["safetensors"].file)),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("onx", None), r"--format onx: unknown; did you mean 'onnx'\? \(known: safetensors, onnx, torch\)"),
        (("onnx", "int4"), r"--quantise int4: unknown; did you mean 'int8'\?"),
        (("torch", "int8"), "--quantise int8: not with --format torch.*with onnx"),
        (("safetensors", "int8"), "--quantise int8: not with --format safetensors"),
    ],
)
def test_a_wrong_wish_is_refused_in_one_line(run: Path, tmp_path: Path, arguments: tuple[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        export_run(run, arguments[0], tmp_path / "out", quantised=arguments[1])
    assert "\n" not in str(raised.value)
    assert not files_below(tmp_path)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_package_that_is_missing_is_named_with_the_extra(
    run: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package} is not installed; pip install 'raydistill\[export\]'$"):
        export_run(run, "onnx", tmp_path / "out")
    assert not files_below(tmp_path)
    assert export_run(run, "safetensors", tmp_path / "out")["max_abs_diff"] <= 1e-4


def test_a_run_that_is_not_over_is_refused(run: Path, tmp_path: Path) -> None:
    half = shutil.copytree(run, tmp_path / "half")
    (half / "_SUCCESS").unlink()
    before = files_below(tmp_path)
    with pytest.raises(DataError, match="half: no finished run"):
        export_run(half, "safetensors", tmp_path / "out")
    with pytest.raises(DataError, match="nowhere: no finished run"):
        export_run(tmp_path / "nowhere", "safetensors")
    assert files_below(tmp_path) == before


def test_a_sweep_points_at_its_winner(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "sweep")
    before = files_below(tmp_path)
    with pytest.raises(DataError, match=r"a sweep, not a run; train its winner \(raydistill train .*sweep/best.yaml\)"):
        export_run(sweep, "onnx")
    assert files_below(tmp_path) == before


def test_nothing_is_left_behind_where_the_file_computes_something_else(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = deployed.Deployed.forward

    def wrong(self: deployed.Deployed, images: Tensor) -> dict[str, Tensor]:
        found = right(self, images)
        return {**found, "embedding": found["embedding"] + 1e-3}

    monkeypatch.setattr(deployed.Deployed, "forward", wrong)
    with pytest.raises(
        RunError, match=r"`embedding` differs from the student's by 0.001\d*, more than 0.0001; nothing"
    ):
        export_run(run, "torch", tmp_path / "deep" / "out")
    assert not files_below(tmp_path)


def test_a_network_that_cannot_be_written_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hopeless(self: deployed.Deployed, images: Tensor) -> dict[str, Tensor]:
        return {"logits": images.flatten(1), "embedding": images} if images.sum() > 0 else {}

    monkeypatch.setattr(deployed.Deployed, "forward", hopeless)
    with pytest.raises(RunError, match="the student cannot be exported as torch: ") as raised:
        export_run(run, "torch", tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not files_below(tmp_path)


def test_an_earlier_export_is_replaced_whole_or_not_at_all(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    export_run(run, "safetensors", folder)
    (folder / "older").touch()
    with monkeypatch.context() as patched:
        patched.setattr(deployed.Deployed, "forward", lambda self, images: {"logits": images, "embedding": images})
        with pytest.raises(RunError):
            export_run(run, "safetensors", folder)
    assert files_below(folder) == {"README.md", "export.json", "older", "student.safetensors"}
    export_run(run, "safetensors", folder)
    assert files_below(tmp_path) == {"out", "out/README.md", "out/export.json", "out/student.safetensors"}


def test_a_folder_with_other_things_is_never_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="mine: holds other files than an export"):
        export_run(run, "safetensors", tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"thesis.tex: is a file; name a folder"):
        export_run(run, "safetensors", tmp_path / "mine" / "thesis.tex")
    export_run(run, "safetensors", tmp_path / "out")
    with pytest.raises(ConfigError, match="out: holds the export of digits as safetensors, not of digits as torch"):
        export_run(run, "torch", tmp_path / "out")
    assert files_below(tmp_path / "mine") == {"thesis.tex"}


def test_training_images_stand_in_for_test_images_that_are_gone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(data: object) -> None:
        raise DataError("the disk is gone")

    monkeypatch.setattr("raydistill.exporting.subject.load_test", gone)
    assert len(read_run(run).images) == 240
    found = export_run(run, "safetensors", tmp_path / "out")
    assert found["compared_images"] == 240
    assert "240 training images" in Path(found["card"]).read_text()
    monkeypatch.setattr("raydistill.exporting.subject.load_train", gone)
    with pytest.raises(DataError, match="no images at hand to compare the exported student on: the disk is gone"):
        export_run(run, "safetensors", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vgg8", "mobilenet_v2_half", "shufflenet_v1", "wrn_16_1"])
def test_families_of_networks_become_onnx_and_int8(tmp_path: Path, model: str) -> None:
    run = make_trained_run(tmp_path, steps=20, student={"model": model})
    found = export_run(run, "onnx", quantised="int8")
    assert found["max_abs_diff"] <= 1e-4
    assert found["quantised"]["bytes"] < 0.6 * found["quantised"]["bytes_float"]
    assert found["quantised"]["embedding_cosine"] > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_an_embedding_of_the_users_choice_is_exported(tmp_path: Path, format: str) -> None:
    run = make_trained_run(tmp_path, steps=1, student={"model": "resnet8", "taps": {"embedding": "layer2"}})
    found = export_run(run, format)
    predicted = FORMATS[format].load(Path(found["path"]))(torch.rand(3, 1, 8, 8))
    assert predicted["embedding"].shape == (3, 32)
