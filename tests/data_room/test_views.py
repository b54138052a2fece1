"""Augmentation: a pure function of seed, id and view, equal to torchvision's operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from raydistill.data.augment_config import AugmentConfig
from raydistill.data.views import fresh_views, parameters, render, scheduled_views

AUGMENTS = [
    AugmentConfig(),
    AugmentConfig(flip=0.5),
    AugmentConfig(crop=4),
    AugmentConfig(crop=3, flip=0.5, cutout=5),
    AugmentConfig(resized_crop=(0.2, 1.0), flip=0.5),
    AugmentConfig(cutout=4),
]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def pictures(batch: int, height: int = 14, width: int = 11) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(batch)).byte()


def drawn(images: Tensor, ids: Tensor, views: Tensor, augment: AugmentConfig, seed: int = 0) -> Tensor:
    return render(images, ids, views, augment=augment, seed=seed, mean=MEAN, std=STD)


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    return (images.float() / 255 - mean) / std


@pytest.mark.parametrize("augment", AUGMENTS)
def test_view_zero_is_evaluation(augment: AugmentConfig) -> None:
    images = pictures(9)
    rows = drawn(images, torch.arange(9), torch.tensor([0, 1, 2] * 3), augment)
    torch.testing.assert_close(rows[::3], normalised(images[::3]), atol=1e-5, rtol=0)
    plain = drawn(images, torch.arange(9), torch.zeros(9, dtype=torch.int64), AugmentConfig())
    assert torch.equal(rows[::3], plain[::3])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(AUGMENTS),
    st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**40)), min_size=1, max_size=24),
    st.randoms(use_true_random=False),
    st.integers(0, 2**32),
)
def test_pixels_do_not_depend_on_the_batch(
    augment: AugmentConfig, rows: list[tuple[int, int]], random: object, seed: int
) -> None:
    images = pictures(len(rows))
    ids, views = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    whole = drawn(images, ids, views, augment, seed)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    cut = random.randint(0, len(rows))  # type: ignore[attr-defined]
    for part in (order[:cut], order[cut:]):
        if part:
            assert torch.equal(drawn(images[part], ids[part], views[part], augment, seed), whole[part])


def test_boxes_and_flips_are_torchvisions() -> None:
    images, ids, views = pictures(40), torch.arange(40), torch.arange(40) % 4
    for augment in (AugmentConfig(crop=4, flip=0.5), AugmentConfig(resized_crop=(0.1, 1.0), flip=0.5)):
        given_parameters = parameters(ids, views, augment=augment, seed=3, size=(14, 11))
        rows = drawn(images, ids, views, augment, seed=3)
        for row in range(40):
            top, left, height, width = given_parameters["box"][row].tolist()
            image = images[row].float()
            if augment.crop:
                expected = reference.pad(image, [4, 4, 4, 4])[:, top + 4 : top + 18, left + 4 : left + 15]
                assert (height, width) == (14, 11)
            else:
                expected = reference.resized_crop(image, top, left, height, width, [14, 11], antialias=True)
            if given_parameters["flip"][row]:
                expected = reference.horizontal_flip(expected)
            torch.testing.assert_close(rows[row], normalised(expected), atol=2e-4, rtol=0)


def test_parameters_have_their_ranges_and_frequencies() -> None:
    ids, views = torch.arange(20_000), torch.ones(20_000, dtype=torch.int64)
    chosen = parameters(ids, views, augment=AugmentConfig(crop=4, flip=0.3), seed=0, size=(28, 28))
    assert chosen["box"].dtype == torch.int16 and chosen["flip"].dtype == torch.bool
    assert torch.bincount(chosen["box"][:, 0].long() + 4).min() > 2000
    assert chosen["box"][:, :2].unique().tolist() == list(range(-4, 5))  # type: ignore[no-untyped-call]
    assert abs(float(chosen["flip"].float().mean()) - 0.3) < 0.015
    box = parameters(ids, views, augment=AugmentConfig(resized_crop=(0.25, 0.5)), seed=0, size=(64, 48))["box"].long()
    assert int(box.min()) >= 0
    assert bool(((box[:, 0] + box[:, 2] <= 64) & (box[:, 1] + box[:, 3] <= 48)).all())
    area, ratio = box[:, 2] * box[:, 3] / (64 * 48), box[:, 3] / box[:, 2]
    assert float(area.min()) > 0.23 and float(area.max()) < 0.53
    assert float(ratio.min()) > 0.7 and float(ratio.max()) < 1.4


def test_an_image_that_no_attempt_fits_is_cut_at_its_centre() -> None:
    ids = torch.arange(50)
    augment = AugmentConfig(resized_crop=(1.0, 1.0))
    box = parameters(ids, torch.ones_like(ids), augment=augment, seed=0, size=(10, 40))["box"]
    assert box.unique(dim=0).tolist() == [[0, 13, 10, 13]]  # type: ignore[no-untyped-call]


def test_seeds_and_views_differ() -> None:
    images, ids, one = pictures(32), torch.arange(32), torch.ones(32, dtype=torch.int64)
    augment = AugmentConfig(crop=4, flip=0.5)
    first = drawn(images, ids, one, augment)
    for other in (drawn(images, ids, one + 1, augment), drawn(images, ids, one, augment, seed=1)):
        assert int((first == other).flatten(1).all(1).sum()) < 6


def test_cutout_covers_a_square_with_the_mean() -> None:
    images, ids = torch.full((64, 3, 14, 11), 255, dtype=torch.uint8), torch.arange(64)
    rows = drawn(images, ids, torch.ones(64, dtype=torch.int64), AugmentConfig(cutout=4))
    holes = (rows == 0).all(1).flatten(1).sum(1)
    assert int(holes.max()) == 16 and int(holes.min()) >= 4


def test_cutout_is_scaled_with_a_drawn_crop() -> None:
    images, ids = torch.full((64, 3, 16, 16), 255, dtype=torch.uint8), torch.arange(64)
    augment = AugmentConfig(cutout=8, resized_crop=(0.2, 0.5))
    rows = render(images, ids, ids + 1, augment=augment, seed=0, mean=MEAN, std=STD, size=(8, 8))
    holes = (rows == 0).all(1).flatten(1).sum(1)
    assert rows.shape[2:] == (8, 8) and int(holes.max()) == 16 and int(holes.min()) >= 4


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 2**40), st.integers(0, 60))
def test_a_round_visits_each_view_once(count: int, cycle: int, seed: int, offset: int) -> None:
    ids = torch.arange(30) * 977
    epochs = range(cycle * count, (cycle + 1) * count)
    seen = torch.stack([scheduled_views(ids, epoch, count, seed, offset=offset) for epoch in epochs])
    assert torch.equal(seen.sort(0).values, torch.arange(1, count + 1)[:, None].expand(count, 30))


def test_schedules_differ_between_samples_and_within_a_step() -> None:
    ids = torch.arange(1000)
    first = scheduled_views(ids, 2, 5, 0)
    assert int(torch.bincount(first, minlength=6)[1:].min()) > 150
    assert not bool((first == scheduled_views(ids, 2, 5, 0, offset=2)).any())
    assert torch.equal(first[:10], scheduled_views(ids[:10], 2, 5, 0))


def test_fresh_views_never_repeat() -> None:
    ids = torch.arange(3)
    views = [int(fresh_views(ids, epoch, view, 3)[0]) for epoch in range(4) for view in range(3)]
    assert views == list(range(1, 13))
    assert fresh_views(ids, 0, 0, 1).dtype == torch.int64
