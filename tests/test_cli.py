"""The command as a user runs it: exit codes, one message on stderr, no traceback, nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raydistill.cli import app
from raydistill.config import load_experiment
from raydistill.errors import InputError
from raydistill.teachers.cache.build import build_cache
from raydistill.training.trainer import train
from tests.conftest import digits
from tests.reporting.folders import make_run

GOOD = "name: x\ndata: {name: digits}\nstudent: {model: resnet8}\nmethods: {ce: {}}\n"


def raydistill(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raydistill.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


WRONG = [
    (["train", "absent.yaml"], "no such experiment file"),
    (["train", "good.yaml", "data.name=fashion_mnist", "data.root=nowhere"], "nowhere"),
    (["list", "method"], "did you mean 'methods'"),
    (["trian"], "did you mean 'train'"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_wrong_input_ends_a_command_with_one_message_and_code_2(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    ended = raydistill(*arguments, folder=tmp_path)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert written(tmp_path) == {"good.yaml"}


def written(folder: Path) -> set[str]:
    """Names of all files and folders."""
    return {path.name for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "good.yaml", "train.epochz=1"], "did you mean 'epochs'"),
        (["tune", "good.yaml"], "tune: required"),
        (["tune", "good.yaml", "tune.space={train.lr: {uniform: [0, 1]}}"], "train.lr: unknown key"),
        (["cache", "build", "good.yaml"], "teacher"),
        (["teacher", "good.yaml"], "teacher: required"),
        (["train", "good.yaml", "student.weights=none.safetensors"], "none.safetensors"),
        (["train", "good.yaml", "--resume"], "no run to resume"),
        (["compare", "nowhere"], "nowhere: not a run folder"),
        (["compare", "nowhere", "--layout", "crd-tabel3"], "did you mean 'crd-table3'"),
        (["compare", "nowhere", "--format", "latx"], "did you mean 'latex'"),
        (["compare", "nowhere", "-o", "table.docx"], "tells no format"),
        (["eval", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["export", "nowhere", "--format", "torch"], "nowhere: no finished run"),
        (["export", "nowhere", "--format", "onx"], "did you mean 'onnx'"),
        (["export", "nowhere"], "--format"),
        (["pull", "nowhere/run"], "nowhere/run: holds no copy of a run"),
        (["finetune", "nowhere", "data.name=digits"], "nowhere: no finished run"),
        (["finetune", "nowhere"], "name the new data"),
        (["cache", "verify", "nowhere"], "nowhere"),
        (["cache", "rm", "."], "not a teacher cache"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None, arguments: list[str], said: str
) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2 and isinstance(ended.exception, SystemExit)
    assert said in ended.stderr
    assert written(tmp_path) == {"good.yaml"}


TRUNCATED = ["data.name=fashion_mnist", "data.root=images"], "train-images-idx3-ubyte"
UNFIT = [
    (["teacher.model=resnet20"], "teacher.safetensors"),
    (["data.subset=300"], "differs in data.count (there 240, wanted 300)"),
    (["cache.views=1"], "differs in augmentation"),
    TRUNCATED,
]


@pytest.fixture(scope="module")
def experiment_folder(tmp_path_factory: pytest.TempPathFactory, teacher_weights: Path, ray_session: None) -> Path:
    """A folder with an experiment, its teacher and its cache, and with images of which there are fewer than told."""
    folder = tmp_path_factory.mktemp("unfit")
    shutil.copy(teacher_weights, folder / "teacher.safetensors")
    (folder / "images").mkdir()
    (folder / "images" / "train-images-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28])
    )
    (folder / "images" / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(9))
    teacher = {"model": "resnet14", "weights": str(folder / "teacher.safetensors")}
    experiment = digits(folder, teacher=teacher, methods={"kd": {}})
    build_cache(experiment)
    (folder / "x.yaml").write_text(experiment.to_yaml())
    return folder


@pytest.mark.parametrize(("arguments", "said"), UNFIT)
def test_weights_caches_and_data_that_do_not_fit(
    experiment_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    """A checkpoint of another network, a cache of other data, a truncated file: told before a worker starts."""
    monkeypatch.chdir(experiment_folder)
    with pytest.raises(InputError) as caught:
        train(load_experiment("x.yaml", arguments))
    assert said in str(caught.value)
    assert not Path("runs/digits").exists()


def test_data_that_do_not_fit_end_the_command(experiment_folder: Path) -> None:
    arguments, said = TRUNCATED
    ended = raydistill("train", "x.yaml", *arguments, folder=experiment_folder)
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (experiment_folder / "runs" / "digits").exists()


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom raydistill.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\nassert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["methods", "models", "datasets", "protocols", "layouts"])
def test_list_ends_with_json(tmp_path: Path, kind: str) -> None:
    ended = raydistill("list", kind, "--json", folder=tmp_path)
    assert ended.returncode == 0
    assert len(json.loads(ended.stdout.splitlines()[-1])["names"]) >= 5


def test_compare_writes_a_papers_table_and_ends_with_json(tmp_path: Path) -> None:
    for seed, top1 in enumerate([70.0, 71.0]):
        make_run(tmp_path / f"kd-{seed}", top1, ("ce", "kd"), seed=seed)
    arguments = ["kd-0", "kd-1", "--layout", "crd-table1", "-o", "tables/table.md", "--json"]
    ended = raydistill("compare", *arguments, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    values = json.loads(ended.stdout.splitlines()[-1])
    (ours,) = [cell for cell in values["table"] if cell["n"]]
    assert (values["layout"], ours["row"], ours["mean"]) == ("crd-table1", "KD", 70.5)
    assert "70.50 ± 0.71 (2)" in (tmp_path / "tables" / "table.md").read_text()


def test_list_tells_all_about_a_method(tmp_path: Path) -> None:
    ended = raydistill("list", "methods", "kd", "--json", folder=tmp_path)
    assert "softmax" in ended.stdout
    assert json.loads(ended.stdout.splitlines()[-1])["teacher"] == "logits"
    unknown = raydistill("list", "methods", "crdd", folder=tmp_path)
    assert (unknown.returncode, "did you mean 'crd'" in unknown.stderr) == (2, True)


def test_a_cache_is_planned_listed_verified_exported_and_removed(
    tmp_path: Path, teacher_weights: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = {"model": "resnet14", "weights": str(teacher_weights)}
    experiment = digits(tmp_path, teacher=teacher, methods={"kd": {}})
    path = build_cache(experiment).path
    (tmp_path / "x.yaml").write_text(experiment.to_yaml())

    def answer(*arguments: str, code: int = 0) -> dict[str, Any]:
        ended = CliRunner().invoke(app, ["cache", *arguments, "--json"])
        assert ended.exit_code == code, ended.stderr
        found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return found

    assert {"bytes", "seconds", "break_even_epochs", "uncacheable"} <= set(answer("plan", "x.yaml"))
    assert [found["path"] for found in answer("ls", "cache")["caches"]] == [str(Path(path).relative_to(tmp_path))]
    assert answer("verify", path, "--full") == {"ok": True, "problems": []}
    assert Path(answer("export", path, "out.npz")["path"]).suffix == ".npz"
    shard = next(Path(path).glob("shards/*.parquet"))
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    assert shard.name in answer("verify", path, "--full", code=1)["problems"][0]
    answer("rm", path)
    assert not Path(path).exists()


def test_a_ray_that_is_lost_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import RaySystemError
    from typer.testing import CliRunner

    from raydistill import cli

    def examine() -> None:
        raise RaySystemError("the raylet died")

    monkeypatch.setattr("raydistill.doctor.examine", examine)
    ended = CliRunner().invoke(cli.app, ["doctor"])
    assert ended.exit_code == 1
    (said,) = ended.stderr.splitlines()
    assert said.startswith("raydistill: Ray was lost: ")
    assert "the raylet died" in said
