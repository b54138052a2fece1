"""Measures of segmentation in closed form, and a probe that must find what a plane can tell apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from raydistill.evaluation.segmentation import (
    IGNORE,
    PROBE,
    mean_iou,
    pixel_accuracy,
    pixel_counts,
    pixel_loss,
    segmentation_probe,
)

TRUE = torch.tensor([[[0, 0, 1], [1, 2, IGNORE]]])
SAID = torch.tensor([[[0, 1, 1], [1, 0, 2]]])


def test_pixels_are_counted_by_class_and_ignored_ones_are_not() -> None:
    counts = pixel_counts(SAID, TRUE, num_classes=4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert pixel_accuracy(counts) == pytest.approx(100 * 3 / 5)
    assert mean_iou(counts) == pytest.approx(100 * (1 / 3 + 2 / 3 + 0) / 3)  # class 3 is nowhere


@given(st.integers(0, 2**31), st.integers(2, 6))
def test_iou_is_scikit_learns_jaccard_score(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    true, said = torch.randint(classes, (2, 3, 4, 5), generator=generator)
    there = torch.unique(torch.cat([true, said])).tolist()
    wanted = jaccard_score(true.flatten().numpy(), said.flatten().numpy(), average="macro", labels=there)
    assert mean_iou(pixel_counts(said, true, num_classes=classes)) == pytest.approx(100 * wanted)


def test_counts_of_batches_add_up_to_those_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    true, said = torch.randint(3, (2, 6, 4, 4), generator=generator)
    parts = [pixel_counts(a, b, num_classes=3) for a, b in zip(said.split(2), true.split(2), strict=True)]
    assert torch.equal(torch.stack(parts).sum(dim=0), pixel_counts(said, true, num_classes=3))


def test_the_loss_is_the_mean_over_the_pixels_that_are_asked_for() -> None:
    scores = torch.randn(1, 3, 2, 3)
    logs = scores.log_softmax(dim=1)
    asked = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    wanted = -sum(logs[0, TRUE[0, row, column], row, column] for row, column in asked) / 5
    assert torch.allclose(pixel_loss(scores, TRUE), wanted)  # type: ignore[arg-type]
    assert pixel_loss(scores, torch.full_like(TRUE, IGNORE)) == 0


def test_the_probe_finds_classes_that_a_plane_tells_apart_at_every_position() -> None:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(3, (12, 4, 5), generator=generator)
    directions = torch.randn(3, 8, generator=generator)
    maps = (1000 * directions[coarse]).permute(0, 3, 1, 2) + torch.randn(12, 8, 4, 5, generator=generator)
    found = segmentation_probe(maps[:8], coarse[:8], maps[8:], num_classes=3, seed=0)
    assert torch.equal(found, coarse[8:])
    fine = coarse.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    larger = segmentation_probe(maps[:8], fine[:8], maps[8:], num_classes=3, seed=0)
    assert larger.shape == (4, 16, 20)
    assert pixel_accuracy(pixel_counts(larger, fine[8:], num_classes=3)) > 75  # bilinear scores blur the edges


def test_the_probe_is_a_function_of_its_seed_and_learns_nothing_from_ignored_pixels() -> None:
    generator = torch.Generator().manual_seed(2)
    maps, labels = torch.randn(6, 4, 3, 3, generator=generator), torch.randint(3, (6, 3, 3), generator=generator)
    few = replace(PROBE, epochs=3, batch_size=2)

    def probe(seed: int, labels: torch.Tensor) -> torch.Tensor:
        return segmentation_probe(maps, labels, maps, num_classes=3, seed=seed, protocol=few)

    assert torch.equal(probe(0, labels), probe(0, labels))
    nothing = torch.full_like(labels, IGNORE)
    assert torch.equal(probe(0, nothing), torch.zeros_like(labels))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="a class for each pixel"):
        pixel_counts(SAID[:, :1], TRUE, num_classes=3)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\)"):
        pixel_counts(SAID, TRUE, num_classes=2)
    with pytest.raises(ValueError, match="no pixel to be named"):
        mean_iou(torch.zeros(3, 3, dtype=torch.int64))
    maps = torch.zeros(2, 4, 3, 3)
    with pytest.raises(ValueError, match=r"maps \[M, D, h, w\]"):
        segmentation_probe(maps, torch.zeros(1, 3, 3), maps, num_classes=2, seed=0)
    with pytest.raises(ValueError, match="train_labels must lie"):
        segmentation_probe(maps, torch.full((2, 3, 3), 5), maps, num_classes=2, seed=0)
