"""Whose images are taken, byte for byte, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import TensorDataset

from raydistill.api.images import pixels_of, samples
from raydistill.errors import DataError

COLOURS = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
GREYS = COLOURS[:, :, :1]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(COLOURS),
        COLOURS,
        COLOURS.transpose(2, 0, 1),
        torch.from_numpy(COLOURS).permute(2, 0, 1),
        torch.from_numpy(COLOURS),
        torch.from_numpy(COLOURS).permute(2, 0, 1).float() / 255,
        (COLOURS / 255).astype(np.float64),
    ],
    ids=["pil", "array", "channels first", "tensor", "channels last", "float tensor", "float array"],
)
def test_colour_images_of_every_kind_are_the_same_bytes(image: Any) -> None:
    assert np.array_equal(pixels_of(image, "x"), COLOURS)


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(GREYS[:, :, 0]), GREYS[:, :, 0], GREYS, torch.from_numpy(GREYS).permute(2, 0, 1)],
    ids=["pil", "flat", "array", "tensor"],
)
def test_grey_images_keep_one_channel(image: Any) -> None:
    assert np.array_equal(pixels_of(image, "x"), GREYS)


def test_three_by_three_pixels_are_read_as_their_kind_is_written() -> None:
    values = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(pixels_of(values, "x"), values)
    assert np.array_equal(pixels_of(torch.from_numpy(values), "x"), values.transpose(1, 2, 0))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=12))
def test_what_to_tensor_makes_of_bytes_is_undone_exactly(levels: list[int]) -> None:
    values = torch.tensor([levels], dtype=torch.uint8)
    assert np.array_equal(pixels_of(values.float().div(255), "x")[:, :, 0], values.numpy())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 2, 2), 1.5), r"x: values from 1.5 to 1.5, not in \[0, 1\]; if they are normalised"),
        (torch.full((1, 2, 2), -0.1), r"x: values from -0.1 to -0.1"),
        (torch.full((1, 2, 2), float("nan")), "x: values from nan to nan"),
        (torch.full((1, 2, 2), 0.5), "x: 0.5 is no level of 8 bits"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), "x: numbers of type int64; give uint8"),
        (torch.zeros(1, 2, 2, dtype=torch.float16), "x: numbers of type float16; give uint8"),
        (torch.zeros(2, 4, 4), r"x: \[2, 4, 4\], but an image has one channel or three"),
        (torch.zeros(5), r"x: \[5\], but an image has"),
        (Image.new("RGBA", (2, 2)), r"x: an image of mode RGBA; convert\('RGB'\)"),
        ("photo.png", "x: str is no image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_that_cannot_be_taken_exactly_are_refused(image: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pixels_of(image, "x")


class Random:
    """Items that are drawn anew each time."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index >= 50:
            raise IndexError
        return torch.randint(0, 256, (1, 4, 4), dtype=torch.uint8), index % 5


def test_random_augmentation_in_a_data_set_is_refused() -> None:
    with pytest.raises(DataError, match=r"dataset\[0\]: gives other pixels the second time; take random changes out"):
        list(samples(Random(), "dataset"))


IMAGES = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize("labels", [[0, 1, 2], np.arange(3), torch.arange(3)], ids=["list", "array", "tensor"])
def test_labels_are_whole_numbers_of_any_kind(labels: Any) -> None:
    found = list(samples([(IMAGES[row], labels[row]) for row in range(3)], "dataset"))
    assert [sample.label for sample in found] == [0, 1, 2]


@pytest.mark.parametrize(
    "data", [IMAGES, IMAGES.numpy(), list(IMAGES), TensorDataset(IMAGES)], ids=["tensor", "array", "list", "set"]
)
def test_images_alone_have_no_labels(data: Any) -> None:
    assert [sample.label for sample in samples(data, "dataset")] == [None] * 3


def test_a_pair_of_arrays_is_a_data_set() -> None:
    found = list(samples((IMAGES.numpy(), torch.tensor([2, 0, 1])), "dataset"))
    assert [sample.label for sample in found] == [2, 0, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([]), "dataset: list_iterator has no length and items by number; give a map-style data set"),
        ([], "dataset: no image in it"),
        ((IMAGES, torch.zeros(2)), "dataset: 3 images, but 2 labels"),
        ([(IMAGES[0], 0.5)], r"dataset\[0\]: label 0.5; a label is the whole number of a class"),
        ([(IMAGES[0], torch.zeros(10))], r"dataset\[0\]: label Tensor; a label is"),
        ([(IMAGES[0], -1)], r"dataset\[0\]: label -1 is below 0"),
        ([(IMAGES[0], 1, 2)], r"dataset\[0\]: 3 parts; an item is an image"),
        ([(IMAGES[0], 1), IMAGES[1]], r"dataset\[1\]: images with labels and without"),
        ([IMAGES[0], torch.from_numpy(COLOURS)], r"dataset\[1\]: 3 channels, but 1 in the images before"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_sets_that_cannot_be_taken_are_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(samples(data, "dataset"))


def test_an_error_of_a_data_set_is_told_with_its_index() -> None:
    class Broken(Random):
        def __getitem__(self, index: int) -> Any:
            raise KeyError("no such file")

    with pytest.raises(DataError, match=r"dataset\[0\]: KeyError: 'no such file'"):
        list(samples(Broken(), "dataset"))
