"""From modules and arrays to a student, through cache, training and sweep as they are; and what is refused before."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import raydistill
from raydistill.api.outcome import Distilled
from raydistill.config import load_experiment
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train
from raydistill.errors import ConfigError, DataError, RunError, WeightsError
from tests.api.networks import small

METHODS = {"ce": {}, "kd": {"temperature": 2.0}}
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 48, "validation": 0.2, "progress": False}


@dataclass(frozen=True)
class Digits:
    """Images uint8 [N, 1, 8, 8] and labels."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Digits:
    config = DataConfig(name="digits", subset=240)
    train, test = load_train(config), load_test(config)
    assert train.labels is not None and test.labels is not None
    return Digits((train.images, train.labels), (test.images[:60], test.labels[:60]))


class Scene:
    """A notebook: a folder, networks, and what was distilled in it."""

    def __init__(self, folder: Path, digits: Digits) -> None:
        self.folder, self.digits = folder, digits
        self.teacher = small(width=8, seed=1).eval()
        self.student = small(width=4, seed=2)
        self.student.body[1].eval()
        self.student.fc.bias.requires_grad_(False)
        self.before = copy.deepcopy((self.teacher, self.student))
        self.result = self.distill(METHODS, test=digits.test)

    def distill(self, methods: Any, dataset: Any = None, **options: Any) -> Distilled:
        given = {**SHORT, "output": self.folder / "runs", "cache": self.folder / "cache", **options}
        teacher, student = given.pop("teacher", self.teacher), given.pop("student", self.student)
        return raydistill.distill(teacher, student, self.digits.train if dataset is None else dataset, methods, **given)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, digits: Digits, ray_session: None) -> Scene:
    return Scene(tmp_path_factory.mktemp("notebook"), digits)


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(value, others[key]) for key, value in mine.items())


def test_the_student_comes_back_trained_as_the_class_that_was_given(scene: Scene) -> None:
    student = scene.result.student
    assert type(student) is type(scene.student)
    assert not student.training and not same(student, scene.student)
    images, labels = scene.digits.test
    with torch.no_grad():
        found = student(images.float() / 255).argmax(dim=1)
    assert scene.result.top1 == pytest.approx(100 * float((found == labels).float().mean()))
    assert torch.equal(student.fc.bias, scene.student.fc.bias)  # it was frozen when it was given


def test_what_was_given_stays_as_it_was(scene: Scene) -> None:
    for now, before in zip((scene.teacher, scene.student), scene.before, strict=True):
        assert same(now, before)
        assert [part.training for part in now.modules()] == [part.training for part in before.modules()]
        assert [value.requires_grad for value in now.parameters()] == [
            value.requires_grad for value in before.parameters()
        ]


def test_the_cache_holds_what_the_teacher_gives_for_the_images(scene: Scene) -> None:
    built = scene.result.cache
    assert built is not None and (built.computed_rows, built.forwards) == (240, 240)
    images = scene.digits.train[0]
    rows = raydistill.TeacherCache.open(built.path).read(np.arange(240))
    with torch.no_grad():
        torch.testing.assert_close(rows["logits"], scene.teacher(images.float() / 255), rtol=2e-3, atol=2e-3)


def test_the_result_tells_of_the_run(scene: Scene, tmp_path: Path) -> None:
    result = scene.result
    assert list(result.history["epoch"]) == [1, 2]
    assert {"train/loss", "train/ce", "train/kd", "val/top1", "seconds"} <= set(result.history.columns)
    card = result.card(["top1", "cost"])
    assert list(card.index) == ["student", "teacher"]
    assert card.loc["student", "top1"] == pytest.approx(result.top1)
    assert card.loc["student", "parameters"] == sum(value.numel() for value in scene.student.parameters())
    figure = result.plot()
    assert isinstance(figure, Figure)
    losses, validation = figure.axes
    assert [line.get_label() for line in losses.lines] == ["loss", "ce", "kd"]
    assert list(validation.lines[0].get_ydata()) == list(result.history["val/top1"])
    assert "distilled" in result.report(tmp_path / "page.html").read_text()
    assert (result.trials, result.sweep) == (None, None)
    assert repr(result) == (
        f"Distilled(Small, top1={result.top1:.4g}, val_top1={result.values['val_top1']:.4g}, {result.run})"
    )


