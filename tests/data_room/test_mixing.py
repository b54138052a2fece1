"""Mixup and CutMix: pure functions of seed, id and view, with the papers' distributions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch import Tensor

from raydistill.config_errors import explain
from raydistill.data.augment_config import AugmentConfig
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_train, split_train, training_ids
from raydistill.data.mixing import Mixture, Partners, blend, draw_mixture
from raydistill.data.views import render
from raydistill.errors import DataError

SIZE = (14, 11)
MIXUP = AugmentConfig.model_validate({"mixup": {"probability": 1.0}})
CUTMIX = AugmentConfig.model_validate({"cutmix": {"probability": 1.0}})
BOTH = AugmentConfig.model_validate(
    {"crop": 2, "flip": 0.5, "mixup": {"alpha": 0.4, "probability": 0.4}, "cutmix": {"probability": 0.5}}
)


def drawn(
    ids: Tensor, views: Tensor, augment: AugmentConfig, *, everything: Tensor | None = None, seed: int = 0
) -> Mixture:
    """The mixture of ``ids`` in a set that consists of them, or of ``everything``."""
    everything = ids if everything is None else everything
    partners = Partners.within(everything, everything)
    positions = torch.tensor([everything.tolist().index(number) for number in ids.tolist()])
    return draw_mixture(ids, positions, views, partners=partners, augment=augment, seed=seed, size=SIZE)


def many(augment: AugmentConfig, count: int = 20_000, view: int = 1) -> Mixture:
    ids = torch.arange(count)
    partners = Partners.within(ids, ids)
    views = torch.full_like(ids, view)
    return draw_mixture(ids, ids, views, partners=partners, augment=augment, seed=5, size=SIZE)


def mixed(images: Tensor, ids: Tensor, rows: Tensor, views: Tensor, augment: AugmentConfig) -> Tensor:
    """Mixed pixels of some rows of a set of images."""
    how: dict[str, Any] = {"augment": augment, "seed": 3, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    partners = Partners.within(ids, ids)
    size = int(images.shape[2]), int(images.shape[3])
    mixture = draw_mixture(ids[rows], rows, views, partners=partners, augment=augment, seed=3, size=size)
    own = render(images[rows], ids[rows], views, **how)
    return blend(own, render(images[mixture.positions], mixture.ids, views, **how), mixture)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([MIXUP, CUTMIX, BOTH]),
    st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=24, unique=True),
    st.integers(0, 2**31),
    st.randoms(use_true_random=False),
)
def test_pixels_depend_neither_on_the_batch_nor_on_the_order_of_the_set(
    augment: AugmentConfig, numbers: list[int], first_view: int, random: Any
) -> None:
    generator = torch.Generator().manual_seed(len(numbers))
    images = torch.randint(0, 256, (len(numbers), 3, *SIZE), generator=generator).byte()
    ids, rows = torch.tensor(numbers), torch.arange(len(numbers))
    views = first_view + rows
    whole = mixed(images, ids, rows, views, augment)
    order = list(range(len(numbers)))
    random.shuffle(order)
    cut = random.randint(1, len(numbers))
    shuffled = torch.tensor(order)
    for part in (torch.arange(cut), torch.arange(cut, len(numbers))):
        if len(part):
            found = mixed(images[shuffled], ids[shuffled], part, views[shuffled[part]], augment)
            assert torch.equal(found, whole[shuffled[part]])


@pytest.mark.parametrize("augment", [MIXUP, CUTMIX, BOTH])
def test_view_zero_is_not_mixed(augment: AugmentConfig) -> None:
    images = torch.randint(0, 256, (30, 3, *SIZE)).byte()
    ids = torch.arange(30) * 7
    mixture = drawn(ids, torch.zeros_like(ids), augment)
    assert not mixture.mixed.any() and not mixture.cut.any()
    assert torch.equal(mixture.ids, ids)
    plain = mixed(images, ids, torch.arange(30), torch.zeros_like(ids), AugmentConfig())
    assert torch.equal(mixed(images, ids, torch.arange(30), torch.zeros_like(ids), augment), plain)


def test_mixup_is_the_weighted_mean_of_both_views() -> None:
    images = torch.randint(0, 256, (12, 3, *SIZE)).byte()
    ids, views = torch.arange(12), torch.ones(12, dtype=torch.int64)
    augment = MIXUP.model_copy(update={"crop": 2, "flip": 0.5})
    mixture = draw_mixture(ids, ids, views, partners=Partners.within(ids, ids), augment=augment, seed=3, size=SIZE)
    alone = mixed(images, ids, ids, views, AugmentConfig(crop=2, flip=0.5)).double()
    share = mixture.share.double()[:, None, None, None]
    expected = share * alone + (1 - share) * alone[mixture.ids]
    torch.testing.assert_close(mixed(images, ids, ids, views, augment), expected.float())
    assert bool((mixture.share < 1).all()) and bool((mixture.ids != ids).all())


def test_cutmix_shows_the_partner_inside_the_box_alone() -> None:
    images = torch.randint(0, 256, (40, 3, *SIZE)).byte()
    ids, views = torch.arange(40), torch.ones(40, dtype=torch.int64)
    mixture = draw_mixture(ids, ids, views, partners=Partners.within(ids, ids), augment=CUTMIX, seed=3, size=SIZE)
    alone, found = (mixed(images, ids, ids, views, augment) for augment in (AugmentConfig(), CUTMIX))
    for row, (top, left, height, width) in enumerate(mixture.box.tolist()):
        expected = alone[row].clone()
        inside = (slice(None), slice(top, top + height), slice(left, left + width))
        expected[inside] = alone[int(mixture.ids[row])][inside]
        assert torch.equal(found[row], expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.05, 20.0), st.integers(1, 40), st.integers(1, 40))
def test_the_boxs_area_is_what_lambda_leaves(seed: int, alpha: float, height: int, width: int) -> None:
    ids = torch.arange(200)
    augment = AugmentConfig.model_validate({"cutmix": {"alpha": alpha, "probability": 1.0}})
    mixture = draw_mixture(
        ids,
        ids,
        torch.ones_like(ids),
        partners=Partners.within(ids, ids),
        augment=augment,
        seed=seed,
        size=(height, width),
    )
    top, left, tall, wide = mixture.box.T
    assert bool(((top >= 0) & (left >= 0) & (top + tall <= height) & (left + wide <= width)).all())
    area = (tall * wide).double() / (height * width)
    torch.testing.assert_close(1.0 - mixture.share.double(), area, atol=1e-7, rtol=0)
    assert torch.equal(mixture.mixed, area > 0) and torch.equal(mixture.cut, area > 0)


@pytest.mark.parametrize("alpha", [0.4, 0.8, 1.0, 5.0])
def test_shares_of_mixup_follow_the_beta_distribution(alpha: float) -> None:
    augment = AugmentConfig.model_validate({"mixup": {"alpha": alpha, "probability": 1.0}})
    shares = many(augment).share
    assert shares.dtype == torch.float32
    assert stats.kstest(shares.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert torch.equal((shares.double() * 2**24).round(), shares.double() * 2**24)  # no last bit of a library


def test_boxes_have_the_sides_of_the_paper_before_they_are_cut_off() -> None:
    mixture = many(CUTMIX)
    top, left, height, width = mixture.box.T
    whole = (top > 0) & (left > 0) & (top + height < SIZE[0]) & (left + width < SIZE[1])
    # Both sides are the same share of the image's, rounded down.
    difference = height[whole] / SIZE[0] - width[whole] / SIZE[1]
    assert bool((difference.abs() < 1 / 11).all()) and int(whole.sum()) > 1000
    # Lambda is uniform for alpha = 1; centres are uniform, so a box loses nothing on an infinite image alone.
    assert 0.6 < float(mixture.share.mean()) < 0.75


def test_partners_are_uniform_and_never_the_image_itself() -> None:
    ids = torch.tensor([3, 2**62, 50, 17, 2**40, 9])
    rows, views = torch.arange(6).repeat(4000), torch.arange(1, 4001).repeat_interleave(6)
    partners = Partners.within(ids, ids)
    mixture = draw_mixture(ids[rows], rows, views, partners=partners, augment=MIXUP, seed=0, size=SIZE)
    counts = torch.bincount(rows * 6 + mixture.positions, minlength=36).reshape(6, 6)
    assert counts.diagonal().tolist() == [0] * 6
    others = counts[~torch.eye(6, dtype=torch.bool)].reshape(6, 5)
    assert stats.chisquare(others.numpy(), axis=1).pvalue.min() > 0.001
    assert stats.chisquare(counts.sum(dim=0).numpy()).pvalue > 0.001


def test_an_image_beside_the_training_images_is_mixed_with_any_of_them() -> None:
    training, outside = torch.arange(5), torch.arange(100, 3100)
    mixture = draw_mixture(
        outside,
        torch.arange(5, 3005),
        torch.ones_like(outside),
        partners=Partners.within(training, torch.cat([training, outside])),
        augment=MIXUP,
        seed=0,
        size=SIZE,
    )
    assert stats.chisquare(torch.bincount(mixture.ids).numpy()).pvalue > 0.001
    assert torch.equal(mixture.ids, mixture.positions)


def test_each_way_of_mixing_has_its_probability() -> None:
    mixture = many(BOTH)
    assert abs(float(mixture.cut.float().mean()) - 0.5) < 0.015
    assert abs(float((mixture.mixed & ~mixture.cut).float().mean()) - 0.4) < 0.015
    other = many(BOTH, view=2)
    assert int((mixture.ids == other.ids).sum()) < 0.1 * 0.1 * 20_000 + 100  # views differ


def test_what_is_drawn_never_changes() -> None:
    """Caches on disk were made with these draws, on this and other devices."""
    mixture = drawn(torch.arange(8) * 977, torch.arange(8) % 3, BOTH, seed=7)
    assert mixture.ids.tolist() == [0, 1954, 2931, 2931, 4885, 2931, 5862, 4885]
    assert mixture.positions.tolist() == [0, 2, 3, 3, 5, 3, 6, 5]
    assert (mixture.share * 2**24).tolist() == [
        16777216.0,
        11874783.0,
        8388608.0,
        16777216.0,
        13285706.0,
        12964212.0,
        16777216.0,
        16172193.0,
    ]
    assert mixture.box[mixture.cut].tolist() == [[5, 0, 9, 5], [0, 4, 11, 7], [0, 6, 7, 5]]


def test_held_out_images_are_not_among_the_partners() -> None:
    config = DataConfig.model_validate({"name": "digits", "subset": 200, "validation": 0.2})
    images = load_train(config)
    splits = split_train(images, config)
    ids = training_ids(images, validation=0.2, split_seed=0)
    assert torch.equal(ids, splits.train.ids.sort().values)
    assert torch.equal(training_ids(images.take(torch.randperm(200)), validation=0.2, split_seed=0), ids)
    partners = Partners.within(ids, images.ids)
    assert torch.equal(images.ids[partners.positions], ids)
    views = torch.ones_like(images.ids)
    mixture = draw_mixture(
        images.ids, torch.arange(200), views, partners=partners, augment=BOTH, seed=0, size=images.shape[1:]
    )
    assert not torch.isin(mixture.ids[mixture.mixed], splits.validation.ids).any()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"augment": {"mixup": {"probability": 0.7}, "cutmix": {}}}, "are 1.2 together, but a view is mixed in one"),
        (
            {"augment": {"mixup": {"probability": 1.5}}},
            "augment.mixup.probability = 1.5: must be less than or equal to",
        ),
        ({"augment": {"mixup": {"probability": 0}}}, "augment.mixup.probability = 0: must be greater than 0"),
        ({"augment": {"mixup": {"alpha": 0}}}, "augment.mixup.alpha = 0: must be greater than or equal to 0.01"),
        ({"augment": {"cutmix": {"beta": 1}}}, "augment.cutmix.beta: unknown key"),
        (
            {
                "name": "image_folder",
                "root": "images",
                "on_error": "skip",
                "modalities": {"student": "rgb", "teacher_root": "depth"},
                "augment": {"cutmix": {}},
            },
            "augment.cutmix: draws partners among images that both sides can read",
        ),
    ],
)
def test_mistakes_are_told_with_their_path(data: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate({"name": "digits"} | data)
    assert line in "\n".join(explain(caught.value, DataConfig))


def test_one_training_image_has_no_partner() -> None:
    data = {"name": "digits", "subset": 4, "validation": 0.7, "augment": {"cutmix": {}}}
    config = DataConfig.model_validate(data)
    with pytest.raises(DataError, match=r"data\.augment\.cutmix: needs 2 training images or more, but there is 1"):
        split_train(load_train(config), config)


def test_switched_on_it_is_recorded_and_read_back() -> None:
    assert BOTH.mixing == "mixup" and CUTMIX.mixing == "cutmix" and AugmentConfig().mixing is None
    assert MIXUP.operations["mixup"] == {"alpha": 0.8, "probability": 1.0} and "cutmix" not in MIXUP.operations
    assert AugmentConfig(**BOTH.operations) == BOTH
    assert not MIXUP.changes  # `render` draws images by themselves
