"""What student and teacher see of a pair: parts of one colour image, or images of two folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from raydistill.data import modalities
from raydistill.data.augment_config import AugmentConfig
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_sides, load_test, load_train, split_train
from raydistill.data.folder import has_test_images
from raydistill.data.modalities import chrominance, lab, luminance, with_ids
from raydistill.data.views import render
from raydistill.errors import DataError
from tests.data_room.files import write_image

LAB = {
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
}


def colours(*values: tuple[int, int, int]) -> Tensor:
    """One pixel each."""
    return torch.tensor(values, dtype=torch.uint8)[:, :, None, None]


def pictures(count: int, side: int = 12) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(count)).byte()


@pytest.mark.parametrize(("colour", "expected"), LAB.items())
def test_known_colours(colour: tuple[int, int, int], expected: tuple[float, float, float]) -> None:
    assert lab(colours(colour)).flatten().tolist() == pytest.approx(expected, abs=0.005)
    lightness, a, b = expected
    assert int(luminance(colours(colour))) == round(lightness * 2.55)
    assert chrominance(colours(colour)).flatten().tolist() == [round(a) + 128, round(b) + 128]


def test_grey_has_no_chrominance() -> None:
    greys = colours(*((level, level, level) for level in range(256)))
    assert float(lab(greys)[:, 1:].abs().max()) < 1e-12
    assert bool((chrominance(greys) == 128).all())
    levels = torch.arange(256, dtype=torch.float64)[24:] / 255  # below, the curves are straight lines
    expected = 116 * ((levels + 0.055) / 1.055) ** (2.4 / 3) - 16
    torch.testing.assert_close(lab(greys)[24:, 0].flatten(), expected, rtol=1e-12, atol=0)
    assert float(lab(greys)[1, 0]) == pytest.approx((29 / 3) ** 3 / (12.92 * 255), rel=1e-12)


def test_bytes_hold_every_colour() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0, 128, 255])] * 3).byte()[:, :, None, None]
    images = torch.cat([corners.expand(-1, -1, 12, 12), pictures(20)])
    exact = lab(images)
    assert float((luminance(images) / 2.55 - exact[:, :1]).abs().max()) <= 0.2
    assert float((chrominance(images).int() - 128 - exact[:, 1:]).abs().max()) <= 0.5


def test_an_image_is_converted_the_same_in_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(10)
    whole = luminance(images), chrominance(images)
    monkeypatch.setattr(modalities, "_CHUNK_PIXELS", 3 * 144)
    assert torch.equal(luminance(images), whole[0]) and torch.equal(chrominance(images), whole[1])


AUGMENTS = [AugmentConfig(crop=3, flip=0.5), AugmentConfig(flip=1.0)]


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("convert", [luminance, chrominance])
def test_both_sides_see_the_same_crop(augment: AugmentConfig, convert: Any) -> None:
    """A view of the converted image is the converted view, black padding included."""
    images, ids, views = pictures(30), torch.arange(30), torch.arange(30) % 3

    def drawn(pixels: Tensor) -> Tensor:
        channels = pixels.shape[1]
        rows = render(pixels, ids, views, augment=augment, seed=4, mean=[0.0] * channels, std=[1.0] * channels)
        return (rows * 255).round().byte()

    assert torch.equal(drawn(convert(images)), convert(drawn(images)))


def synthetic(**sides: Any) -> DataConfig:
    values = {"name": "synthetic", "synthetic_size": 60, "synthetic_image_size": 12, "subset": 40, "modalities": sides}
    return DataConfig.model_validate(values)


def test_two_sides_of_one_set() -> None:
    config = synthetic(student="chrominance", teacher="luminance")
    student, teacher = load_sides(config)
    plain = load_train(config.model_copy(update={"modalities": None}))
    assert (student.shape, teacher.shape) == ((2, 12, 12), (1, 12, 12))
    assert torch.equal(student.images, chrominance(plain.images))
    assert torch.equal(teacher.images, luminance(plain.images))
    assert torch.equal(student.ids, plain.ids) and torch.equal(teacher.ids, plain.ids)
    assert teacher.labels is not None and torch.equal(teacher.labels, plain.labels)  # type: ignore[arg-type]
    assert (len(student.mean), len(student.std), len(teacher.mean)) == (2, 2, 1)
    assert load_train(config).fingerprint() == student.fingerprint() != teacher.fingerprint() != plain.fingerprint()
    assert load_train(config.of_teacher).fingerprint() == teacher.fingerprint()
    assert (load_test(config).shape[0], load_test(config.of_teacher).shape[0]) == (2, 1)
    assert config.of_teacher.of_teacher == config
    assert DataConfig.model_validate(config.of_teacher.model_dump()) == config.of_teacher


def test_without_modalities_both_sides_are_one() -> None:
    config = DataConfig(name="digits", subset=20)
    student, teacher = load_sides(config)
    assert student is teacher and config.of_teacher is config


def test_each_side_has_its_own_moments() -> None:
    values = synthetic(student="chrominance", teacher="luminance", teacher_mean=[0.4], teacher_std=[0.2]).model_dump()
    config = DataConfig.model_validate(values | {"mean": [0.5, 0.6], "std": [0.1, 0.2]})
    student, teacher = load_sides(config)
    assert (student.mean, student.std) == ((0.5, 0.6), (0.1, 0.2))
    assert (teacher.mean, teacher.std) == ((0.4,), (0.2,))
    same = load_train(synthetic(student="rgb", teacher="luminance"))
    assert same.mean == (0.5,) * 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "digits", "modalities": {"student": "luminance"}}, "those of the data set 'digits' are grey"),
        ({"name": "synthetic", "synthetic_channels": 1, "modalities": {}}, "'synthetic' are grey"),
        ({"name": "synthetic", "modalities": {"student": "luma"}}, "'luminance'"),
        ({"name": "synthetic", "modalities": {"teacher_root": "x"}}, "does not take it, only image_folder"),
        ({"name": "synthetic", "modalities": {"teacher": "grey"}}, "take luminance"),
        ({"name": "synthetic", "modalities": {"teacher_mean": [0.5]}}, "teacher_std: give both or neither"),
        (
            {"name": "synthetic", "modalities": {"student": "chrominance"}, "mean": [0.5] * 3, "std": [0.5] * 3},
            "mean: 3 channels, but chrominance has 2",
        ),
        ({"name": "synthetic", "num_classes": 5}, "num_classes: the data set 'synthetic' does not take it"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(fields)
    assert words in str(caught.value)


def write_grey(path: Path, value: int, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def write_pairs(root: Path, classes: tuple[str, ...] = ("cat/", "dog/"), each: int = 6) -> None:
    """Depth maps and colour images of one name and two formats, in folders that list them in another order."""
    for label, name in enumerate(classes):
        for number in range(each):
            stem = "a" + "-b.c"[: number % 5] + str(number)
            write_grey(root / "depth" / "train" / f"{name}{stem}.png", 10 * number + label)
            write_image(root / "rgb" / "train" / f"{name}{stem}.bmp", value=10 * number + label)
    write_grey(root / "depth" / "val" / f"{classes[0]}9.png", 3)


def pairs(root: Path, **fields: Any) -> DataConfig:
    sides = {"student": "grey", "teacher": "rgb", "teacher_root": str(root / "rgb")}
    values = {"name": "image_folder", "root": str(root / "depth"), "image_size": 8, "modalities": sides}
    return DataConfig.model_validate(values | fields)


def test_two_folders_are_paired_by_name(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    config = pairs(tmp_path, subset=9)
    student, teacher = load_sides(config)
    assert (student.shape, teacher.shape) == ((1, 8, 8), (3, 8, 8))
    aligned = with_ids(teacher, student.ids)
    assert torch.equal(aligned.images[:, 0], student.images[:, 0])  # red is the depth
    assert torch.equal(aligned.labels, student.labels)  # type: ignore[arg-type]
    kept = set(split_train(student, config).train.ids.tolist())
    assert kept == set(split_train(teacher, config.of_teacher).train.ids.tolist())
    assert not has_test_images(config.of_teacher) and has_test_images(config)


def test_an_image_without_partner_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    for number in range(7):
        write_image(tmp_path / "rgb" / "train" / "dog" / f"extra{number}.png")
    (tmp_path / "depth" / "train" / "cat" / "a0.png").rename(tmp_path / "depth" / "train" / "cat" / "lost.png")
    for config in (pairs(tmp_path), pairs(tmp_path).of_teacher):
        with pytest.raises(DataError) as caught:
            load_train(config)
        assert "9 images have no partner: " in str(caught.value) and str(caught.value).endswith(", ...")
    with pytest.raises(DataError, match=r"depth/train/cat/lost\.png, .*rgb/train/cat/a0\.bmp, "):
        load_sides(pairs(tmp_path))


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    write_image(tmp_path / "rgb" / "train" / "cat" / "a0.png")
    with pytest.raises(DataError, match=r"a0\.bmp and .*a0\.png: pairs need"):
        load_train(pairs(tmp_path))


def test_a_pair_with_a_damaged_image_is_left_out(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "rgb" / "train" / "cat" / "a0.bmp").write_bytes(b"damaged")
    (tmp_path / "depth" / "train" / "dog" / "a0.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"a0\.\w+: "):
        load_sides(pairs(tmp_path))
    student, teacher = load_sides(pairs(tmp_path, on_error="skip", max_errors=0.2))
    assert (len(student), len(teacher), len(student.skipped)) == (10, 11, 2)
    aligned = with_ids(teacher, student.ids)
    assert torch.equal(aligned.images[:, 0], student.images[:, 0])


def test_sides_that_do_not_fit(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    with pytest.raises(DataError, match="modality 'grey', but there are colours"):
        load_train(pairs(tmp_path, modalities={"teacher": "grey", "teacher_root": str(tmp_path / "rgb")}).of_teacher)
    for path in (tmp_path / "depth" / "train").rglob("*.png"):
        write_grey(path, 5, size=(16, 20))
    with pytest.raises(DataError, match=r"student's images are 16 x 20, the teacher's 20 x 16; set data\.image_size"):
        load_sides(pairs(tmp_path, image_size=None))


def test_pairs_without_labels_take_the_teachers_number_of_classes(tmp_path: Path) -> None:
    write_pairs(tmp_path, classes=("",))
    student, teacher = load_sides(pairs(tmp_path, num_classes=7))
    assert student.labels is None and (student.num_classes, teacher.num_classes) == (7, 7)
    write_pairs(tmp_path / "labelled")
    with pytest.raises(DataError, match=r"data\.num_classes = 7: .* labels of 2 classes"):
        load_train(pairs(tmp_path / "labelled", num_classes=7))
    assert load_train(pairs(tmp_path / "labelled", num_classes=2)).num_classes == 2


def test_depth_of_16_bits_becomes_one_channel(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    for path in (tmp_path / "depth" / "train").rglob("*.png"):
        Image.fromarray(np.full((16, 20), 200 * 256, np.uint16)).save(path)
    assert load_train(pairs(tmp_path)).images.unique().tolist() == [200]  # type: ignore[no-untyped-call]
