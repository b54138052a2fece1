"""Detectors on a run's student: where they begin, that they learn, and what they leave behind."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from raydistill.errors import ConfigError, DataError
from raydistill.reporting.runs import load_run

pytest.importorskip("pycocotools")
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "downstream"))

import boxes
import detection
import students

SMALL = detection.shortened(detection.SCHEDULES["synthetic"], {"steps": 3, "batch_size": 2})
DRAWN = boxes.Drawn(8, 3, seed=1, side=48)


def detector(run: Path, **options: Any) -> nn.Module:
    fresh = options.pop("fresh", False)
    network, description = students.beginning(run, fresh=fresh, seed=0)
    chosen = {"kind": "faster_rcnn", "channels": 32, "levels": 2, "frozen_stages": 0, "train_batch_norm": fresh}
    made: nn.Module = detection.detector_on(
        network, description, boxes.Drawn.num_classes, SMALL, seed=0, **(chosen | options)
    )
    return made


def student_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.backbone.body.network.state_dict().items()}  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("kind", "train_batch_norm", "changed", "share"),
    [("faster_rcnn", False, {"lr": 0.02, "steps": 30}, 0.75), ("retinanet", True, {"lr": 0.1, "steps": 60}, 0.85)],
)
def test_a_detector_begins_with_the_runs_weights_and_learns(
    run: Path, kind: str, train_batch_norm: bool, changed: dict[str, Any], share: float
) -> None:
    model = detector(run, kind=kind, frozen_stages=1, train_batch_norm=train_batch_norm)
    begun, saved = student_of(model), load_file(run / "student.safetensors")
    assert begun.keys() == saved.keys() and all(torch.equal(begun[name], saved[name]) for name in saved)
    few = boxes.Drawn(4, 3, seed=1, side=48)  # every batch is all of them
    schedule = detection.shortened(SMALL, {"batch_size": 4, **changed})
    losses = detection.fit(model, few, schedule, seed=0)
    assert len(losses) == changed["steps"] and sum(losses[-10:]) / 10 < share * losses[0]
    ended = student_of(model)
    moved = {name for name in begun if not torch.equal(begun[name], ended[name])}
    norms = {name for name in begun if "bn" in name or "running" in name}
    assert any(name in norms for name in moved) == train_batch_norm
    assert moved - norms and not {name for name in moved if name.startswith(("conv1.", "bn1."))}
    assert detection.judge(model, few).keys() == {"ap", "ap50", "ap75"}


def test_training_is_a_function_of_the_seed(run: Path) -> None:
    first, again, other = (detection.fit(detector(run), DRAWN, SMALL, seed=seed) for seed in (0, 0, 1))
    assert first == again and first != other


def test_the_control_has_the_same_heads_and_other_weights_below(run: Path) -> None:
    own, fresh = detector(run).state_dict(), detector(run, fresh=True).state_dict()
    assert own.keys() == fresh.keys()
    heads = [name for name in own if not name.startswith("backbone.body.")]
    assert heads and all(torch.equal(own[name], fresh[name]) for name in heads)
    assert not torch.equal(own["backbone.body.network.conv1.weight"], fresh["backbone.body.network.conv1.weight"])


def test_images_are_normalised_as_the_student_saw_them(run: Path) -> None:
    model = detector(run)
    _, description = students.beginning(run, fresh=False, seed=0)
    images, _ = model.transform([torch.full((3, 48, 48), 0.75)])  # type: ignore[union-attr, operator]
    wanted = (0.75 - torch.tensor(description.mean)) / torch.tensor(description.std)
    assert torch.allclose(images.tensors[0, :, :48, :48].mean(dim=(1, 2)), wanted)


def test_boxes_of_flipped_images_are_where_their_shapes_are() -> None:
    image = torch.zeros(1, 10, 20)
    image[0, 2:5, 3:7] = 1
    target = {
        "boxes": torch.tensor([[3.0, 2, 7, 5], [0, 0, 1, 1]]),
        "labels": torch.tensor([2, 1]),
        "ignored": torch.tensor([False, True]),
    }
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        images, targets = detection._prepared(([image], [target]), torch.device("cpu"), generator)
        ((left, top, right, bottom),) = targets[0]["boxes"].int().tolist()
        assert images[0][0, top:bottom, left:right].all() and images[0].sum() == 12
        assert targets[0]["labels"].tolist() == [2]


def test_rates_warm_up_and_fall() -> None:
    schedule = detection.SCHEDULES["voc"]
    rates = [schedule.rate(step) for step in (0, 99, 17999, 18000, 22000)]
    assert rates == pytest.approx([0.0002, 0.02, 0.02, 0.002, 0.0002])
    half = detection.shortened(schedule, {"steps": 12000})
    assert (half.milestones, half.steps, half.lr) == ((9000, 11000), 12000, 0.02)


def test_drawn_shapes_fill_their_boxes() -> None:
    for image, target in boxes.Drawn(20, 1, seed=0):
        assert 1 <= len(target["boxes"]) <= 3
        for left, top, right, bottom in target["boxes"].int().tolist():
            inside = image[0, top:bottom, left:right]
            assert (inside > 0.58).float().mean() > 0.4
            assert (inside[-1] > 0.58).any() and (inside[0] > 0.58).any()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(boxes.Drawn(3, 3, 5), boxes.Drawn(3, 3, 5), strict=True))


def test_a_result_is_noted_and_found_where_runs_are_compared(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    given = ["--data", "synthetic", "--steps", "2", "--batch-size", "1", "--levels", "1", "--channels", "8"]
    for more in ([], ["--fresh"]):
        monkeypatch.setattr(sys, "argv", ["detection.py", str(folder), *given, *more])
        detection.main()
    printed = capsys.readouterr().out
    assert "student on synthetic: ap " in printed and "fresh on synthetic: ap " in printed
    noted = json.loads((folder / "detection.json").read_text())
    names = {"synthetic/detection_ap", "synthetic/detection_ap50", "synthetic/detection_ap75"}
    assert noted["student"].keys() == noted["fresh"].keys() == names
    assert noted["settings"]["synthetic, fresh"]["detection"]["steps"] == 2
    assert load_run(folder).card["student"] == noted["student"]


def write_voc(root: Path, year: str, part: str) -> None:
    base = root / "VOCdevkit" / f"VOC{year}"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (255, 0, 0)).save(base / "JPEGImages" / f"{part}.jpg")
    (base / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{part}\n")
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin><ymin>3</ymin>"
        f"<xmax>10</xmax><ymax>16</ymax></bndbox></object>"
        for name, difficult in (("dog", 0), ("person", 1))
    )
    (base / "Annotations" / f"{part}.xml").write_text(f"<annotation>{objects}</annotation>")


def test_voc_is_read_with_its_difficult_objects(tmp_path: Path) -> None:
    for year, part in (("2007", "trainval"), ("2012", "trainval"), ("2007", "test")):
        write_voc(tmp_path, year, part)
    train, test, classes = boxes.training_and_test("voc", tmp_path, 3, download=False, seed=0)
    assert (len(train), len(test), classes) == (2, 1, 20)  # type: ignore[arg-type]
    image, target = test[0]
    assert image.shape == (3, 16, 20) and image[0].mean() > 0.95
    assert target["boxes"].tolist() == [[0, 2, 10, 16]] * 2 and target["labels"].tolist() == [12, 15]
    assert target["ignored"].tolist() == [False, True] and not train[0][1]["ignored"].any()
    with pytest.raises(DataError, match=r"no VOCdevkit/VOC2007 with trainval .* --download"):
        boxes.training_and_test("voc", tmp_path / "nowhere", 3, download=False, seed=0)


def test_voc07_trains_on_that_year_alone(tmp_path: Path) -> None:
    for part in ("trainval", "test"):
        write_voc(tmp_path, "2007", part)
    train, test, classes = boxes.training_and_test("voc07", tmp_path, 3, download=False, seed=0)
    assert (len(train), len(test), classes) == (1, 1, 20)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no VOCdevkit/VOC2012"):
        boxes.training_and_test("voc", tmp_path, 3, download=False, seed=0)


def test_coco_is_read_with_its_crowds_and_without_empty_images(tmp_path: Path) -> None:
    for part in ("train2017", "val2017"):
        (tmp_path / part).mkdir()
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for name in ("a", "b"):
            Image.new("L", (20, 16), 128).save(tmp_path / part / f"{name}.png")
        shown = [
            {"bbox": [1, 2, 3, 4], "category_id": 90, "iscrowd": 0},
            {"bbox": [0, 0, 9, 9], "category_id": 7, "iscrowd": 1},
        ]
        empty = [{"bbox": [1, 2, 0, 4], "category_id": 7, "iscrowd": 0}]
        listed = [(1, each) for each in shown] + [(2, each) for each in empty]
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(
            json.dumps(
                {
                    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
                    "categories": [{"id": 7}, {"id": 90}],
                    "annotations": [{"id": n, "image_id": image, **each} for n, (image, each) in enumerate(listed, 1)],
                }
            )
        )
    train, test, classes = boxes.training_and_test("coco", tmp_path, 1, download=False, seed=0)
    assert (len(train), len(test), classes) == (1, 2, 2)  # type: ignore[arg-type]
    image, target = train[0]
    assert image.shape == (1, 16, 20)
    assert target["boxes"].tolist() == [[1, 2, 4, 6], [0, 0, 9, 9]] and target["labels"].tolist() == [2, 1]
    assert target["ignored"].tolist() == [False, True]
    assert test[1][1]["boxes"].shape == (0, 4)
    with pytest.raises(DataError, match="no COCO"):
        boxes.training_and_test("coco", tmp_path / "nowhere", 3, download=False, seed=0)


def test_mistakes_are_told_in_a_line(run: Path) -> None:
    with pytest.raises(DataError, match="--root: --data voc needs the folder"):
        boxes.training_and_test("voc", None, 3, download=False, seed=0)
    with pytest.raises(DataError, match="--batch-size 2: there are 1 images"):
        detection.fit(detector(run), boxes.Drawn(1, 3, seed=0), SMALL, seed=0)
    with pytest.raises(ConfigError, match="frozen stages: 9, but the network has 4"):
        detector(run, frozen_stages=9)