def test_the_same_again_computes_no_row_and_gives_the_same_weights(scene: Scene) -> None:
    again = scene.distill(METHODS, list(zip(*scene.digits.train, strict=True)), test=scene.digits.test, name="again")
    assert again.cache is not None and (again.cache.computed_rows, again.cache.reused_rows) == (0, 240)
    assert (again.cache.path, again.values["teacher_forwards"]) == (scene.result.cache.path, 0)
    assert same(again.student, scene.result.student)


def test_images_alone_do_for_a_method_without_labels_and_a_new_teacher_gets_a_cache_of_its_own(scene: Scene) -> None:
    other = small(width=8, seed=9).eval()
    result = scene.distill({"compress": {"queue": 64}}, scene.digits.train[0], teacher=other, name="alone", epochs=1)
    assert result.top1 is None and result.cache is not None
    assert result.cache.path != scene.result.cache.path and result.cache.computed_rows == 240
    assert load_experiment(result.run / "config.yaml").data.num_classes == 10
    assert not same(result.student, scene.student)
    with pytest.raises(DataError, match=r"test\*\.parquet"):
        result.card()


def test_a_finished_run_is_given_back_but_not_for_another_student(scene: Scene) -> None:
    again = scene.distill(METHODS, test=scene.digits.test, resume=True)
    assert (again.run, again.top1) == (scene.result.run, scene.result.top1)
    assert same(again.student, scene.result.student)
    with pytest.raises(ConfigError, match=r"began, but student\.weights changed; undo that"):
        scene.distill(METHODS, test=scene.digits.test, resume=True, student=small(width=4, seed=3))


@pytest.mark.slow
def test_another_process_is_told_how_to_measure_the_run(scene: Scene) -> None:
    command = [sys.executable, "-m", "raydistill.cli", "eval", str(scene.result.run)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and len(ended.stderr.strip().splitlines()) == 1
    assert "another process handed to raydistill.distill" in ended.stderr and "resume=True" in ended.stderr


class Elsewhere:
    """Distils on few images into a folder, in which nothing may be left but what was handed over."""

    def __init__(self, folder: Path, digits: Digits) -> None:
        self.folder, self.images, self.labels = folder, digits.train[0][:40], digits.train[1][:40]

    def __call__(self, teacher: Any, student: Any, methods: Any = "kd", dataset: Any = None, **options: Any) -> None:
        data = (self.images, self.labels) if dataset is None else dataset
        given = {**SHORT, "output": self.folder / "runs", "cache": self.folder / "cache", **options}
        raydistill.distill(teacher, student, data, methods, **given)


@pytest.fixture
def elsewhere(tmp_path: Path, digits: Digits) -> Any:
    return Elsewhere(tmp_path, digits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "kdd"}, "distill: methods.kdd: unknown method 'kdd'; did you mean 'kd'"),
        ({"methods": ["ce", "crdd"]}, "methods.crdd: .*; did you mean 'crd'"),
        ({"methods": {"kd": {"temprature": 3}}}, "distill: methods.kd.temprature: .*did you mean 'temperature'"),
        ({"methods": 3}, "methods = 3: a name, several, or label"),
        ({"epochs": 0}, "distill: train.epochs = 0"),
        ({"settings": {"train.optimiser.lr": 0.1}}, "distill: train.optimiser: .*did you mean 'optimizer'"),
        ({"settings": {"seed.x": 1}}, "settings: 'seed.x' is below seed = 0, which is no section"),
        ({"tune": {"methods.kd.temprature": {"uniform": [1, 2]}}}, "tune.space.methods.kd.temprature"),
        ({"augment": {"flop": 0.5}}, "distill: data.augment.flop: .*did you mean 'flip'"),
        ({"student": "resnet9"}, "unknown model 'resnet9'; did you mean"),
        ({"name": "a/b"}, "distill: name"),
        ({"teacher": None}, "methods.kd needs a teacher"),
    ],
    ids=str,
)
def test_mistakes_are_told_as_those_of_an_experiment_before_anything_is_written(
    elsewhere: Elsewhere, options: dict[str, Any], message: str
) -> None:
    given = {"teacher": small(), "student": small(), **options}
    with pytest.raises(ConfigError, match=message):
        elsewhere(**given)
    assert not list(elsewhere.folder.iterdir())


