"""docs/scaling.md and docs/cluster.md: formulae hold between ranks, and reckoned tables are those of the scripts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from raydistill.methods.registry import METHODS

ROOT = Path(__file__).parents[1]

pytest.importorskip("torchvision")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "experiments" / "benchmarks")
    return importlib.import_module


def test_what_two_ranks_exchange_is_what_the_formulae_say(benchmark: Any, tmp_path: Path) -> None:
    """Of unequal shares too: 21 images are 11 and 10."""
    volumes = benchmark("volumes")
    cases = [*volumes.cases()]
    assert {*METHODS} < {*cases}
    found = volumes.counted(cases, 2, 21, tmp_path)
    for label in cases:
        for rank in found:
            counted, reckoned = rank[label]
            assert counted == reckoned, label
    assert found[0]["crd"][0]["all_gather"] == 11 * (8 + 2 * 8 * 4) + 8
    assert found[0]["kd"][0]["all_gather"] == found[0]["kd"][0]["all_reduce"] == 0


def test_the_page_on_clusters_holds_the_costs_that_the_script_prints(benchmark: Any) -> None:
    costs = benchmark("costs")
    page = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    for table in costs.tables(costs.Prices()):
        assert table in page


def test_the_page_holds_the_tables_that_the_script_prints(benchmark: Any) -> None:
    reckoning = benchmark("reckoning")
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    for table in reckoning.tables(reckoning.Assumed()):
        assert table in page
