"""Colour, filters, tones, warps and RandAugment: pure functions of seed, id and view, with known closed forms."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from raydistill.data import colour, filters, randaugment, tones
from raydistill.data.augment_config import AugmentConfig
from raydistill.data.change_rows import change_rows
from raydistill.data.views import parameters, render
from raydistill.data.warps import warp
from raydistill.errors import ConfigError

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "probability": 0.8}
GREY_JITTER = {"brightness": 0.4, "contrast": 0.4}
BLUR = {"probability": 0.5, "sigma": (0.1, 2.0)}
RAND = {"operations": 2, "magnitude": 9}
# Each alone, then what DINO, MoCo v2 and RandAugment's own recipe do together.
COLOUR: list[dict[str, Any]] = [
    {"color_jitter": JITTER},
    {"color_jitter": {"hue": 0.5}},
    {"color_jitter": {"saturation": 3.0, "brightness": 2.0}},
    {"grayscale": 0.5},
    {"resized_crop": (0.2, 1.0), "flip": 0.5, "color_jitter": JITTER, "grayscale": 0.2, "blur": BLUR, "solarize": 0.2},
]
ANY: list[dict[str, Any]] = [
    {"color_jitter": GREY_JITTER},
    {"blur": BLUR},
    {"blur": {"probability": 1.0, "sigma": (9.0, 9.0)}},
    {"solarize": 0.5},
    {"randaugment": RAND},
    {"randaugment": {"operations": 4, "magnitude": 30}},
    {"randaugment": {"operations": 1, "magnitude": 0}},
    {"crop": 4, "flip": 0.5, "cutout": 5, "randaugment": RAND},
    {"resized_crop": (0.2, 1.0), "randaugment": RAND, "color_jitter": GREY_JITTER, "blur": BLUR, "solarize": 0.5},
]
CASES = [(fields, 3) for fields in COLOUR] + [(fields, channels) for fields in ANY for channels in (1, 2, 3)]


def pictures(batch: int, channels: int = 3, size: tuple[int, int] = (14, 11)) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, channels, *size), generator=generator).byte()


def smooth(batch: int, channels: int = 3, size: int = 16) -> Tensor:
    """Float32 pictures with whole levels, of which neighbours are alike."""
    coarse = pictures(batch, channels, (5, 5)).float()
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=True).round()


def levels(fields: dict[str, Any], images: Tensor, ids: Tensor, views: Tensor, seed: int = 0) -> Tensor:
    """A rendered batch with mean 0 and deviation 1: shares of 255."""
    count = images.shape[1]
    augment = AugmentConfig(**fields)
    return render(images, ids, views, augment=augment, seed=seed, mean=[0.0] * count, std=[1.0] * count)


ROWS = st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**40)), min_size=1, max_size=24)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CASES), ROWS, st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_pixels_do_not_depend_on_the_batch(
    case: tuple[dict[str, Any], int], rows: list[tuple[int, int]], random: Any, seed: int
) -> None:
    fields, channels = case
    images = pictures(len(rows), channels)
    ids, views = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    whole = levels(fields, images, ids, views, seed)
    order = list(range(len(rows)))
    random.shuffle(order)
    cut = random.randint(0, len(rows))
    for part in (order[:cut], order[cut:]):
        if part:
            assert torch.equal(levels(fields, images[part], ids[part], views[part], seed), whole[part])


@pytest.mark.parametrize(("fields", "channels"), CASES)
def test_single_rows_of_a_large_batch(fields: dict[str, Any], channels: int) -> None:
    images, ids, views = pictures(300, channels, (17, 19)), torch.arange(300) * 977, torch.arange(300) % 5
    whole = levels(fields, images, ids, views)
    for row in range(0, 300, 23):
        one = slice(row, row + 1)
        assert torch.equal(levels(fields, images[one], ids[one], views[one]), whole[one])


@pytest.mark.parametrize(("fields", "channels"), CASES)
def test_view_zero_is_untouched_and_values_stay_in_range(fields: dict[str, Any], channels: int) -> None:
    images, ids = pictures(60, channels), torch.arange(60)
    plain = levels({}, images, ids, ids * 0)
    assert torch.equal(levels(fields, images, ids, ids * 0), plain)
    mixed = levels(fields, images, ids, ids % 3)
    assert torch.equal(mixed[::3], plain[::3])
    changed = (mixed != plain).flatten(1).any(1)
    assert 1 <= int(changed.sum()) <= 40
    assert float(mixed.min()) >= 0.0 and float(mixed.max()) <= 1.0 + 1e-6


_RESTART = """
import hashlib, torch
from tests.data_room.test_colours import CASES, levels, pictures
torch.set_num_threads(2)
for fields, channels in CASES:
    rows = levels(fields, pictures(33, channels), torch.arange(33), torch.arange(33) % 4, 7)
    print(hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest())
