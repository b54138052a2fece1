"""Whether all nodes see a run's files: what is asked, who is blamed, and a Ray of several nodes that is asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raydistill.reachable import first_problem, look, read_by
from tests.conftest import digits, teaching
from tests.nodes import Nodes

WANTED = {"data.root": "/data/images", "teacher.weights": "/data/teacher.safetensors", "output": "/runs/.seen-1"}
HERE = {
    "/data/images": "a folder",
    "/data/teacher.safetensors": "a file of 9 bytes",
    "/runs/.seen-1": "a file of 0 bytes",
}


def problem(*answers: dict[str, str]) -> str | None:
    return first_problem(WANTED, HERE, {f"node{n}": seen for n, seen in enumerate(answers)}, ["output"])


def test_nodes_that_see_the_same_are_not_blamed() -> None:
    assert problem() is None
    assert problem(HERE, HERE) is None
    assert problem(HERE | {"/data/more": "a folder"}) is None


def test_what_the_driver_does_not_see_either_is_left_to_whoever_reads_it() -> None:
    here = {path: seen for path, seen in HERE.items() if path != "/data/images"}
    assert first_problem(WANTED, here, {"node0": here}, ["output"]) is None


@pytest.mark.parametrize("path", HERE)
def test_a_node_that_lacks_something_is_named_with_it_in_one_line(path: str) -> None:
    lacking = {other: seen for other, seen in HERE.items() if other != path}
    said = problem(HERE, lacking, HERE)
    assert said is not None
    key = next(key for key, wanted in WANTED.items() if wanted == path)
    shown = "/runs" if key == "output" else path
    assert said.startswith(f"node node1 cannot get work: {key} = {shown}: ")
    assert "\n" not in said
    more = problem({}, {}, {})
    assert more is not None
    assert "(and so do 2 more)" in more


def test_another_file_of_the_same_name_is_not_the_same() -> None:
    said = problem(HERE | {"/data/teacher.safetensors": "a file of 8 bytes"})
    assert said is not None
    assert "is a file of 8 bytes there, but a file of 9 bytes here" in said


def test_looking_tells_folders_files_and_nothing_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"123")
    there = [str(tmp_path), str(tmp_path / "file")]
    assert look([*there, str(tmp_path / "nothing")]) == dict(zip(there, ["a folder", "a file of 3 bytes"], strict=True))


def test_all_that_an_experiment_reads_is_asked_for(tmp_path: Path, teacher_weights: Path) -> None:
    teacher = teaching(teacher_weights)
    cached = digits(tmp_path, teacher=teacher, ensemble=[teacher], methods={"kd": {}}, student={"model": "resnet8"})
    weights = str(teacher_weights)
    assert read_by(cached) == {
        "teacher.weights": weights,
        "ensemble.0.weights": weights,
        "cache.root": str(tmp_path / "cache"),
    }
    assert "cache.root" not in read_by(cached.override({"cache.root": "s3://bucket/caches"}))
    data = {"name": "image_folder", "root": "/data/rgb", "modalities": {"teacher_root": "/data/depth"}}
    paired = digits(tmp_path, data=data, student={"model": "resnet8", "weights": "/w"})
    assert read_by(paired) == {
        "data.root": "/data/rgb",
        "data.modalities.teacher_root": "/data/depth",
        "student.weights": "/w",
    }


@pytest.mark.slow
def test_a_command_is_refused_where_a_node_sees_other_files(
    nodes: Nodes, tmp_path: Path, teacher_weights: Path
) -> None:
    """The nodes work in another folder than the command, so that a relative path leads them elsewhere."""
    shutil.copy(teacher_weights, tmp_path / "weights.safetensors")
    student = {"model": "resnet14", "weights": str(tmp_path / "weights.safetensors")}
    experiment = digits(tmp_path, student=student, train={"epochs": 1, "batch_size": 48}, scale={"use_gpu": False})
    (tmp_path / "digits.yaml").write_text(experiment.to_yaml())
    address = ["--address", nodes.environment["RAY_ADDRESS"]]

    def train(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raydistill.cli", "train", "digits.yaml", *address, *overrides],
            env={name: value for name, value in nodes.environment.items() if name != "RAY_ADDRESS"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    refused = train("student.weights=weights.safetensors", "name=refused")
    assert refused.returncode == 2, refused.stderr
    assert "(127.0.0.1, " in refused.stderr
    assert "student.weights = weights.safetensors: is not there" in refused.stderr
    assert len([line for line in refused.stderr.splitlines() if line.startswith("raydistill:")]) == 1
    assert not (tmp_path / "runs").exists()

    done = train()
    assert done.returncode == 0, done.stderr
    assert (experiment.folder / "_SUCCESS").exists()
