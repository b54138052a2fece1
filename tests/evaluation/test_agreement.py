"""What two networks have in common without labels: closed forms, and the definition written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.errors import ConfigError
from raydistill.evaluation.agreement import agreement, prediction_agreement
from raydistill.evaluation.similarity import linear_cka
from raydistill.measures import measure_behind, neighbours_of


def features(images: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, width, generator=torch.Generator().manual_seed(seed))


def on_circle(*angles: float) -> torch.Tensor:
    degrees = torch.tensor(angles).deg2rad()
    return torch.stack([degrees.cos(), degrees.sin()], dim=1)


def test_equal_embeddings_agree_wholly() -> None:
    same = features(50, 8)
    found = agreement(same, same, ["neighbours@1", "neighbours@10", "neighbours@49", "cka"])
    assert found == pytest.approx(
        {"val/neighbours@1": 100.0, "val/neighbours@10": 100.0, "val/neighbours@49": 100.0, "val/cka": 1.0}
    )


def test_neighbours_by_hand() -> None:
    """The two nearest by angle, the nearest first.

    Student: 1 2, 0 2, 1 0, 2 1. Teacher: 3 1, 0 3, 3 0, 0 2. Of the nearest, image 1 has its own; of both, images 0, 1,
    2 and 3 have one each.
    """
    student, teacher = on_circle(0, 10, 25, 60), on_circle(0, 20, -30, -10)
    assert agreement(student, 5 * teacher, ["neighbours@1", "neighbours@2"]) == {
        "val/neighbours@1": 25.0,
        "val/neighbours@2": 50.0,
    }


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40), st.data())
def test_neighbours_by_definition(seed: int, images: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, images - 1))
    student, teacher = features(images, 5, seed).double(), features(images, 3, seed + 1).double()
    common = 0
    for image in range(images):
        nearest = []
        for side in (student, teacher):
            cosines = {
                other: float(torch.nn.functional.cosine_similarity(side[image], side[other], dim=0))
                for other in range(images)
                if other != image
            }
            nearest.append(set(sorted(cosines, key=lambda other: -cosines[other])[:k]))
        common += len(nearest[0] & nearest[1])
    found = agreement(student, teacher, [f"neighbours@{k}"])
    assert found == pytest.approx({f"val/neighbours@{k}": 100.0 * common / (k * images)})


def test_every_image_is_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = features(301, 6), features(301, 3, seed=1) + features(301, 6)[:, :3]
    whole = agreement(left, right, ["neighbours@7"])
    monkeypatch.setattr("raydistill.evaluation.neighbours._BLOCK_ELEMENTS", 3000)
    assert agreement(left, right, ["neighbours@7"]) == pytest.approx(whole)
    disturbed = right.clone()
    disturbed[::2] = -disturbed[::2]
    assert agreement(left, disturbed, ["neighbours@7"]) != pytest.approx(whole)


def test_a_student_that_collapsed_or_diverged_agrees_with_nothing() -> None:
    teacher, measures = features(40, 4), ["neighbours@5", "cka"]
    broken = features(40, 6)
    broken[3, 2] = float("nan")
    assert set(agreement(broken, teacher, measures).values()) == {0.0}
    collapsed = agreement(torch.ones(40, 6), teacher, measures)
    assert collapsed["val/cka"] == 0.0 and collapsed["val/neighbours@5"] < 40.0
    assert linear_cka(features(40, 6), teacher) > 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("neighbors@10", r"did you mean 'neighbours@10'\? \(known: neighbours@K, cka\)"),
        ("cca", "did you mean 'cka'"),
        ("top1", "unknown measure"),
        ("neighbours", "whole number from 1 on"),
        ("neighbours@0", "whole number from 1 on"),
        ("neighbours@-3", "whole number from 1 on"),
        ("neighbours@1.5", "whole number from 1 on"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        neighbours_of(name)


def test_metrics_and_the_measures_behind_them() -> None:
    assert measure_behind("val/neighbours@10") == "neighbours@10" and measure_behind("val/cka") == "cka"
    assert [measure_behind(name) for name in ("val/top1", "val/peer1/top1", "train/kd", "cka")] == [None] * 4
    with pytest.raises(ConfigError, match="did you mean 'neighbours@7'"):
        measure_behind("val/neighbors@7")
    with pytest.raises(ConfigError, match="as in neighbours@10"):
        measure_behind("val/neighbours")


def test_predictions_agree_by_hand_and_never_where_one_is_not_a_number() -> None:
    student = torch.tensor([[3.0, 1.0, 0.0], [0.0, 5.0, 1.0], [1.0, 0.0, 2.0], [float("nan"), 1.0, 0.0]])
    teacher = torch.tensor([[9.0, 1.0, 8.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.1], [float("nan"), 1.0, 0.0]])
    assert prediction_agreement(student, teacher) == 50.0
    assert prediction_agreement(student[:3], 7 * student[:3] + 2) == 100.0
    with pytest.raises(ValueError, match="same images"):
        prediction_agreement(student, teacher[:2])
