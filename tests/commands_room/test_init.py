"""``raydistill init``: what it writes, refuses and asks."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from raydistill.cli import app
from raydistill.config import load_experiment
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.starting.draft import goals
from raydistill.teachers.cache.build import build_cache
from raydistill.training.teacher import train_teacher
from raydistill.training.trainer import train


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str, answers: str = "") -> Any:
    return CliRunner().invoke(app, ["init", *arguments], input=answers)


@pytest.fixture(scope="module")
def teacher_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained resnet14 for colour images of two classes."""
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    save_weights(build_model("resnet14", 2), path)
    return path


@pytest.mark.parametrize("goal", goals())
def test_the_file_for_every_goal_loads(goal: str) -> None:
    ended = invoke("first.yaml", "--goal", goal, "--root", "photos", "--json") if goal != "digits" else None
    ended = ended or invoke("first.yaml", "--goal", goal, "--json")
    assert ended.exit_code == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    answer = json.loads(line)
    assert answer["experiment"] == "first.yaml"
    assert answer["next"][-1].startswith("raydistill report ")
    assert load_experiment("first.yaml").name == "first"


def test_lines_for_people_say_what_is_missing_and_what_comes_next() -> None:
    ended = invoke("--goal", "compress", "--root", "photos")
    assert ended.stdout.splitlines()[:6] == [
        "experiment: experiment.yaml",
        "missing: data.root: no folder photos yet; put the images there",
        "missing: teacher.weights: no file runs/experiment-teacher/model.safetensors yet; the first command below "
        "trains them",
        "next:",
        "  raydistill teacher experiment.yaml",
        "  raydistill cache plan experiment.yaml",
    ]
    assert ended.stdout.splitlines()[-1].startswith("(judge trains eight more students")
    assert "judge trains" not in invoke("--goal", "unlabelled", "--force").stdout


def test_a_folder_that_is_not_split_into_train_and_test_is_told() -> None:
    Path("photos/cat").mkdir(parents=True)
    said = (
        "missing: data.root: no folder train in photos yet; images lie in train and test, those with labels in a folder"
    )
    assert said in invoke("--goal", "compress", "--root", "photos").stdout
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(exist_ok=True)
        Path("photos", name, "1.jpg").touch()
    said = "move its folders (cat, dog) into photos/train, then about a fifth of each one's images into photos/test/cat"
    assert said in invoke("--goal", "compress", "--root", "photos", "--force").stdout
    Path("photos/train").mkdir()
    said = "no folder of a class in photos/train yet, such as photos/train/cat; for images without labels say --goal"
    assert said in invoke("--goal", "compress", "--root", "photos", "--force").stdout
    assert "data.root" not in invoke("--goal", "unlabelled", "--root", "photos", "--force").stdout
    Path("photos/train/cat").mkdir()
    assert "data.root" not in invoke("--goal", "compress", "--root", "photos", "--force").stdout


