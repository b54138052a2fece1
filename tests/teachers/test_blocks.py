"""Columns that are read from the file itself, without Parquet."""

from __future__ import annotations

import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydistill.errors import CacheError
from raydistill.teachers.cache import row_reader, shards
from raydistill.teachers.cache.blocks import find_blocks, page_options
from raydistill.teachers.cache.commit import begin, finish
from raydistill.teachers.cache.manifest import ShardRecord, shard_path
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.row_reader import RowReader

PLAIN = ["float32", "float16", "int8", "top3"]


def damage(cache: TeacherCache, folder: Path, column: str) -> tuple[TeacherCache, ShardRecord]:
    """A copy of which one number of one column of the second shard is another."""
    shutil.copytree(cache.path, folder / "copy")
    copy = TeacherCache.open(folder / "copy")
    record = copy.manifest.shards[1]
    path = shard_path(copy.path, record.name)
    data = bytearray(path.read_bytes())
    data[record.blocks[column].offset + 3] ^= 1
    path.write_bytes(data)
    return copy, record


def as_of_old(cache: TeacherCache, root: Path) -> TeacherCache:
    """A copy as it was written before there were blocks."""
    folder = root / "old"
    shutil.copytree(cache.path, folder)
    content = cache.manifest.content
    begin(folder, content)
    finish(folder, content, {r.name: r.model_copy(update={"blocks": {}}) for r in cache.manifest.shards})
    return TeacherCache.open(folder)


