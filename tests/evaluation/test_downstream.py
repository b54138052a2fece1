"""Results of other tasks beside the report card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydistill.errors import DataError
from raydistill.evaluation.downstream import FRESH, STUDENT, write_downstream


def test_what_is_there_stays_and_what_is_measured_again_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "detection.json"
    write_downstream(path, STUDENT, "voc", {"ap": 1.0, "ap50": 2.0}, {"detection": {"seed": 0}})
    write_downstream(path, FRESH, "voc", {"ap": 0.5}, {"detection": {"seed": 1}})
    write_downstream(path, STUDENT, "coco", {"ap": 3.0}, {"detection": {"seed": 2}})
    write_downstream(path, STUDENT, "voc", {"ap": 4.0}, {"detection": {"seed": 3}})
    write_downstream(path, STUDENT, "voc", {"probe": 5.0}, {"probe": {"seed": 4}})
    assert json.loads(path.read_text()) == {
        "student": {"voc/ap": 4.0, "voc/ap50": 2.0, "coco/ap": 3.0, "voc/probe": 5.0},
        "fresh": {"voc/ap": 0.5},
        "settings": {
            "voc, student": {"detection": {"seed": 3}, "probe": {"seed": 4}},
            "voc, fresh": {"detection": {"seed": 1}},
            "coco, student": {"detection": {"seed": 2}},
        },
    }


def test_a_damaged_file_is_told_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "detection.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"detection.json: cannot be read: .*; move it away"):
        write_downstream(path, STUDENT, "voc", {"ap": 1.0}, {})
    assert path.read_text() == "{"