class Pair(nn.Linear):
    """Returns more than logits."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return images, images


def test_networks_that_do_not_fit_the_images_are_refused(elsewhere: Elsewhere) -> None:
    fitting = small()
    with pytest.raises(ConfigError, match=r"teacher: Small cannot take images \[1, 8, 8\]: Given groups=1"):
        elsewhere(small(channels=3), fitting)
    with pytest.raises(ConfigError, match="student: Sequential: the network returns tuple; it must return one tensor"):
        elsewhere(fitting, nn.Sequential(Pair(64, 10)))
    with pytest.raises(ConfigError, match="student: gives 7 logits, but there are labels up to 9"):
        elsewhere(fitting, small(classes=7), "ce")
    assert [path.name for path in (elsewhere.folder / "runs").iterdir()] == ["inputs"]


def test_labels_that_are_missing_and_weights_that_no_name_brings_are_told(elsewhere: Elsewhere) -> None:
    with pytest.raises(DataError, match=r"methods\.ce needs labels, but dataset gives images alone"):
        elsewhere(small(), small(), ["ce", "kd"], elsewhere.images)
    with pytest.raises(DataError, match=r"test: no image in it"):
        elsewhere(small(), small(), test=[])


@pytest.mark.usefixtures("ray_session")
def test_a_teacher_by_name_needs_weights(elsewhere: Elsewhere) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.weights: not given"):
        elsewhere("resnet14", small())
    with pytest.raises(WeightsError, match="no weights at nowhere"):
        elsewhere("resnet14", small(), settings={"teacher.weights": "nowhere.safetensors"})


@pytest.mark.slow
def test_a_sweep_gives_the_student_of_its_best_trial(scene: Scene) -> None:
    result = scene.distill(
        METHODS,
        test=scene.digits.test,
        tune={"methods.kd.temperature": {"uniform": [1.0, 8.0]}, "train.optimizer.lr": {"choice": [0.01, 0.1]}},
        settings={"tune.samples": 3, "tune.scheduler.name": "none"},
        name="sweep",
    )
    assert result.cache is not None and result.cache.computed_rows == 0
    trials = result.trials
    assert trials is not None and len(trials) == 4 and set(trials["status"]) == {"completed"}
    best = trials.loc[trials["val/top1"].idxmax()]
    assert result.run == scene.folder / "runs" / "sweep" / "trials" / result.values["best_trial"]
    assert result.history["val/top1"].iloc[-1] == best["val/top1"] == result.values["best_metric"]
    images, labels = scene.digits.test
    with torch.no_grad():
        found = result.student(images.float() / 255).argmax(dim=1)
    assert result.top1 == pytest.approx(100 * float((found == labels).float().mean()))
    assert "4 trials" in repr(result) and type(result.student) is type(scene.student)
    assert result.card(["top1"]).loc["student", "top1"] == pytest.approx(result.top1)


@pytest.mark.slow
def test_named_networks_taps_and_a_live_teacher_on_colour_images(scene: Scene) -> None:
    images = np.random.default_rng(0).integers(0, 256, (96, 16, 16, 3), dtype=np.uint8)
    teacher = small(width=8, channels=3, classes=5)
    result = scene.distill(
        {"at": {"stages": [1], "teacher_stages": [0]}, "kd": {}},
        (images, np.arange(96) % 5),
        teacher=teacher,
        student="resnet8",
        augment={"flip": 0.5},
        mean=(0.5, 0.4, 0.3),
        std=0.2,
        name="named",
        settings={"teacher.taps": {"features/0": "body"}, "teacher.source": "live", "train.optimizer.name": "adamw"},
    )
    assert result.cache is None and result.values["teacher_forwards"] > 0
    assert result.student(torch.zeros(2, 3, 16, 16))["logits"].shape == (2, 5)


@pytest.mark.slow
def test_a_run_whose_workers_die_of_the_network_says_why(scene: Scene) -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                raise ValueError("cannot be trained")
            logits: Tensor = self.fc(images.flatten(1))
            return logits

    with pytest.raises(RunError, match="cannot be trained"):
        scene.distill(METHODS, student=Fragile(), name="fragile", settings={"scale.max_failures": 0})
