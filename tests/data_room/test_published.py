"""CUB200, Cars196, Places365 and VOC07 in small copies of their layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train, split_train
from raydistill.data.image_set import ImageSet
from raydistill.data.listed import path_id
from raydistill.data.shared import from_parts, to_parts
from raydistill.data.voc import CLASSES
from raydistill.errors import DataError
from tests.data_room.files import write_image
from tests.data_room.published import (
    BIRDS,
    CARS,
    halves,
    write_annotations,
    write_birds,
    write_cars,
    write_cars_together,
    write_voc,
)


@pytest.fixture(autouse=True)
def remembers_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks are remembered in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("remembered")))


def config_of(name: str, root: Path, **fields: object) -> DataConfig:
    return DataConfig.model_validate({"name": name, "root": str(root), "image_size": 8, **fields})


def labels_of(images: ImageSet) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


def brightness(images: ImageSet) -> list[int]:
    """The red value in the middle, which JPEG keeps to within a few levels."""
    return images.images[:, 0, 4, 4].tolist()


@pytest.mark.parametrize("below", ["", "CUB_200_2011"])
def test_birds_are_those_of_the_official_split(tmp_path: Path, below: str) -> None:
    write_birds(tmp_path / below)
    train, test = load_train(config_of("cub200", tmp_path)), load_test(config_of("cub200", tmp_path))
    assert (labels_of(train), labels_of(test)) == ([0, 199], [0, 199])
    assert train.num_classes == test.num_classes == 200
    assert brightness(train) == pytest.approx([40, 160], abs=4) and brightness(test) == pytest.approx([80, 120], abs=4)
    assert train.ids.tolist() == [path_id(path) for path, _, training in BIRDS if training]
    assert not set(train.ids.tolist()) & set(test.ids.tolist())


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("images.txt", "1\n", r"images\.txt:1: expected an image's number and path, found '1'"),
        ("images.txt", "1 a.jpg\n1 b.jpg\n", r"images\.txt: image 1 stands there twice, with a\.jpg and b\.jpg"),
        (
            "images.txt",
            "1 a.jpg\n",
            r"image_class_labels\.txt: 4 images, .*images\.txt has 1; .*images\.txt lacks image 2",
        ),
        ("image_class_labels.txt", "1 201\n", r"labels\.txt:1: expected .* class from 1 to 200, found '1 201'"),
        ("image_class_labels.txt", "1 x\n", r"labels\.txt:1: expected .* class from 1 to 200, found '1 x'"),
        ("image_class_labels.txt", "1 1\n2 1\n3 1\n", r"labels\.txt: 3 images, .* has 4; .*labels\.txt lacks image 4"),
        ("train_test_split.txt", "1 2\n", r"split\.txt:1: expected .* 1 for training or 0 for test, found '1 2'"),
        ("train_test_split.txt", "1 1\n", r"train_test_split\.txt: 1 images, .* has 4; .*split\.txt lacks image 2"),
    ],
)
def test_wrong_lists_of_birds_are_told(tmp_path: Path, file: str, text: str, told: str) -> None:
    write_birds(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=told) as caught:
        load_train(config_of("cub200", tmp_path))
    assert "\n" not in str(caught.value)


def test_birds_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no images\.txt there or in its folder CUB_200_2011; unpack CUB_200_2011\.tgz"
    ):
        load_train(config_of("cub200", tmp_path))
    write_birds(tmp_path)
    (tmp_path / "train_test_split.txt").unlink()
    with pytest.raises(DataError, match=r"train_test_split\.txt: cannot be read .*No such file"):
        load_train(config_of("cub200", tmp_path))
    write_birds(tmp_path)
    (tmp_path / "images" / BIRDS[0][0]).unlink()
    with pytest.raises(DataError, match=r"Albatross_0001\.jpg: .*No such file"):
        load_train(config_of("cub200", tmp_path))


@pytest.mark.parametrize("below", ["", "stanford_cars"])
@pytest.mark.parametrize("devkit", ["", "devkit"])
def test_cars_with_a_list_for_each_part(tmp_path: Path, below: str, devkit: str) -> None:
    root = tmp_path / below
    write_cars(root)
    name = "cars_test_annos_withlabels.mat"
    (root / name).rename(root / devkit / name)
    train, test = load_train(config_of("cars196", tmp_path)), load_test(config_of("cars196", tmp_path))
    assert (labels_of(train), labels_of(test)) == ([195, 0, 6], [195])
    assert train.num_classes == 196
    assert brightness(train) == pytest.approx([0, 50, 100], abs=4)
    assert train.ids.tolist() == [path_id(f"cars_train/{name}") for name, _ in CARS]
    assert not set(train.ids.tolist()) & set(test.ids.tolist())


def test_cars_in_one_folder(tmp_path: Path) -> None:
    write_cars_together(tmp_path)
    train, test = load_train(config_of("cars196", tmp_path)), load_test(config_of("cars196", tmp_path))
    assert (labels_of(train), labels_of(test)) == ([195, 6], [0])
    assert brightness(train) == pytest.approx([0, 100], abs=4) and brightness(test) == pytest.approx([50], abs=4)
    assert test.ids.tolist() == [path_id("car_ims/000002.jpg")]


def test_wrong_lists_of_cars_are_told(tmp_path: Path) -> None:
    config = config_of("cars196", tmp_path)
    with pytest.raises(DataError, match=r"no devkit/cars_train_annos\.mat or cars_annos\.mat there .*mirrors keep"):
        load_train(config)
    write_cars(tmp_path)
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(
        DataError, match=r"no cars_test_annos_withlabels\.mat or .*cars_test_annos\.mat tells no classes"
    ):
        load_test(config)
    path = tmp_path / "devkit" / "cars_train_annos.mat"
    for label in (0, 197, 1.5, "one"):
        write_annotations(path, [{"fname": "000001.jpg", "class": label}])
        with pytest.raises(DataError, match=rf"cars_train/000001\.jpg has class {label}, expected 1 to 196"):
            load_train(config)
    write_annotations(path, [{"fname": "000001.jpg"}, {"fname": "000002.jpg"}])
    with pytest.raises(DataError, match=r"cars_train_annos\.mat: not a MATLAB file with annotations of fname, class"):
        load_train(config)


@pytest.mark.parametrize("kept", [0, 50, 128, 150, -60])
def test_a_damaged_list_of_cars_is_told_whatever_is_left_of_it(tmp_path: Path, kept: int) -> None:
    write_cars(tmp_path)
    path = tmp_path / "devkit" / "cars_train_annos.mat"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"cars_train_annos\.mat: not a MATLAB file with annotations") as caught:
        load_train(config_of("cars196", tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("below", ["", "places365_standard"])
def test_places_in_folders_of_classes(tmp_path: Path, below: str) -> None:
    for split in ("train", "val"):
        for label, name in enumerate(("airfield", "zen_garden")):
            write_image(tmp_path / below / split / name / f"{split}_{label}.jpg", value=90 * label)
    train, test = load_train(config_of("places365", tmp_path)), load_test(config_of("places365", tmp_path))
    assert (labels_of(train), labels_of(test)) == ([0, 1], [0, 1])
    assert train.ids.tolist() == [
        path_id(f"train/{name}") for name in ("airfield/train_0.jpg", "zen_garden/train_1.jpg")
    ]
    assert train.mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize("kind", ["256", "large"])
def test_places_as_lists(tmp_path: Path, kind: str) -> None:
    config = config_of("places365", tmp_path)
    with pytest.raises(
        DataError, match=r"neither a folder train nor places365_train_standard\.txt .*'Places365: download'"
    ):
        load_train(config)
    listed = tmp_path / "places365_train_standard.txt"
    listed.write_text("/z/zen_garden/00000001.jpg 364\n/a/airfield/00000002.jpg 0\n")
    (tmp_path / "places365_val.txt").write_text("Places365_val_00000001.jpg 164\n")
    with pytest.raises(
        DataError, match=r"no folder data_256 or .*data_large_standard there; unpack Places365's images"
    ):
        load_train(config)
    write_image(tmp_path / f"data_{kind}" / "z" / "zen_garden" / "00000001.jpg", value=90)
    write_image(tmp_path / f"data_{kind}" / "a" / "airfield" / "00000002.jpg", value=10)
    write_image(tmp_path / f"val_{kind}" / "Places365_val_00000001.jpg")
    train, test = load_train(config), load_test(config)
    assert (labels_of(train), labels_of(test)) == ([364, 0], [164])
    assert train.num_classes == 365 and brightness(train) == pytest.approx([90, 10], abs=4)
    listed.write_text("/a/airfield/00000002.jpg 365\n")
    with pytest.raises(
        DataError, match=r"standard\.txt:1: expected a path and a class from 0 to 364, found '/a/airfield/"
    ):
        load_train(config)
    (tmp_path / "places365_val.txt").unlink()
    with pytest.raises(DataError, match=r"places365_val\.txt: cannot be read"):
        load_test(config)


@pytest.mark.parametrize("below", ["", "VOC2007", "VOCdevkit/VOC2007"])
def test_voc_has_targets_in_the_place_of_labels(tmp_path: Path, below: str) -> None:
    targets, values = halves(2)
    write_voc(tmp_path / below, targets, values)
    train, test = load_train(config_of("voc07", tmp_path)), load_test(config_of("voc07", tmp_path))
    for images, part in ((train, "trainval"), (test, "test")):
        assert images.labels is None and images.num_classes == 20
        assert images.targets is not None and images.targets.dtype == torch.int8
        assert images.targets.tolist() == targets[part]
        assert brightness(images) == pytest.approx(values[part], abs=4)
    assert test.ids.tolist() == [path_id(f"JPEGImages/{number:06d}.jpg") for number in range(5, 9)]
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    assert len(CLASSES) == 20 and list(CLASSES) == sorted(CLASSES)


def test_targets_go_where_their_images_go(tmp_path: Path) -> None:
    targets, values = halves(4)
    write_voc(tmp_path, targets, values)
    (tmp_path / "JPEGImages" / "001002.jpg").write_bytes(b"damaged")
    known = {path_id(f"JPEGImages/{1000 + number:06d}.jpg"): row for number, row in enumerate(targets["trainval"])}
    for reading in ("resident", "stream"):
        fields = {"on_error": "skip", "max_errors": 0.5, "reading": reading, "validation": 0.3}
        config = config_of("voc07", tmp_path, **fields)
        whole, part = load_train(config), load_train(config_of("voc07", tmp_path, subset=5, **fields))
        splits = split_train(whole, config)
        assert (len(whole), len(splits.train), len(splits.validation)) == (7, 5, 2) and len(part) in (4, 5)
        for images in (whole, part, splits.train, splits.validation, from_parts(to_parts(whole))):
            assert images.targets is not None
            assert images.targets.tolist() == [known[number] for number in images.ids.tolist()]
    assert load_train(config_of("voc07", tmp_path, num_classes=7, **fields)).num_classes == 7


def test_wrong_lists_of_voc_are_told(tmp_path: Path) -> None:
    config = config_of("voc07", tmp_path)
    with pytest.raises(
        DataError, match=r"no ImageSets/Main/aeroplane_trainval\.txt there .*VOCtrainval_06-Nov-2007\.tar"
    ):
        load_train(config)
    targets, values = halves(2)
    write_voc(tmp_path, {"trainval": targets["trainval"]}, values)
    with pytest.raises(DataError, match=r"no ImageSets/Main/aeroplane_test\.txt there .*VOCtest_06-Nov-2007\.tar"):
        load_test(config)
    path = tmp_path / "ImageSets" / "Main" / "sofa_trainval.txt"
    for text, told in (
        ("001000 2\n", r"sofa_trainval\.txt:1: expected an image's name and 1, 0 or -1, found '001000 2'"),
        ("001000\n", r"sofa_trainval\.txt:1: expected an image's name and 1, 0 or -1, found '001000'"),
        ("001000  1\n", r"sofa_trainval\.txt: 1 images, not the 4 of aeroplane_trainval\.txt in their order"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=told):
            load_train(config)
    path.unlink()
    with pytest.raises(DataError, match=r"sofa_trainval\.txt: cannot be read .*No such file"):
        load_train(config)


@pytest.mark.parametrize("name", ["cub200", "cars196", "places365", "voc07"])
def test_those_that_stream_are_the_same(tmp_path: Path, name: str) -> None:
    for split in ("train", "val"):
        write_image(tmp_path / split / "airfield" / f"{split}.jpg")
    write_birds(tmp_path)
    write_cars(tmp_path)
    write_voc(tmp_path, *halves(2))
    resident, stream = (load_train(config_of(name, tmp_path, reading=reading)) for reading in ("resident", "stream"))
    assert type(resident) is not type(stream)
    assert resident.fingerprint() == stream.fingerprint() and torch.equal(resident.images, stream.images)
