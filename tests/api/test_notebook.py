"""The walk through ``docs/python.md`` does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import raydistill

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_every_block_of_the_page_runs_in_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    cells: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"cell {number}", "exec"), cells)
    assert type(cells["result"].student) is cells["Net"]
    assert cells["result"].top1 > 50
    assert len(cells["best"].trials) == 4
    assert (tmp_path / "report.html").is_file()
    assert raydistill.export(cells["result"].run, "torch")["max_abs_diff"] < 1e-4
