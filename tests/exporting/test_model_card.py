"""What the card tells, and what it leaves out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from raydistill.errors import DataError
from raydistill.exporting.export import export_run
from tests.exporting.conftest import Exports
from tests.exporting.folders import make_trained_run


def card_of(run: Path, tmp_path: Path) -> str:
    return Path(export_run(run, "safetensors", tmp_path / "card")["card"]).read_text()


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distilled")
    (folder / "big").mkdir()
    (folder / "big" / "result.json").write_text(json.dumps({"kind": "teacher", "top1": 96.125}))
    teacher = {"model": "resnet14", "weights": str(folder / "big" / "model.safetensors"), "source": "live"}
    methods = {"ce": {"weight": 0.5}, "again": {"name": "kd", "weight": 2.0, "temperature": 3.0}}
    return make_trained_run(folder, teacher=teacher, methods=methods, result={"warnings": ["embeddings | collapse"]})


def test_it_tells_where_the_student_comes_from(distilled: Path, tmp_path: Path) -> None:
    card = card_of(distilled, tmp_path)
    assert card.startswith("# digits\n\n`resnet8` (")
    assert "distilled from `resnet14` with raydistill" in card
    assert "| `resnet14` | 96.12, on those of its own training |" in card
    assert re.search(r"\| ce \| 0.5 \| ", card)
    assert re.search(r"\| again \(kd\) \| 2 \| temperature 3", card)
    assert "| Trained on | 192 images |" in card
    assert "| Chosen on (validation) | 48 images |" in card
    assert "| Data set | `digits`, a subset of 240 images |" in card
    assert "- top-1 on the test images (%): 87.50" in card
    assert "| Training time (s) | 3.25 |" in card


def test_energy_is_told_where_it_is_known(distilled: Path, tmp_path: Path) -> None:
    assert "Energy" not in card_of(distilled, tmp_path / "unknown")
    result = json.loads((distilled / "result.json").read_text())
    run = shutil.copytree(distilled, tmp_path / "run")
    (run / "result.json").write_text(json.dumps(result | {"energy_j": 1250.5}))
    assert "| Energy (J) | 1,250.50 |" in card_of(run, tmp_path / "known")


def test_it_is_honest_about_limits(distilled: Path, tmp_path: Path) -> None:
    card = card_of(distilled, tmp_path)
    assert "images of `digits` alone" in card
    assert "One run with seed 0" in card
    assert "after the last epoch" in card
    assert "The training warned: embeddings / collapse" in card
    assert "Licence\n\nTo be filled in" in card


def test_no_path_of_the_machine_is_in_it(distilled: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "card").rglob("*.*") if card_of(distilled, tmp_path) else ():
        assert str(distilled.parent).encode() not in file.read_bytes()
        assert str(tmp_path).encode() not in file.read_bytes()


def test_a_report_card_becomes_a_table(distilled: Path, tmp_path: Path) -> None:
    run = shutil.copytree(distilled, tmp_path / "measured")
    measured = {"student": {"top1": 87.5, "parameters": 77850}, "teacher": {"top1": 97.0, "knn": 96.0}}
    (run / "card.json").write_text(json.dumps(measured))
    card = card_of(run, tmp_path)
    rows = ["| | student | teacher |", "| --- | --- | --- |", "| Top-1 (%) | 87.50 | 97 |", "| k-NN (%) | - | 96 |"]
    assert "\n".join(rows) + "\n| Parameters | 77,850 | - |\n" in card
    assert "| `resnet14` | 97.00 |" in card  # measured beside the student, rather than what its own run says


def test_what_int8_costs_is_in_it(exported: Exports) -> None:
    card, found = Path(exported("onnx")["card"]).read_text(), exported("onnx")["quantised"]
    assert f"| bytes | {found['bytes_float']:,} | {found['bytes']:,} |" in card
    assert f"| top-1 (%) | {found['top1_float']:.2f} | {found['top1']:.2f} |" in card
    assert "Quantised" not in Path(exported("torch")["card"]).read_text()


def test_a_teacher_is_told_as_one(tmp_path: Path) -> None:
    run = make_trained_run(tmp_path, steps=1, result={"kind": "teacher"})
    (run / "student.safetensors").rename(run / "model.safetensors")
    card = card_of(run, tmp_path)
    assert "trained from labels with raydistill" in card
    assert "## Teacher" not in card


def test_every_table_has_rows_of_one_width(exported: Exports) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", Path(exported("onnx")["card"]).read_text(), re.MULTILINE):
        lines = block.splitlines()
        assert len(lines) > 2
        assert len({line.count("|") for line in lines}) == 1


def test_a_damaged_result_is_one_line(run: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result\.json: cannot be read"):
        export_run(damaged, "safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
