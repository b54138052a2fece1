"""Average precision against values that can be told without a library."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raydistill.evaluation.detection import average_precisions

pytest.importorskip("pycocotools")

NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}


def there(*boxes: tuple[float, ...], labels: list[int], **more: list[float] | list[bool]) -> dict[str, Tensor]:
    given = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}
    return given | {name: torch.tensor(values) for name, values in more.items()}


TRUTH = [there((0, 0, 10, 10), (20, 20, 40, 30), labels=[1, 2]), there((5, 5, 25, 45), labels=[1])]


def test_who_finds_all_has_a_hundred_and_who_finds_nothing_has_none() -> None:
    perfect = [{**each, "scores": torch.ones(len(each["labels"]))} for each in TRUTH]
    assert average_precisions(TRUTH, perfect) == pytest.approx({"ap": 100.0, "ap50": 100.0, "ap75": 100.0})
    assert average_precisions(TRUTH, [NOTHING, NOTHING]) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}


def test_a_box_counts_up_to_its_overlap() -> None:
    """Overlap 0.8: found at 0.5 to 0.8, seven of the ten thresholds."""
    found = average_precisions(
        [there((0, 0, 10, 10), labels=[1])], [there((0.0, 0.0, 10.0, 8.0), labels=[1], scores=[0.9])]
    )
    assert found == pytest.approx({"ap": 70.0, "ap50": 100.0, "ap75": 100.0})


def test_a_wrong_box_of_higher_score_halves_the_precision() -> None:
    found = there((50.0, 50.0, 60.0, 60.0), (0.0, 0.0, 10.0, 10.0), labels=[1, 1], scores=[0.9, 0.8])
    assert average_precisions([there((0, 0, 10, 10), labels=[1])], [found])["ap50"] == pytest.approx(50.0)


def test_classes_count_alike_and_a_wrong_class_finds_nothing() -> None:
    found = [there((0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 40.0, 30.0), labels=[1, 1], scores=[0.9, 0.1]), NOTHING]
    half = 51 / 101  # one of the two boxes of class 1 is found first: precision 1 at the recalls 0, 0.01, ..., 0.5
    assert average_precisions(TRUTH, found)["ap50"] == pytest.approx(100 * half / 2)


def test_ignored_boxes_are_neither_asked_for_nor_counted_against_a_detector() -> None:
    truth = [there((0, 0, 10, 10), (20, 20, 40, 30), labels=[1, 1], ignored=[False, True])]
    said = there((0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 40.0, 30.0), labels=[1, 1], scores=[0.5, 0.9])
    assert average_precisions(truth, [said])["ap"] == pytest.approx(100.0)
    alone = {name: value[:1] for name, value in said.items()}
    assert average_precisions(truth, [alone])["ap"] == pytest.approx(100.0)


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="as many images as truths expected, got 1 and 2"):
        average_precisions(TRUTH, [NOTHING])
    with pytest.raises(ValueError, match="no box to be found"):
        average_precisions([there((0, 0, 10, 10), labels=[1], ignored=[True])], [NOTHING])
