"""Choice of stages, and what is said where it does not fit the networks."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from raydistill.config_errors import explain
from raydistill.errors import ConfigError
from raydistill.methods.at import AT
from raydistill.methods.fitnet import FitNet
from tests.methods.support import tiny_setting


def test_pairs_stages_in_their_order() -> None:
    several, one = AT(stages=(3, 1), teacher_stages=(0, 2)), FitNet(stage=1, teacher_stage=0)
    assert several.stage_pairs() == [(3, 0), (1, 2)]
    assert one.stage_pairs() == [(1, 0)]
    assert several.needs().student == {0: {"features/1", "features/3"}}
    assert several.needs().teacher == {0: {"features/0", "features/2"}}
    assert one.needs().teacher == {0: {"features/0"}}


def test_the_teachers_stages_are_the_students_by_default() -> None:
    assert AT().stage_pairs() == [(1, 1), (2, 2), (3, 3)]
    assert FitNet(stage=0).stage_pairs() == [(0, 0)]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"stages": []}, r"methods\.at\.stages = .*: must have at least one entry"),
        ({"stages": [1, -1]}, r"methods\.at\.stages\.1 = -1: must be greater than or equal to 0"),
        (
            {"stages": [1, 2], "teacher_stages": [1]},
            r"methods\.at\.teacher_stages = .*: must be as long as 'stages'.* 2",
        ),
    ],
)
def test_wrong_stages_give_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AT.model_validate(given)
    (found,) = explain(caught.value, AT, "methods.at")
    assert re.match(line, found), found


def test_a_stage_that_a_network_lacks_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"^methods\.at\.stages: the student has no map 'features/4' \(it has: .*/3\)$"
    ):
        AT(stages=(1, 4), teacher_stages=(1, 2)).check(tiny_setting())
    with pytest.raises(ConfigError, match=r"^methods\.fitnet\.teacher_stage: the teacher has no map 'features/9'"):
        FitNet(teacher_stage=9).check(tiny_setting())
