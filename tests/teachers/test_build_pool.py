"""How many actors build a cache, and what is told of their pace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydistill.config import Experiment
from raydistill.display import Pace
from raydistill.errors import ConfigError, RunError
from raydistill.teachers.cache.pool import Pool, choose_pool
from tests.conftest import digits

SMALL = [{"CPU": 2.0}]
LARGE = [{"CPU": 16.0, "memory": 1e9}, {"CPU": 8.0}]
GPUS = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}, {"memory": 1e9}]


def asking(folder: Path, use_gpu: Any = "auto", **cache: Any) -> Experiment:
    return digits(folder, cache={"root": str(folder), **cache}, scale={"use_gpu": use_gpu})


@pytest.mark.parametrize(
    ("nodes", "shards", "cache", "pool"),
    [
        (SMALL, 9, {}, Pool(1, 1, 2, 0.0)),
        (LARGE, 9, {}, Pool(6, 6, 4, 0.0)),
        (LARGE, 2, {}, Pool(2, 2, 8, 0.0)),
        (LARGE, 9, {"actors": 3}, Pool(3, 3, 8, 0.0)),
        (LARGE, 9, {"actors": [2, 12]}, Pool(2, 9, 2, 0.0)),
        (LARGE, 9, {"actors": [2, 100], "cpus_per_actor": 8}, Pool(2, 9, 8, 0.0)),
        (LARGE, 9, {"cpus_per_actor": 8}, Pool(3, 3, 8, 0.0)),
        (GPUS, 9, {}, Pool(4, 4, 4, 1.0)),
        (GPUS, 99, {"gpus_per_actor": 0.25}, Pool(16, 16, 1, 0.25)),
        (GPUS, 99, {"gpus_per_actor": 0.25, "cpus_per_actor": 4}, Pool(6, 6, 4, 0.25)),
        (GPUS, 99, {"gpus_per_actor": 2}, Pool(2, 2, 4, 2.0)),
        (GPUS, 99, {"gpus_per_actor": 0.5, "actors": [1, 8]}, Pool(1, 8, 2, 0.5)),
    ],
)
def test_pool(tmp_path: Path, nodes: Any, shards: int, cache: dict[str, Any], pool: Pool) -> None:
    assert choose_pool(asking(tmp_path, **cache), shards, nodes) == pool


def test_gpus_that_are_not_wanted(tmp_path: Path) -> None:
    assert choose_pool(asking(tmp_path, use_gpu=False), 9, GPUS) == Pool(6, 6, 4, 0.0)


@pytest.mark.parametrize(
    ("nodes", "given", "text"),
    [
        (
            SMALL,
            {"actors": 3},
            r"cache\.actors = 3: Ray has room for 2 actors of 1 CPUs each; it has 2 CPUs and 0 ",
        ),
        (SMALL, {"actors": [3, 5]}, r"cache\.actors = 3: Ray has room for 2"),
        (SMALL, {"cpus_per_actor": 4}, "building: Ray has room for 0 actors of 4 CPUs each"),
        (GPUS, {"actors": 5}, r"room for 4 actors of \d CPUs and 1 GPUs each; it has 24 CPUs and 4 GPUs on 2 nodes"),
        (SMALL, {"gpus_per_actor": 0.5}, r"cache\.gpus_per_actor = 0\.5, but Ray has no GPU"),
        (GPUS, {"gpus_per_actor": 0.5, "use_gpu": False}, r"cache\.gpus_per_actor = 0\.5, but scale\.use_gpu is false"),
        (SMALL, {"use_gpu": True}, "scale.use_gpu: true, but Ray has no GPU"),
    ],
)
def test_what_ray_has_not(tmp_path: Path, nodes: Any, given: dict[str, Any], text: str) -> None:
    with pytest.raises(RunError, match=text):
        choose_pool(asking(tmp_path, **given), 99, nodes)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"actors": [3, 2]}, "the least, 3, is more than the most, 2"),
        ({"actors": 0}, "actors"),
        ({"gpus_per_actor": 1.5}, "a part of one GPU or whole ones, not 1.5"),
        ({"gpus_per_actor": 0}, "gpus_per_actor"),
    ],
)
def test_impossible_pools(tmp_path: Path, given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        asking(tmp_path, **given)


def test_pace_counts_what_is_computed_now() -> None:
    pace = Pace()
    pace.see(9000, now=0.0)  # rows of an earlier build
    pace.see(9000, now=20.0)  # Ray starts
    assert pace.rate is None and pace.line(9000, 12000) == "9000/12000 rows"
    pace.see(9100, now=30.0)
    assert pace.rate is None
    pace.see(9300, now=32.0)
    assert pace.line(9300, 12000) == "9300/12000 rows  100 images/s  27 s left"
    pace.see(9300, now=34.0)
    pace.see(9500, now=36.0)
    assert pace.rate == pytest.approx(400 / 6)


def test_pace_forgets_what_is_long_ago() -> None:
    pace = Pace()
    for second in range(100):
        pace.see(10 * second if second < 50 else 500 + 1000 * (second - 50), now=float(second))
    assert pace.rate == pytest.approx(1000.0)
    assert pace.line(49_500, 4_049_500).endswith("1 h 06 min left")


def test_pace_starts_anew_with_another_cache() -> None:
    pace = Pace()
    for done, now in ((0, 0.0), (100, 1.0), (200, 2.0), (50, 10.0)):
        pace.see(done, now)
    assert pace.rate is None
    pace.see(60, 11.0)
    pace.see(70, 12.0)
    assert pace.rate == pytest.approx(10.0)
