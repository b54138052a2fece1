"""Intervals of a difference over test images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raydistill.evaluation.bootstrap import paired_interval


def plain_bootstrap(differences: np.ndarray, draws: int) -> np.ndarray:
    """Draw image after image, as the textbook does."""
    generator = np.random.default_rng(7)
    return differences[generator.integers(len(differences), size=(draws, len(differences)))].mean(axis=1)


def test_the_ends_are_those_of_drawing_image_after_image() -> None:
    generator = np.random.default_rng(0)
    one, other = ((generator.random(400) < share).astype(float) for share in (0.8, 0.7))
    low, high = paired_interval(one - other)
    expected = np.quantile(plain_bootstrap(one - other, 10_000), [0.025, 0.975])
    assert [low, high] == pytest.approx(expected, abs=0.004)


def test_the_width_is_that_of_a_normal_distribution_of_the_differences() -> None:
    difference = np.array([1.0] * 300 + [-1.0] * 100 + [0.0] * 1600)
    low, high = paired_interval(difference)
    deviation = difference.std() / math.sqrt(2000)
    assert (low + high) / 2 == pytest.approx(difference.mean(), abs=0.1 * deviation)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.05)


def test_what_both_find_hard_cancels() -> None:
    low, high = paired_interval([1.0] * 20 + [0.0] * 980)
    assert high - low < 0.02  # unpaired, two shares of a half over 1000 images lie up to 0.09 apart
    assert paired_interval([0.0] * 1000) == (0.0, 0.0)


def test_a_higher_level_and_fewer_images_widen_it() -> None:
    generator = np.random.default_rng(2)
    differences = generator.integers(-1, 2, 900)

    def width(images: int, level: float) -> float:
        low, high = paired_interval(differences[:images], level=level)
        return high - low

    assert width(900, 0.99) > width(900, 0.95) > width(900, 0.5)
    assert width(100, 0.95) > width(900, 0.95)


@pytest.mark.parametrize(("differences", "level"), [([], 0.95), ([[1.0]], 0.95), ([1.0, 0.0], 1.0)])
def test_what_cannot_be_drawn_from_is_said(differences: list, level: float) -> None:
    with pytest.raises(ValueError, match=r"expected|between 0 and 1"):
        paired_interval(differences, level=level)
