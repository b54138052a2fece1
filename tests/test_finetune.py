"""From a finished student to one on other data, by one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raydistill.config import Experiment, load_experiment, parse_experiment
from raydistill.errors import ConfigError, DataError, InputError
from raydistill.evaluation.card import examine_run
from raydistill.exporting.export import export_run
from raydistill.finetune import described, finetune_run, from_scratch
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.reporting.page import write_report
from raydistill.training.run_folder import RunFolder
from raydistill.training.teacher import train_teacher
from raydistill.training.trainer import train
from tests.conftest import digits, teaching
from tests.data_room.files import write_folder, write_image

HEAD = {"fc.weight", "fc.bias"}
GREY = {"name": "synthetic", "synthetic_channels": 1, "synthetic_classes": 7, "synthetic_size": 60, "validation": 0.2}
DIGITS = ("data.name=digits", "data.subset=240", "data.validation=0.2")


def finished(folder: Path, name: str = "old", **sections: Any) -> Path:
    """The folder of a resnet8 that looks finished; ``sections`` replace those of ``digits``."""
    experiment = digits(folder, name=name, **({"data": GREY} | sections))
    run = experiment.folder
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(experiment.to_yaml())
    torch.manual_seed(5)
    network = build_model(experiment.student.model, 7, in_channels=experiment.data.channels)
    save_weights(network, run / "student.safetensors")
    (run / "_SUCCESS").touch()
    return run


def test_the_new_run_is_described_by_an_ordinary_experiment(tmp_path: Path) -> None:
    run = finished(
        tmp_path,
        seed=3,
        data=GREY | {"mean": [0.4], "std": [0.3], "augment": {"crop": 1}, "subset": 50, "split_seed": 4},
        teacher={"model": "resnet14", "weights": "teacher.safetensors"},
        methods={"compress": {"queue": 64}},
        train={"epochs": 7, "batch_size": 48, "agreement": ["cka"], "ema": {"decay": 0.9}},
        scale={"workers": 2},
        tune={"space": {"train.epochs": {"choice": [1, 2]}}},
    )
    found = described(run, ["data.name=digits", "train.epochs=9", "train.optimizer.lr=0.02"])
    assert (found.name, found.folder, found.seed) == ("old-on-digits", run.parent / "old-on-digits", 3)
    assert found.data == digits(tmp_path, data={"name": "digits", "mean": [0.4], "std": [0.3]}).data
    assert found.student.model_dump() == {
        "model": "resnet8",
        "weights": str(run / "student.safetensors"),
        "taps": {},
        "head": "fresh",
        "trains": "all",
    }
    assert (found.teacher, found.tune, found.weights) == (None, None, {"ce": 1.0})
    assert (found.train.epochs, found.train.optimizer.lr, found.scale.workers) == (9, 0.02, 2)
    assert found.train.model_dump(exclude_defaults=True) == {"epochs": 9, "optimizer": {"lr": 0.02}}
    (tmp_path / "again.yaml").write_text(found.to_yaml())
    assert load_experiment(tmp_path / "again.yaml") == found

    linear = described(run, ["data.name=digits", "seed=8", f"output={tmp_path}"], linear=True)
    assert (linear.folder, linear.student.trains, linear.seed) == (tmp_path / "old-on-digits-linear", "head", 8)
    control = from_scratch(linear)
    assert control.name == "old-on-digits-linear-scratch"
    assert control.student.model_dump(exclude_defaults=True) == {"model": "resnet8"}
    assert control.override({"name": linear.name, "student": linear.student.model_dump()}) == linear


FOLDER = {"name": "image_folder", "root": "old", "image_size": 48, "validation": 0.2}
LUMINANCE = {"modalities": {"student": "luminance", "teacher": "chrominance"}}


@pytest.mark.parametrize(
    ("old", "overrides", "kept"),
    [
        (FOLDER, ["data.name=image_folder", "data.root=new"], {"image_size": 48, "mean": (0.485, 0.456, 0.406)}),
        (FOLDER, ["data.name=image_folder", "data.root=new", "data.image_size=32"], {"image_size": 32}),
        (FOLDER | {"image_size": None}, ["data.name=image_folder", "data.root=new"], {"image_size": None}),
        (FOLDER, ["data.name=cifar10", "data.root=new"], {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}),
        (FOLDER, ["data.name=cifar10", "data.root=new", "data.mean=[0.5]", "data.std=[0.2]"], {"mean": (0.5,)}),
        (
            GREY | {"synthetic_channels": 3},
            ["data.name=image_folder", "data.root=new"],
            {"image_size": 32, "mean": (0.5,)},
        ),
        (
            FOLDER | LUMINANCE,
            ["data.name=parquet", "data.root=new"],
            {"mean": (0.5,), "std": (0.25,), "image_size": 48},
        ),
        (
            FOLDER | LUMINANCE,
            ["data.name=mnist", "data.root=new"],
            {"modalities": None, "mean": (0.5,), "std": (0.25,)},
        ),
        (GREY, ["data.name=cifar10", "data.root=new", "data.modalities.student=luminance"], {"mean": (0.5,)}),
    ],
)
def test_the_students_input_stays_what_it_is(
    tmp_path: Path, old: dict[str, Any], overrides: list[str], kept: dict[str, Any]
) -> None:
    data = described(finished(tmp_path, data=old), overrides).data
    assert {name: getattr(data, name) for name in kept} == kept
    assert data.channels == parse_experiment(digits(tmp_path, data=old).to_dict()).data.channels
    assert data.root == "new" and data.validation == 0.1


def test_a_modality_is_taken_along_to_colours(tmp_path: Path) -> None:
    data = described(finished(tmp_path, data=FOLDER | LUMINANCE), ["data.name=parquet", "data.root=new"]).data
    assert data.modalities is not None
    assert (data.modalities.student, data.modalities.teacher) == ("luminance", "rgb")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "name the new data, such as data.name="),
        (["data.subset=9", "train.epochs=2"], "name the new data, such as data.name="),
        (["data.name=[digits]"], "name the new data, such as data.name="),
        (["data.name=digit"], "unknown data set 'digit'; did you mean 'digits'"),
        (["data.name=image_folder"], "needs the folder that holds it"),
        (["data.name=digits", "data.image_size=9"], "does not take it"),
        (["data.name=cifar10", "data.root=x"], "sees images of 1 channels, those of 'cifar10' have 3; data.modalities"),
        (["data.name=digits", "train.epochz=2"], "did you mean 'epochs'"),
        (["data.name=digits", "student.model=vgg8"], "finetune takes data, train, seed"),
        (["data.name=digits", "methods.kd.weight=1"], "finetune takes data, train, seed"),
        (["data.name=digits", "train.agreement=[cka]"], "has no section 'teacher'"),
        (["data.name=digits", "name=old"], "own folder cannot be the new run's"),
        (["data.name=digits", "seed"], "an override reads key.path=value"),
        (["data.name=image_folder", "data.root=nowhere", "data.modalities.student=luminance"], "nowhere"),
    ],
)
def test_wrong_overrides_are_told_and_nothing_is_written(tmp_path: Path, overrides: list[str], said: str) -> None:
    run = finished(tmp_path)
    with pytest.raises(InputError) as caught:
        finetune_run(run, overrides)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert {path.name for path in run.parent.iterdir() if path.is_dir()} == {"old"}
    assert {path.name for path in run.iterdir()} == {"config.yaml", "student.safetensors", "_SUCCESS"}


def test_only_a_finished_run_has_a_student(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        finetune_run(tmp_path / "nowhere", DIGITS)
    run = finished(tmp_path)
    (run / "trials").mkdir()
    with pytest.raises(DataError, match=r"a sweep, not a run; train its winner .* and fine-tune that run"):
        finetune_run(run, DIGITS)
    (run / "trials").rmdir()
    (run / "_SUCCESS").unlink()
    with pytest.raises(DataError, match="no finished run"):
        finetune_run(run, DIGITS)


def test_unlabelled_images_are_refused(tmp_path: Path, ray_session: None) -> None:
    for number in range(20):
        write_image(tmp_path / "photos" / "train" / f"{number}.png", value=number)
    run = finished(tmp_path, data=GREY | {"synthetic_channels": 3})
    overrides = ["data.name=image_folder", f"data.root={tmp_path / 'photos'}", "data.num_classes=2"]
    with pytest.raises(DataError, match=r"methods.ce needs labels, but data set 'image_folder' has none"):
        finetune_run(run, overrides)
    assert [path.name for path in run.parent.iterdir() if path.is_dir()] == ["old"]


def test_features_stay_and_both_numbers_are_told(tmp_path: Path, ray_session: None) -> None:
    """Trained with workers; the number for frozen features is that of ``raydistill eval`` on the new run, too."""
    run = finished(tmp_path)
    result = finetune_run(run, [*DIGITS, "train.epochs=3"], linear=True, scratch=True)
    new = Path(result["run"])
    assert new == run.parent / "old-on-digits-linear" and result["from"] == str(run)
    assert result["scratch_run"] == str(run.parent / "old-on-digits-linear-scratch")
    assert result["epochs"] == 3 and RunFolder(new).succeeded and RunFolder(Path(result["scratch_run"])).succeeded
    before, after = load_file(run / "student.safetensors"), load_file(new / "student.safetensors")
    assert before.keys() == after.keys()
    assert {name for name, value in before.items() if not torch.equal(value, after[name])} == HEAD
    assert after["fc.weight"].shape[0] == 10
    card = examine_run(new, ("linear", "top1")).values["student"]
    assert card["linear"] == pytest.approx(result["linear_top1"], abs=1e-9)
    assert card["top1"] == result["top1"]
    assert json.loads((new / "result.json").read_text())["linear_top1"] == result["linear_top1"]
    control = load_experiment(Path(result["scratch_run"]) / "config.yaml")
    assert control.student.weights is None and control.student.trains == "all"
    assert RunFolder(Path(result["scratch_run"])).result()["top1"] == result["scratch_top1"]
    exported = export_run(new, "safetensors")
    assert exported["max_abs_diff"] < 1e-4
    page = write_report([new, Path(result["scratch_run"])], tmp_path / "report.html").read_text()
    assert "old-on-digits-linear" in page

    times = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*") if path.is_file()}
    again = finetune_run(run, [*DIGITS, "train.epochs=3"], linear=True, scratch=True, resume=True)
    assert again == result
    changed = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert all(path.suffix == ".lock" for path in changed)


def test_a_run_that_was_cut_goes_on_and_runs_again_from_its_configuration(tmp_path: Path, ray_session: None) -> None:
    """To the same weights, bit for bit, whichever command it is."""
    run, overrides = finished(tmp_path), [*DIGITS, "train.epochs=3"]
    experiment = described(run, overrides)
    with pytest.raises(KeyboardInterrupt):
        train(experiment, watch=interrupt_after(1))
    assert not RunFolder(experiment.folder).succeeded
    result = finetune_run(run, overrides, resume=True)
    assert (result["run"], result["epochs"]) == (str(experiment.folder), 3) and 0.0 <= result["linear_top1"] <= 100.0
    again = load_experiment(experiment.folder / "config.yaml", ["name=again"])
    assert train(again)["top1"] == result["top1"]
    left, right = (load_file(run.parent / name / "student.safetensors") for name in ("again", "old-on-digits"))
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    assert not torch.equal(left["conv1.weight"], load_file(run / "student.safetensors")["conv1.weight"])


def interrupt_after(epochs: int) -> Any:
    def watch(folder: RunFolder) -> None:
        if len(folder.history()) >= epochs:
            raise KeyboardInterrupt

    return watch


def test_images_without_a_test_part_are_no_reason_to_fail(tmp_path: Path, ray_session: None) -> None:
    write_folder(tmp_path / "photos", each=12)
    shutil.rmtree(tmp_path / "photos" / "test")
    run = finished(tmp_path, data=GREY | {"synthetic_channels": 3, "synthetic_image_size": 16})
    overrides = ["data.name=image_folder", f"data.root={tmp_path / 'photos'}", "data.validation=0.25"]
    result = finetune_run(run, [*overrides, "train.batch_size=6"])
    assert result["linear_top1"] is None and result["top1"] is None and "test" in result["test_problem"]
    assert result["val_top1"] is not None


@pytest.mark.slow
def test_two_workers_train_a_head_as_one_does(tmp_path: Path, ray_session: None) -> None:
    """Frozen parameters have no gradients to exchange."""
    run, overrides = finished(tmp_path), [*DIGITS, "train.batch_size=48"]
    one = finetune_run(run, [*overrides, "name=one"], linear=True)
    two = finetune_run(run, [*overrides, "name=two", "scale.workers=2"], linear=True)
    assert one["linear_top1"] == two["linear_top1"]
    old, left, right = (load_file(path / "student.safetensors") for path in (run, Path(one["run"]), Path(two["run"])))
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(right[name], old[name]) == (name not in HEAD)


@pytest.mark.slow
def test_students_without_a_classifier_and_teachers_are_trained_on(
    tmp_path: Path, teacher_weights: Path, ray_session: None
) -> None:
    """By ``compress``, averaged: what was exported is what goes on."""
    methods = {"compress": {"queue": 64}}
    teacher = teaching(teacher_weights) | {"source": "live"}
    averaged = {"epochs": 2, "batch_size": 48, "ema": {"decay": 0.5, "warmup": False}}
    student = Path(train(digits(tmp_path, teacher=teacher, methods=methods, train=averaged))["run"])
    result = finetune_run(student, [*DIGITS, "train.epochs=1"], linear=True)
    old, new = (load_file(run / "student.safetensors") for run in (student, Path(result["run"])))
    assert {name for name, value in old.items() if not torch.equal(value, new[name])} == HEAD
    assert examine_run(student, ("linear",)).values["student"]["linear"] == pytest.approx(result["linear_top1"])

    weights = tmp_path / "runs" / "big" / "model.safetensors"
    big = {"model": "resnet14", "weights": str(weights), "train": {"epochs": 1, "batch_size": 48}}
    train_teacher(digits(tmp_path, teacher=big))
    found = finetune_run(weights.parent, [*DIGITS, "train.epochs=1"], linear=True)
    assert (Path(found["run"]).name, found["student"]) == ("big-on-digits-linear", "resnet14")
    old, new = load_file(weights), load_file(Path(found["run"]) / "student.safetensors")
    assert {name for name, value in old.items() if not torch.equal(value, new[name])} == HEAD


@pytest.mark.slow
def test_features_that_were_learnt_are_worth_more_than_fresh_ones(tmp_path: Path, ray_session: None) -> None:
    """From all digits, then from 120 of them: fine-tuned, the student is far ahead of one from scratch."""
    whole: Experiment = digits(
        tmp_path, data={"name": "digits"}, train={"epochs": 8, "batch_size": 64, "optimizer": {"lr": 0.1}}
    )
    run = Path(train(whole)["run"])
    few = ["data.name=digits", "data.subset=120", "train.epochs=4", "train.batch_size=24"]
    result = finetune_run(run, few, scratch=True)
    assert min(result["linear_top1"], result["top1"]) > result["scratch_top1"] + 10.0


def test_a_control_never_takes_the_students_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="own folder cannot be the new run's"):
        finetune_run(finished(tmp_path, name="x-scratch"), [*DIGITS, "name=x"], scratch=True)
