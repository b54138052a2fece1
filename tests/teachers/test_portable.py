"""Other tools read the shards as they are, and a page's few lines turn them into numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow.parquet as pq
import pytest
import torch

from raydistill.errors import ConfigError
from raydistill.teachers.cache import manage
from raydistill.teachers.cache.manifest import SHARDS
from raydistill.teachers.cache.read import TeacherCache
from tests.teachers.conftest import ENCODINGS

PAGE = Path(__file__).parents[2] / "docs" / "cache.md"
Columns = Mapping[str, Any]


def with_duckdb(path: Path) -> Columns:
    with duckdb.connect() as connection:
        return connection.execute("SELECT * FROM read_parquet(?)", [str(path)]).fetchnumpy()


TOOLS: dict[str, Callable[[Path], Columns]] = {
    "pandas": pd.read_parquet,
    "pyarrow": lambda path: pq.read_table(path).to_pydict(),
    "duckdb": with_duckdb,
    "polars": polars.read_parquet,
}


@pytest.fixture(scope="module")
def decode() -> Callable[[Path, Columns, str], np.ndarray[Any, Any]]:
    (code,) = re.findall(r"```python\n(import json\n.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["decode"]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("encoding", ["float32", *ENCODINGS])
def test_tools_read_the_rows(
    caches: dict[str, TeacherCache],
    decode: Callable[[Path, Columns, str], np.ndarray[Any, Any]],
    tool: str,
    encoding: str,
) -> None:
    cache = caches[encoding]
    for record in cache.manifest.shards[-2:]:  # a whole and a shorter one, of the augmented view
        shard = cache.path / SHARDS / record.name
        columns = TOOLS[tool](shard)
        ids = np.asarray(columns["sample_id"])
        assert len(ids) == record.rows
        assert set(np.asarray(columns["view_id"])) == {1}
        assert np.asarray(columns["crop_top"]).std() > 0
        for name, expected in cache.read(ids, view=1).items():
            np.testing.assert_array_equal(decode(shard, columns, name), expected.numpy())


@pytest.mark.parametrize("encoding", ["float16", "int8", "top3"])
def test_exports_hold_whole_rows(caches: dict[str, TeacherCache], encoding: str, tmp_path: Path) -> None:
    cache = caches[encoding]
    frame = cache.to_pandas()
    lists = pd.read_parquet(manage.export(cache.path, tmp_path / "out.parquet"))
    tensors = torch.load(manage.export(cache.path, tmp_path / "out.pt"), weights_only=True)
    with np.load(manage.export(cache.path, tmp_path / "out.npz")) as arrays:
        assert set(arrays) == set(tensors) == {"sample_id", "view_id", *cache.outputs}
        for name in cache.outputs:
            expected = np.stack(frame[name])
            np.testing.assert_array_equal(np.stack(lists[name]), expected)
            np.testing.assert_array_equal(arrays[name], expected)
            assert torch.equal(tensors[name], torch.from_numpy(expected))
        for name in ("sample_id", "view_id"):
            np.testing.assert_array_equal(arrays[name], frame[name])
            np.testing.assert_array_equal(tensors[name], frame[name])
            np.testing.assert_array_equal(lists[name], frame[name])
    assert not [name for name in lists if ":" in name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "out.parquet", "out.pt"]


def test_other_suffixes_are_refused(caches: dict[str, TeacherCache], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.parquet, \.npz or \.pt"):
        manage.export(caches["float16"].path, tmp_path / "out.csv")