"""


def test_another_process_draws_the_same_bytes() -> None:
    found = subprocess.run([sys.executable, "-c", _RESTART], capture_output=True, text=True, check=True).stdout
    for (fields, channels), digest in zip(CASES, found.split(), strict=True):
        rows = levels(fields, pictures(33, channels), torch.arange(33), torch.arange(33) % 4, 7)
        assert hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest() == digest


def test_seeds_views_and_operations_draw_on_their_own() -> None:
    ids = torch.arange(4000)
    fields = {"color_jitter": JITTER, "grayscale": 0.5, "blur": BLUR, "solarize": 0.5, "flip": 0.5}
    augment = AugmentConfig(**fields)  # type: ignore[arg-type]
    first = parameters(ids, ids * 0 + 1, augment=augment, seed=0, size=(8, 8))
    flags = [first["flip"], first["grayscale"], first["solarize"], first["blur"] > 0]
    for one in range(len(flags)):
        for other in range(one):
            assert abs(float((flags[one] == flags[other]).float().mean()) - 0.5) < 0.05
    for view, seed in ((2, 0), (1, 1)):
        again = parameters(ids, ids * 0 + view, augment=augment, seed=seed, size=(8, 8))
        assert abs(float((again["grayscale"] == first["grayscale"]).float().mean()) - 0.5) < 0.05


def test_adding_an_operation_changes_no_other_draw() -> None:
    ids = torch.arange(50)
    few, many = ({"blur": BLUR}, {"blur": BLUR, "color_jitter": JITTER, "grayscale": 0.3, "randaugment": RAND})
    drawn = [
        parameters(ids, ids + 1, augment=AugmentConfig(**fields), seed=3, size=(8, 8))  # type: ignore[arg-type]
        for fields in (few, many)
    ]
    assert torch.equal(drawn[0]["blur"], drawn[1]["blur"])


def test_parameters_have_their_ranges_and_frequencies() -> None:
    ids = torch.arange(20_000)
    fields: dict[str, Any] = {"color_jitter": JITTER | {"brightness": 1.5}, "grayscale": 0.2, "solarize": 0.1}
    fields |= {"blur": {"probability": 0.3, "sigma": (0.5, 1.0)}, "randaugment": RAND}
    drawn = parameters(ids, ids * 0 + 1, augment=AugmentConfig(**fields), seed=0, size=(8, 8))
    for part, low, high in (("brightness", 0.0, 2.5), ("contrast", 0.6, 1.4), ("hue", -0.1, 0.1)):
        values = drawn[f"jitter/{part}"]
        assert low <= float(values.min()) < low + 0.01 and high - 0.01 < float(values.max()) <= high
    shares = {"grayscale": 0.2, "solarize": 0.1, "blur": 0.3}
    for name, share in shares.items():
        assert abs(float((drawn[name] > 0).float().mean()) - share) < 0.015
    orders = drawn["jitter"]
    jittered = orders[orders[:, 0] > 0]
    assert abs(len(jittered) / 20_000 - 0.8) < 0.015
    assert jittered.sort(1).values.unique(dim=0).tolist() == [[1, 2, 3, 4]]  # type: ignore[no-untyped-call]
    assert len(jittered.unique(dim=0)) == 24  # type: ignore[no-untyped-call]
    assert drawn["blur"].unique().tolist() == list(range(65))  # type: ignore[no-untyped-call]
    counts = torch.bincount(drawn["randaugment"].flatten(), minlength=len(randaugment.OPERATIONS) + 1)
    assert int(counts[0]) == 0 and len(counts) == 16
    assert int(counts[1:].min()) > 0.9 * 40_000 / 15


# Closed forms ------------------------------------------------------------------------------------------------------

ONE = torch.ones(8)


@pytest.mark.parametrize("change", [colour.brightness, colour.contrast, colour.saturation, filters.sharpness])
def test_factor_one_is_the_image(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    pixels = pictures(8).float()
    assert torch.equal(change(pixels, ONE), pixels)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_factor_zero_is_what_is_blended_with(channels: int) -> None:
    pixels = pictures(8, channels).float()
    neutral = 128.0 if channels == 2 else 0.0
    assert bool((colour.brightness(pixels, ONE * 0) == neutral).all())
    even = colour.contrast(pixels, ONE * 0)
    assert bool((even == even[:, :1, :1, :1]).all())
    expected = {1: pixels, 2: torch.full_like(pixels, 128), 3: colour.luma(pixels)}[channels].mean((1, 2, 3))
    torch.testing.assert_close(even[:, 0, 0, 0], expected, atol=4e-3, rtol=0)


def test_grey_twice_is_grey_once() -> None:
    pixels = pictures(8).float()
    grey = colour.grayscale(pixels)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    assert torch.equal(colour.grayscale(grey), grey)
    assert torch.equal(colour.saturation(pixels, ONE * 0), grey)
    torch.testing.assert_close(colour.hue(grey, ONE * 0.3), grey, atol=1e-4, rtol=0)


def test_hue_turns() -> None:
    pixels = pictures(8).float()
    for turn in (0.0, 1.0, -1.0):
        torch.testing.assert_close(colour.hue(pixels, ONE * turn), pixels, atol=2e-3, rtol=0)
    torch.testing.assert_close(colour.hue(pixels, ONE / 3), pixels[:, [2, 0, 1]], atol=2e-3, rtol=0)
    there = colour.hue(colour.hue(pixels, ONE * 0.37), ONE * -0.37)
    torch.testing.assert_close(there, pixels, atol=5e-3, rtol=0)


@pytest.mark.parametrize("amount", [-0.5, -0.2, 0.1, 0.5])
def test_colours_are_torchvisions(amount: float) -> None:
    pixels = pictures(8).float()
    unit, factor = pixels / 255, 1.0 + amount
    # torchvision's luma is written with one digit more for red, and its sum is not 1.
    for mine, theirs in (
        (colour.brightness(pixels, ONE * factor), reference.adjust_brightness(unit, factor)),
        (colour.contrast(pixels, ONE * factor), reference.adjust_contrast(unit, factor)),
        (colour.saturation(pixels, ONE * factor), reference.adjust_saturation(unit, factor)),
        (colour.hue(pixels, ONE * amount), reference.adjust_hue(unit, amount)),
        (filters.sharpness(pixels, ONE * factor), reference.adjust_sharpness(unit, factor)),
        (tones.solarize(pixels, 128.0), reference.solarize(unit, 128 / 255)),
        (tones.auto_contrast(pixels), reference.autocontrast(unit)),
        (tones.invert(pixels), reference.invert(unit)),
    ):
        torch.testing.assert_close(mine, theirs * 255, atol=0.05, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_tones_are_pils(channels: int) -> None:
    narrow = (smooth(6, channels, 40) * 0.3 + 60).round()
    for image in [*narrow, torch.full((channels, 40, 40), 7.0), *pictures(4, channels, (40, 40)).float()]:
        picture = Image.fromarray(image.byte().permute(1, 2, 0).squeeze().numpy())
        for mine, theirs in (
            (tones.equalize(image[None])[0], ImageOps.equalize(picture)),
            (tones.posterize(image[None], 3)[0], ImageOps.posterize(picture, 3)),
            (tones.solarize(image[None], 100.0)[0], ImageOps.solarize(picture, 100)),
        ):
            expected = torch.from_numpy(np.array(theirs)).reshape(40, 40, channels).permute(2, 0, 1)
            assert torch.equal(mine, expected.float())
        stretched = torch.from_numpy(np.array(ImageOps.autocontrast(picture))).reshape(40, 40, channels)
        difference = tones.auto_contrast(image[None])[0] - stretched.permute(2, 0, 1)
        assert float(difference.abs().max()) <= 1.0
        sharper = torch.from_numpy(np.array(ImageEnhance.Sharpness(picture).enhance(1.7))).reshape(40, 40, channels)
        difference = filters.sharpness(image[None], torch.tensor([1.7]))[0] - sharper.permute(2, 0, 1)
        # PIL rounds the smooth image and then cuts the blend
        assert float(difference.abs().max()) <= 0.7 * 0.5 + 1.0 + 1e-3


def test_tones_leave_what_they_cannot_change() -> None:
    even = torch.full((3, 2, 6, 6), 200.0)
    assert torch.equal(tones.auto_contrast(even), even) and torch.equal(tones.equalize(even), even)
    pixels = pictures(5).float()
    assert torch.equal(tones.posterize(pixels, 8), pixels)
    assert torch.equal(tones.invert(tones.invert(pixels)), pixels)
    assert torch.equal(tones.solarize(pixels, 0.0), tones.invert(pixels))
    assert torch.equal(tones.solarize(pixels, 256.0), pixels)
    assert tones.auto_contrast(pixels[:, :, :2]).amin((2, 3)).unique().tolist() == [0.0]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("width", [0, 31, 63])
def test_blur_is_torchvisions(width: int) -> None:
    pixels, sigma = pictures(5, 3, (20, 23)).float(), (0.1, 2.0)
    mine = filters.gaussian_blur(pixels, torch.full((5,), width), sigma)
    theirs = reference.gaussian_blur(pixels, [13, 13], [filters.sigma_of(width, sigma)] * 2)
    torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 40)])
def test_blur_keeps_constants(size: tuple[int, int]) -> None:
    even = torch.full((64, 2, *size), 255.0) - torch.arange(64.0)[:, None, None, None]
    torch.testing.assert_close(filters.gaussian_blur(even, torch.arange(64), (0.1, 4.0)), even, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_warps_are_torchvisions(channels: int) -> None:
    pixels = pictures(6, channels, (18, 18)).float()
    negative = torch.tensor([False, True] * 3)
    bilinear = reference.InterpolationMode.BILINEAR
    for motion in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        amount = {"rotate": 25.0, "shear_x": 0.21, "shear_y": 0.21}.get(motion, 4.0)
        moved = warp(pixels, negative, motion, amount)
        for row, image in enumerate(pixels):
            signed = -amount if negative[row] else amount
            if motion == "rotate":
                expected = reference.rotate(image, signed, interpolation=bilinear)
            else:
                shift = [int(signed) if motion == f"translate_{axis}" else 0 for axis in "xy"]
                shear = [-float(np.degrees(np.arctan(signed))) if motion == f"shear_{axis}" else 0.0 for axis in "xy"]
                expected = reference.affine(
                    image, 0.0, shift, 1.0, shear, interpolation=bilinear, center=[0, 0] if any(shear) else None
                )
            torch.testing.assert_close(moved[row], expected, atol=0.05, rtol=0)


def test_warps_by_nothing_and_by_a_quarter() -> None:
    for channels in (1, 2, 3):
        pixels = pictures(4, channels, (9, 9)).float()
        sides = torch.tensor([False, True, False, True])
        for motion in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
            assert torch.equal(warp(pixels, sides, motion, 0.0), pixels)
        assert torch.equal(warp(pixels, ~sides & sides, "rotate", 90.0), pixels.rot90(1, (2, 3)))
        away = warp(pixels, sides, "translate_x", 20.0)
        assert away.unique().tolist() == [128.0 if channels == 2 else 0.0]  # type: ignore[no-untyped-call]


def test_randaugment_of_magnitude_zero_changes_no_strength() -> None:
    pixels, sides = pictures(4).float(), torch.tensor([False, True, False, True])
    changing = {"auto_contrast", "equalize", "invert", "solarize"}
    for name, change in randaugment.OPERATIONS.items():
        if name not in changing:
            assert torch.equal(change(pixels, sides, 0.0), pixels), name
        assert not torch.equal(change(smooth(4), sides, 1.0), smooth(4)) or name == "identity", name


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_every_operation_treats_a_row_by_itself(name: str, channels: int) -> None:
    change, sides = randaugment.OPERATIONS[name], torch.arange(37) % 2 == 1
    pixels = smooth(37, channels, 33) + torch.rand(37, channels, 33, 33, generator=torch.Generator().manual_seed(1)) / 2
    pixels = pixels.clamp(0, 255)
    whole, order = change(pixels, sides, 0.7), torch.randperm(37, generator=torch.Generator().manual_seed(2))
    assert float(whole.min()) >= 0.0 and float(whole.max()) <= 255.0
    assert torch.equal(change(pixels[order], sides[order], 0.7), whole[order])
    for row in (0, 1, 36):
        one = slice(row, row + 1)
        assert torch.equal(change(pixels[one], sides[one], 0.7), whole[one])


def test_randaugment_does_what_it_drew() -> None:
    images, ids = smooth(200, 3, 24).byte(), torch.arange(200)
    augment = AugmentConfig(randaugment={"operations": 2, "magnitude": 15})  # type: ignore[arg-type]
    drawn = parameters(ids, ids % 2, augment=augment, seed=5, size=(24, 24))
    rows = levels({"randaugment": {"operations": 2, "magnitude": 15}}, images, ids, ids % 2, 5)
    operations = list(randaugment.OPERATIONS.values())
    for row in range(200):
        pixels = images[row : row + 1].float()
        for choice, side in zip(drawn["randaugment"][row], drawn["randaugment/negative"][row], strict=True):
            if choice:
                pixels = operations[int(choice) - 1](pixels, side[None], 0.5)
        torch.testing.assert_close(rows[row], pixels[0] / 255, atol=1e-6, rtol=0)


def test_rows_choose_their_operation() -> None:
    pixels, choice = torch.zeros(6, 1, 1, 1), torch.tensor([2, 0, 1, 2, 0, 1])
    changed = change_rows(
        pixels, choice, [lambda part, rows: part + 10, lambda part, rows: part + rows[:, None, None, None]]
    )
    assert changed.flatten().tolist() == [0, 0, 10, 3, 0, 10] and bool((pixels == 0).all())


@pytest.mark.parametrize("fields", [{"grayscale": 0.1}, {"color_jitter": {"hue": 0.1}}, {"color_jitter": JITTER}])
@pytest.mark.parametrize("channels", [1, 2])
def test_colours_of_grey_images_are_refused(fields: dict[str, Any], channels: int) -> None:
    ids = torch.arange(3)
    with pytest.raises(ConfigError, match=r"data\.augment\.\S+: needs images of three channels, these have [12];"):
        levels(fields, pictures(3, channels), ids, ids)


def test_the_input_is_left_as_it_is() -> None:
    images, ids = pictures(20), torch.arange(20)
    before = images.clone()
    for fields, channels in CASES:
        if channels == 3:
            levels(fields, images, ids, ids)
            assert torch.equal(images, before)


def test_drawn_crops_of_another_size_are_recoloured_too() -> None:
    images, ids = pictures(40), torch.arange(40)
    augment = AugmentConfig(resized_crop=(0.05, 0.4), grayscale=1.0, blur=BLUR, randaugment=RAND)  # type: ignore[arg-type]
    moments: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3, "size": (6, 5)}
    rows = render(images, ids, ids + 1, augment=augment, seed=0, **moments)
    assert rows.shape == (40, 3, 6, 5)
    torch.testing.assert_close(rows[:, 0], rows[:, 1], atol=1e-6, rtol=0)