def test_a_file_that_is_there_is_left_as_it_is() -> None:
    Path("mine.yaml").write_text("name: mine\n")
    ended = invoke("mine.yaml", "--goal", "digits")
    assert ended.exit_code == 2
    assert ended.stderr == "raydistill: mine.yaml: is there already; name another file, or write over it with --force\n"
    assert Path("mine.yaml").read_text() == "name: mine\n"
    assert invoke("mine.yaml", "--goal", "digits", "--force").exit_code == 0
    assert load_experiment("mine.yaml").data.name == "digits"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nobody is there to be asked"),
        (["--goal", "compress"], "--root: the data set 'image_folder' needs the folder"),
        (["--goal", "digitz"], "did you mean 'digits'"),
        (["--goal", "digits", "--student", "resnet9"], "did you mean 'resnet"),
        (["--goal", "digits", "--methud", "kd"], "no option '--methud'; did you mean '--method'?"),
        (["bad name.yaml", "--goal", "digits"], "name = 'bad name': must begin with"),
        (["photos", "--goal", "compress"], "photos: names no experiment file, which ends in .yaml; a folder of images"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(arguments: list[str], said: str, tmp_path: Path) -> None:
    ended = invoke(*arguments)
    assert ended.exit_code == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("raydistill: ")
    assert said in line
    assert not list(tmp_path.iterdir())


def test_options_say_all_that_would_be_asked() -> None:
    options = "--data cifar10 --root data --teacher resnet32x4 --weights t.pt --student resnet8x4 --method crd --tune"
    assert invoke("x.yaml", *options.split()).exit_code == 0
    experiment = load_experiment("x.yaml")
    assert experiment.teacher is not None
    assert experiment.teacher.weights == "t.pt"
    found = experiment.data.name, experiment.teacher.model, experiment.student.model
    assert found == ("cifar10", "resnet32x4", "resnet8x4")
    assert experiment.tune is not None
    assert "methods.crd.negatives" in experiment.tune.space


def test_whoever_sits_at_a_terminal_is_asked_again_until_the_answer_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.commands.init._somebody_is_there", lambda: True)
    Path("photos").mkdir()
    Path("own.pt").touch()
    answers = ["compres", "compress", "fotos", "photos", "", "resnet9", "resnet14", "dkd", "owm.pt", "own.pt"]
    ended = invoke("asked.yaml", answers="\n".join(answers) + "\n")
    assert ended.exit_code == 0, ended.stderr
    assert "did you mean 'compress'" in ended.stderr
    assert "unknown model 'resnet9'" in ended.stderr
    assert f"fotos: is not there; paths count from {Path.cwd()}" in ended.stderr
    assert "owm.pt: is not there" in ended.stderr
    assert "What do you want" not in ended.stdout
    experiment = load_experiment("asked.yaml")
    assert experiment.teacher is not None
    assert (experiment.data.root, experiment.teacher.model, experiment.teacher.weights) == (
        "photos",
        "torchvision/resnet18",
        "own.pt",
    )
    assert (experiment.student.model, [*experiment.methods]) == ("resnet14", ["ce", "dkd"])


def test_a_real_terminal_is_asked() -> None:
    above, below = pty.openpty()
    os.write(above, b"digits\n\n\n\n\n")
    ended = subprocess.run(
        [sys.executable, "-m", "raydistill.cli", "init", "typed.yaml", "--json"],
        stdin=below,
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(above)
    os.close(below)
    assert ended.returncode == 0, ended.stderr
    assert "What do you want" in ended.stderr
    assert json.loads(ended.stdout)["experiment"] == "typed.yaml"
    assert load_experiment("typed.yaml").student.model == "resnet8"


@pytest.mark.slow
def test_what_is_written_for_digits_trains(ray_session: None) -> None:
    """The commands that it names, by one epoch each."""
    assert invoke("first.yaml", "--goal", "digits").exit_code == 0
    experiment = load_experiment("first.yaml", ["train.epochs=1", "teacher.train.epochs=1", "data.subset=240"])
    assert Path(train_teacher(experiment)["weights"]) == Path("runs/first-teacher/model.safetensors")
    assert build_cache(experiment).computed_rows == 240
    assert train(experiment)["epochs"] == 1
    assert Path("runs/first/_SUCCESS").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("goal", "classes"), [("compress", ("cat", "dog")), ("unlabelled", ("",))])
def test_what_is_written_for_ones_own_images_trains(
    goal: str, classes: tuple[str, ...], teacher_of_two: Path, ray_session: None
) -> None:
    colours = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            folder = Path("photos", split, name)
            folder.mkdir(parents=True)
            for number in range(20):
                Image.fromarray(colours.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{number}.png")
    networks = ["--teacher", "resnet14", "--student", "resnet8", "--weights", str(teacher_of_two)]
    ended = invoke("photos.yaml", "--goal", goal, "--root", "photos", *networks)
    assert ended.exit_code == 0, ended.stderr
    assert "missing" not in ended.stdout
    few = ["train.epochs=1", "train.batch_size=8", "data.image_size=16", "data.validation=0.6"]
    experiment = load_experiment("photos.yaml", few if goal == "compress" else [*few, "data.num_classes=2"])
    build_cache(experiment)
    result = train(experiment)
    assert result["epochs"] == 1