@pytest.mark.parametrize("encoding", PLAIN)
def test_arrow_is_not_asked_for_uncompressed_columns(
    caches: dict[str, TeacherCache], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TeacherCache.open(caches[encoding].path)
    expected = shards.read_outputs(cache.path, cache.manifest.content, cache.manifest.shards[0], cache.outputs)
    monkeypatch.setattr(shards, "_read_parquet", None)
    table = cache.table(cache.ids, (0,), cache.outputs)
    for name, values in expected.items():
        np.testing.assert_array_equal(table[name][0][: len(values)], values)
        np.testing.assert_array_equal(cache.rows(cache.ids, 0, [name])[name], table[name][0])


def test_compressed_columns_have_no_block(caches: dict[str, TeacherCache]) -> None:
    assert all(record.blocks == {} for record in caches["zstd"].manifest.shards)
    assert "blocks" not in caches["zstd"].manifest.shards[0].model_dump()


@pytest.mark.parametrize("encoding", ["float16", "top3"])
def test_caches_from_before_read_the_same(caches: dict[str, TeacherCache], encoding: str, tmp_path: Path) -> None:
    cache = caches[encoding]
    old = as_of_old(cache, tmp_path)
    assert '"blocks"' not in (old.path / "manifest.json").read_text()
    new, before = (found.table(cache.ids, cache.views, cache.outputs) for found in (cache, old))
    for name in cache.outputs:
        np.testing.assert_array_equal(new[name], before[name])
        np.testing.assert_array_equal(old.rows(cache.ids, 1, [name])[name], new[name][1])


@pytest.mark.parametrize(
    ("encoding", "column"),
    [("float16", "embedding"), ("int8", "embedding:scale"), ("top3", "logits:classes"), ("float32", "sample_id")],
)
def test_damage_is_told_whichever_way_rows_are_read(
    caches: dict[str, TeacherCache], encoding: str, column: str, tmp_path: Path
) -> None:
    copy, record = damage(caches[encoding], tmp_path, column)
    ids = caches[encoding].ids
    for read in (
        lambda: copy.table(ids, (0,), copy.outputs),
        lambda: copy.rows(ids, 0, copy.outputs),
        lambda: copy.read(ids),
        copy.to_pandas,  # by the page's own checksum
    ):
        with pytest.raises(CacheError, match=rf"{record.name}: damaged: .*raydistill cache build CONFIG") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_damage_elsewhere_does_not_stop_a_reader(caches: dict[str, TeacherCache], tmp_path: Path) -> None:
    copy, _ = damage(caches["float16"], tmp_path, "embedding")
    copy.table(copy.ids, (0,), ["logits"])


def test_file_that_became_shorter_is_told(caches: dict[str, TeacherCache], tmp_path: Path) -> None:
    shutil.copytree(caches["float16"].path, tmp_path / "copy")
    copy = TeacherCache.open(tmp_path / "copy")
    ids = copy.ids
    victim = shard_path(copy.path, copy.manifest.shards[1].name)
    victim.write_bytes(victim.read_bytes()[:500])
    with pytest.raises(CacheError, match=rf"{victim.name}: damaged: .*repair it with"):
        copy.table(ids, (0,), ["embedding"])
    victim.unlink()
    with pytest.raises(CacheError, match=victim.name):
        copy.table(ids, (0,), ["embedding"])


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8", "top3", "zstd"])
def test_rows_in_any_order(caches: dict[str, TeacherCache], encoding: str) -> None:
    cache = caches[encoding]
    whole = cache.table(cache.ids, (1,), cache.outputs)
    order = np.random.default_rng(0).integers(0, len(cache.ids), 300)
    for found in (cache.rows(cache.ids[order], 1, cache.outputs), cache.table(cache.ids[order], (1,), cache.outputs)):
        for name in cache.outputs:
            assert found[name].dtype == whole[name].dtype
            np.testing.assert_array_equal(found[name].reshape(whole[name][0][order].shape), whole[name][0][order])


def test_reader_checks_once_and_holds_no_more_than_it_may(
    caches: dict[str, TeacherCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = caches["float16"]
    checked: list[str] = []
    sound = shards.is_sound
    monkeypatch.setattr(shards, "is_sound", lambda block, numbers: checked.append("x") or sound(block, numbers))
    first = cache.manifest.shards[0]
    monkeypatch.setattr(row_reader, "_OPEN_BYTES", first.rows * 64 * 2)  # one embedding column
    reader = RowReader(cache.path, cache.manifest.content)
    copy: RowReader = pickle.loads(pickle.dumps(reader))
    expected = [reader.rows(record, ["embedding"], np.arange(5)) for record in cache.manifest.shards]
    assert len(checked) == len(cache.manifest.shards)
    for record, rows in zip(cache.manifest.shards, expected, strict=True):
        np.testing.assert_array_equal(reader.rows(record, ["embedding"], np.arange(5))["embedding"], rows["embedding"])
        assert len(reader._open) == 1
    assert len(checked) == len(cache.manifest.shards)
    with pytest.raises(IndexError):
        copy.rows(first, ["embedding"], np.array([first.rows]))


def test_threads_share_a_reader(caches: dict[str, TeacherCache]) -> None:
    cache = TeacherCache.open(caches["int8"].path)
    ids, expected = cache.ids, caches["int8"].read(caches["int8"].ids, view=1)["embedding"].numpy()
    wrong: list[int] = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(ids))
        for part in np.split(order, 8):
            if not (cache.rows(ids[part], 1, ["embedding"])["embedding"] == expected[part]).all():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def table_of(rows: int, width: int) -> pa.Table:
    numbers = np.random.default_rng(0).bytes(rows * width)
    field = pa.field("numbers", pa.binary(width), nullable=False)
    column = pa.FixedSizeBinaryArray.from_buffers(field.type, rows, [None, pa.py_buffer(numbers)])
    small = pa.array(np.arange(rows, dtype=np.int16))
    return pa.Table.from_arrays([column, small], schema=pa.schema([field, pa.field("small", pa.int16())]))


def written(table: pa.Table, **options: object) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    plain = {"compression": "none", "use_dictionary": False, "row_group_size": table.num_rows}
    pq.write_table(table, sink, **(plain | options))
    return sink.getvalue()


def test_a_column_of_many_rows_is_one_page() -> None:
    table = table_of(50_000, 64)  # more than Arrow puts into a page by itself, in rows and in bytes
    data = written(table, **page_options(table))
    (name,) = blocks = find_blocks(data, table, ["numbers", "small"])
    assert name == "numbers"  # Parquet widens the small numbers
    offset = blocks[name].offset
    assert bytes(data[offset : offset + 50_000 * 64]) == bytes(table.column("numbers").chunk(0).buffers()[1])


@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"row_group_size": 30_000}, {"use_dictionary": True}])
def test_what_is_not_one_stretch_has_no_block(options: dict[str, object]) -> None:
    table = table_of(50_000, 64)
    pages = {} if not options else page_options(table)
    assert find_blocks(written(table, **pages, **options), table, ["numbers"]) == {}


def test_columns_too_large_for_a_page_leave_the_others_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.teachers.cache.blocks._LARGEST_PAGE", 1 << 21)
    large, table = table_of(4000, 1024), table_of(4000, 300)
    both = table.append_column(pa.field("large", pa.binary(1024), nullable=False), large.column("numbers"))
    data = written(both, **page_options(both))
    assert set(find_blocks(data, both, ["numbers", "large"])) == {"numbers"}
    assert pq.read_table(pa.BufferReader(data)).equals(both)
