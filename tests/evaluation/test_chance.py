"""A network that names one class for every image is told as one that has learnt nothing."""

from __future__ import annotations

import pytest
import torch

from raydistill.evaluation.chance import chance_warnings

LABELS = torch.tensor([0, 1, 1, 2, 2, 2])


@pytest.mark.parametrize("top1", [0.0, 33.33, 50.0])
def test_what_one_class_for_all_gives_is_told(top1: float) -> None:
    (said,) = chance_warnings(top1, LABELS)
    assert f"val/top1 is {top1:.2f} %, and one class for all images gives 50.00 %" in said


def test_nothing_is_said_of_more_or_where_nothing_was_measured() -> None:
    assert chance_warnings(66.67, LABELS) == chance_warnings(None, LABELS) == chance_warnings(50.0, None) == []
