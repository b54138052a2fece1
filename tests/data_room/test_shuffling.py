"""Quality of the shuffling: an epoch's order is a whole random permutation, whatever the layout of the files.

A random permutation of n places moves an image by (n^2 - 1) / (3n) places on average, fixes one image, goes up in half
of its neighbouring pairs, and has its classes in each batch as if they were drawn without replacement: with mean
B K / n and the hypergeometric variance B (K / n) (1 - K / n) (n - B) / (n - 1). What reads only a window or a shard
ahead, as a shuffle buffer does, misses all of these.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from raydistill.data.batching import Batching
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_train
from raydistill.data.image_set import DecodedImages
from raydistill.data.resident import ResidentSet
from raydistill.errors import ConfigError
from tests.data_room.files import write_folder

IMAGES, EPOCHS = 10_000, 50
WIDE = 4.5
"""Standard deviations that a mean may be off; seven in a million random orders are."""


def set_of(count: int, labels: Tensor | None = None) -> ResidentSet:
    """Images of one pixel."""
    pixels = torch.zeros((count, 1, 1, 1), dtype=torch.uint8)
    known = {"num_classes": 10, "mean": (0.5,), "std": (0.5,)}
    return ResidentSet(DecodedImages(decoded=pixels, labels=labels, ids=torch.arange(count), **known), "cpu")


@pytest.fixture(scope="module")
def orders() -> Tensor:
    """Of 50 epochs, int64 [50, 10000]."""
    images = set_of(IMAGES)
    return torch.stack([images.order(epoch, 3) for epoch in range(EPOCHS)])


def test_an_image_moves_by_a_third_of_the_set(orders: Tensor) -> None:
    moved = (orders - torch.arange(IMAGES)).abs().double()
    expected = (IMAGES**2 - 1) / (3 * IMAGES)
    # Var |i - p(i)| of one place is n^2 / 18 to leading order; places are almost independent.
    deviation = IMAGES / np.sqrt(18 * moved.numel())
    assert abs(float(moved.mean()) - expected) < WIDE * deviation
    assert stats.kstest(moved.mean(1), "norm", (expected, IMAGES / np.sqrt(18 * IMAGES))).pvalue > 1e-4


def test_every_place_is_as_likely_for_every_image(orders: Tensor) -> None:
    """From each tenth of the set as many images come into each tenth of the epoch."""
    tenths = IMAGES // 10
    sources, targets = orders // tenths, (torch.arange(IMAGES) // tenths).expand_as(orders)
    counts = torch.bincount((sources * 10 + targets).flatten(), minlength=100)
    # Rows and columns are full, so of a 10 x 10 table 81 degrees of freedom are left.
    scale = (IMAGES - 1) / IMAGES
    found = scale * float(((counts - counts.double().mean()) ** 2 / counts.double().mean()).sum())
    assert 1e-4 < stats.chi2.sf(found, 81) < 1 - 1e-4


def test_neighbours_and_fixed_places_are_those_of_a_random_permutation(orders: Tensor) -> None:
    rises = (orders[:, 1:] > orders[:, :-1]).sum(1).double()  # Eulerian: variance (n + 1) / 12
    assert abs(float(rises.mean()) - (IMAGES - 1) / 2) < WIDE * np.sqrt((IMAGES + 1) / 12 / EPOCHS)
    fixed = (orders == torch.arange(IMAGES)).sum(1)  # Poisson of mean 1
    assert abs(float(fixed.double().mean()) - 1) < WIDE / np.sqrt(EPOCHS)
    together = ((orders[:, 1:] - orders[:, :-1]) == 1).sum(1)  # files that were neighbours still are: as rarely
    assert abs(float(together.double().mean()) - 1) < WIDE / np.sqrt(EPOCHS)


def test_no_epoch_is_like_another(orders: Tensor) -> None:
    """Two epochs have one place in common on average, and their orders are not correlated."""
    common = torch.tensor([float((orders[i] == orders[i + 1]).sum()) for i in range(EPOCHS - 1)])
    assert abs(float(common.mean()) - 1) < WIDE / np.sqrt(EPOCHS - 1)
    correlations = torch.corrcoef(orders.double())[torch.triu(torch.ones(EPOCHS, EPOCHS), 1).bool()]
    assert float(correlations.abs().max()) < 6 / np.sqrt(IMAGES - 1)
    assert len({tuple(order[:20].tolist()) for order in orders}) == EPOCHS


@pytest.mark.parametrize("batch_size", [50, 64, 256])
def test_batches_mix_classes_that_lie_in_folders_one_after_the_other(batch_size: int) -> None:
    """Composition of the batches of a class-sorted set against the hypergeometric distribution."""
    classes, each = 10, 500
    count = classes * each
    labels = torch.arange(classes).repeat_interleave(each)
    images = set_of(count, labels)
    batching = Batching(count, batch_size)
    held = torch.stack(
        [
            torch.bincount(labels[batch], minlength=classes)
            for epoch in range(20)
            for batch in images.batches(epoch, batching, seed=1)
        ]
    ).double()
    expected = batch_size / classes
    variance = expected * (1 - 1 / classes) * (count - batch_size) / (count - 1)
    # Over the classes of one batch, sum (x - e)^2 / variance * (K - 1) / K is chi-square of K - 1 degrees of freedom.
    scores = ((held - expected) ** 2).sum(1) / variance * (classes - 1) / classes
    assert abs(float(scores.mean()) - (classes - 1)) < WIDE * np.sqrt(2 * (classes - 1) / len(scores))
    assert float(held.max()) < expected + 8 * np.sqrt(variance)
    grid = np.arange(batch_size + 1)
    likely = stats.hypergeom(count, each, batch_size).pmf(grid)
    seen = torch.bincount(held[:, 0].long(), minlength=batch_size + 1).numpy()
    often = likely * len(held) > 5
    chi = ((seen - likely * len(held)) ** 2 / (likely * len(held)))[often].sum()
    assert stats.chi2.sf(chi, often.sum() - 1) > 1e-4


def test_a_folder_is_as_shuffled_as_anything_else(tmp_path: Path) -> None:
    """The order knows of no files: of a folder of classes it is that of any set with as many images."""
    write_folder(tmp_path, classes=("a", "b", "c"), each=7)
    for reading in ("resident", "stream"):
        values = {"name": "image_folder", "root": str(tmp_path), "image_size": 8, "reading": reading}
        images = ResidentSet(load_train(DataConfig.model_validate(values)), "cpu")
        assert images.labels is not None and images.labels.tolist() == sorted(images.labels.tolist())
        for epoch in range(3):
            assert torch.equal(images.order(epoch, 5), set_of(21).order(epoch, 5))


@settings(max_examples=150, deadline=None)
@given(
    images=st.integers(1, 400),
    batch_size=st.integers(2, 90),
    workers=st.integers(1, 6),
    accumulate=st.integers(1, 4),
    epoch=st.integers(0, 5),
    drop_last=st.booleans(),
)
def test_all_workers_together_show_every_image_once(
    *, images: int, batch_size: int, workers: int, accumulate: int, epoch: int, drop_last: bool
) -> None:
    """Without ``drop_last`` nothing is left out; with it, whole batches of different images are shown."""
    try:
        batching = Batching(images, batch_size, workers, accumulate, drop_last)
    except ConfigError:  # a worker would have nothing to do
        return
    data = set_of(images)
    shown = torch.cat([torch.cat(list(data.batches(epoch, batching, seed=2, rank=rank))) for rank in range(workers)])
    assert len(shown) == batching.images_per_epoch and len(shown.unique()) == len(shown)
    if not drop_last:
        assert sorted(shown.tolist()) == list(range(images))
    else:
        assert images - len(shown) == (images % batch_size if images > batch_size else 0)
