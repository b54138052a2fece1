"""Every encoding gives back what it promises, and today's settings keep their names and files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from raydistill.config import Experiment, parse_experiment
from raydistill.data.datasets import load_train
from raydistill.errors import CacheError, ConfigError
from raydistill.methods.registry import METHODS, method_class
from raydistill.teachers.cache import planning
from raydistill.teachers.cache.codec import Array, Codec, Floats, Int8, TopK, array_of
from raydistill.teachers.cache.manifest import SHARDS, Content, Manifest
from raydistill.teachers.cache.read import TeacherCache, find_cache
from tests.teachers.conftest import ENCODINGS
from tests.teachers.stored import one_thread, store

STORED = """{"format": 1, "data": {"fingerprint": "f", "count": 30, "ids": "i"},
 "teacher": {"model": "m", "weights": "w", "outputs": {"embedding": [64], "logits": [10]}},
 "preprocessing": {"mean": [0.5], "std": [0.5], "image_shape": [1, 8, 8]}, "augmentation": null, "views": 0,
 "dtype": "float16", "shard_rows": 8192}"""


def through(codec: Codec, rows: Array, name: str = "logits") -> Array:
    columns = codec.encode(name, rows)
    row_types = codec.columns(name)
    assert [field.name for field, _ in columns] == list(row_types)
    stored = {}
    for field, column in columns:
        assert column.nbytes == row_types[field.name].bytes * len(rows)
        stored[field.name] = array_of(pa.chunked_array([column]), row_types[field.name])
    found = codec.decode(name, stored)
    assert found.dtype == codec.dtype
    given = np.empty_like(found)
    assert codec.decode(name, stored, given) is given
    np.testing.assert_array_equal(given, found)
    return found


ROWS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=4, max_side=7),
    elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
)


@settings(deadline=None)
@given(ROWS)
def test_int8_is_off_by_no_more_than_it_says(rows: Array) -> None:
    found = through(Int8(rows.shape[1:]), rows)
    flat, error = (values.reshape(len(rows), -1).astype(np.float64) for values in (rows, found - rows))
    largest = np.abs(flat).max(axis=1)
    allowed = np.where(largest < 1.5e-36, largest, largest / 254 * (1 + 1e-4))
    assert (np.abs(error).max(axis=1) <= allowed).all()


def test_int8_keeps_the_largest_and_zero_exact() -> None:
    rows = np.array([[127.0, -127.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.25, 0.0, -0.25]], dtype=np.float32)
    np.testing.assert_array_equal(through(Int8((4,)), rows), rows)


@settings(deadline=None)
@given(ROWS)
def test_float32_is_exact(rows: Array) -> None:
    np.testing.assert_array_equal(through(Floats("<f4", rows.shape[1:]), rows), rows)


@settings(deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 5), st.just(9)), elements=st.floats(-50, 50, width=32)),
    st.integers(1, 8),
)
def test_top_k_keeps_the_probabilities_of_the_largest_and_of_the_rest_together(rows: Array, kept: int) -> None:
    found = through(TopK(9, Floats("<f4", (kept,)), kept), rows)
    order = np.argsort(-found, axis=1, kind="stable")
    largest, others = order[:, :kept], order[:, kept:]
    np.testing.assert_array_equal(-np.sort(-rows, axis=1)[:, :kept], np.take_along_axis(found, largest, axis=1))
    fill = np.take_along_axis(found, others, axis=1)
    assert (fill == fill[:, :1]).all()
    before, after = (torch.from_numpy(values).double().logsumexp(dim=1) for values in (rows, found))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_classes_beyond_16_bits_keep_their_numbers() -> None:
    rows = np.zeros((2, 70_000), dtype=np.float32)
    rows[0, 69_999], rows[1, 65_536] = 5.0, 4.0
    found = through(TopK(70_000, Floats("<f2", (1,)), 1), rows)
    assert found.argmax(axis=1).tolist() == [69_999, 65_536]


def test_top_k_of_int8_does_not_let_the_rest_pass_the_kept() -> None:
    rows = np.array([[100.0, 1.1, 1.1, 1.1]], dtype=np.float32)  # 1.1 is read back as 0.79
    found = through(TopK(4, Int8((2,)), 2), rows)
    assert (found[0, 2:] <= found[0, :2].min()).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_real_rows_keep_their_direction(caches: dict[str, TeacherCache], encoding: str) -> None:
    stored, exact = caches[encoding], caches["float32"]
    assert stored.verify(full=True) == []
    for view in exact.views:
        left, right = (cache.read(exact.ids, view=view)["embedding"].double() for cache in (stored, exact))
        assert float(right.std()) > 0
        assert float(torch.nn.functional.cosine_similarity(left, right).min()) > 0.9999


def test_same_rows_whatever_the_reader(caches: dict[str, TeacherCache]) -> None:
    for cache in caches.values():
        read = cache.read(cache.ids, view=1)
        table = cache.table(cache.ids, [1], cache.outputs)
        frame = cache.to_pandas()
        assert set(frame) >= {"sample_id", "view_id", *cache.outputs}
        assert not [name for name in frame if ":" in name]
        for name in cache.outputs:
            np.testing.assert_array_equal(read[name].numpy(), table[name][0].astype(np.float32))
            np.testing.assert_array_equal(np.stack(frame[frame["view_id"] == 1][name]), read[name].numpy())


def test_zstd_changes_no_value_and_top_k_names_the_best(caches: dict[str, TeacherCache]) -> None:
    logits = {name: cache.read(cache.ids)["logits"] for name, cache in caches.items()}
    assert torch.equal(logits["zstd"], logits["float16"])
    best = logits["float32"].topk(3, dim=1)
    torch.testing.assert_close(logits["top3"].gather(1, best.indices), best.values, rtol=1e-3, atol=1e-3)
    sizes = {name: sum(record.bytes for record in cache.manifest.shards) for name, cache in caches.items()}
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]
    assert sizes["zstd"] < sizes["float16"]


@pytest.mark.parametrize("encoding", ["int8", "top3"])
def test_flipped_bit_of_a_part_is_found(caches: dict[str, TeacherCache], encoding: str, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(caches[encoding].path, folder)
    victim = sorted((folder / SHARDS).iterdir())[0]
    about = pq.ParquetFile(victim).metadata.row_group(0)
    names = [about.column(number).path_in_schema for number in range(about.num_columns)]
    part = about.column(names.index({"int8": "embedding:scale", "top3": "logits:classes"}[encoding]))
    data = bytearray(victim.read_bytes())
    data[part.data_page_offset + part.total_compressed_size - 5] ^= 4
    victim.write_bytes(data)
    with pytest.raises(CacheError, match=victim.name):
        cache = TeacherCache.open(folder)
        cache.table(cache.ids, cache.views, cache.outputs)


@one_thread()
def test_plan_foretells_the_size_of_every_encoding(taught: Experiment, caches: dict[str, TeacherCache]) -> None:
    for name in ("int8", "top3"):
        section = ENCODINGS[name]
        plan = planning.plan(taught.override({f"cache.{key}": value for key, value in section.items()}))
        assert plan.path == str(caches[name].path)
        assert plan.missing_rows == 0
        stored = sum(record.bytes for record in caches[name].manifest.shards) / plan.rows
        assert plan.bytes_per_row < stored < plan.bytes_per_row + 80


@pytest.mark.parametrize("change", [{"compression": "zstd"}, {"top_k": 3}, {"dtype": "int8"}])
def test_settings_change_the_name_and_are_told(
    taught: Experiment, caches: dict[str, TeacherCache], change: dict[str, object], tmp_path: Path
) -> None:
    plain = caches["float16"].path
    shutil.copytree(plain, tmp_path / plain.name)
    ((name, value),) = change.items()
    wanted = taught.override({f"cache.{name}": value, "cache.root": str(tmp_path)})
    with pytest.raises(CacheError, match=rf"differs in {name} \(there \w+, wanted {value}\)\. Build it"):
        find_cache(wanted, load_train(wanted.data))
    assert find_cache(taught, load_train(taught.data)).path == plain


def test_caches_from_before_these_settings_keep_their_name_and_manifest() -> None:
    content = Content.model_validate_json(STORED)
    assert (content.compression, content.top_k) == ("none", None)
    assert content.key == "875bab2d2b988acaeda8"  # computed before they existed
    manifest = Manifest(key=content.key, content=content, versions={}, created="")
    assert json.loads(manifest.model_dump_json())["content"] == json.loads(STORED)


LOGIT_METHODS = [
    name for name in METHODS if any("logits" in names for names in method_class(name)().needs().teacher.values())
]


@pytest.mark.parametrize("name", LOGIT_METHODS)
@one_thread()
def test_who_cannot_live_with_the_largest_logits(taught: Experiment, caches: object, name: str) -> None:
    methods = {"mine": {"name": name}}
    wanted = parse_experiment(taught.to_dict() | {"methods": methods}).override({"cache.top_k": 3})
    told = [line for line in planning.plan(wanted).uncacheable if "set teacher.source=live" not in line]
    if name == "kd":
        assert told == []
        assert find_cache(wanted, load_train(wanted.data)).outputs == ("embedding", "logits")
        return
    (line,) = told
    with pytest.raises(CacheError, match=r"cache\.top_k = 3: methods\.mine: .*cache\.top_k=null") as caught:
        find_cache(wanted, load_train(wanted.data))
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_objection_depends_on_what_a_method_does_with_the_logits() -> None:
    assert {"dist", "dkd", "kd", "protocpc"} <= set(LOGIT_METHODS)
    assert method_class("kd")().needs_every_logit() is None
    assert "standardised" in str(method_class("kd")(standardise=True).needs_every_logit())
    assert "Sinkhorn" in str(method_class("protocpc")().needs_every_logit())
    assert method_class("protocpc").model_validate({"assignment": "softmax"}).needs_every_logit() is None


def test_top_k_that_makes_no_sense_is_refused(taught: Experiment) -> None:
    with pytest.raises(ConfigError, match=r"cache\.top_k = 10: the teacher has 10 logits"):
        store(taught, top_k=10)
    with pytest.raises(ConfigError, match="top_k shortens the logits"):
        taught.override({"cache.top_k": 2, "cache.outputs": ["embedding"]})
