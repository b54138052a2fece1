"""Content addressing, reading, damage and management of a finished cache."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from raydistill.config import Experiment, parse_experiment
from raydistill.data.datasets import load_train
from raydistill.errors import CacheError, ConfigError
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.teachers.cache import manage, planning
from raydistill.teachers.cache.files import locked
from raydistill.teachers.cache.manifest import MANIFEST, SHARDS, Content, content_hash
from raydistill.teachers.cache.read import TeacherCache, find_cache
from raydistill.teachers.cache.request import requested
from raydistill.teachers.cache.spot import spot_check
from raydistill.teachers.network import teacher_of
from tests.teachers.conftest import SHARD_ROWS, VIEWS, Built


def content_of(experiment: Experiment) -> Content:
    images = load_train(experiment.data)
    return requested(experiment, images, teacher_of(experiment, images))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"data.subset": 239}, "data.fingerprint"),
        ({"data.split_seed": 1}, "data.ids"),
        ({"data.mean": [0.5], "data.std": [0.5]}, "preprocessing.mean"),
        ({"data.augment.crop": 2}, "augmentation.operations.crop"),
        ({"cache.seed": 1}, "augmentation.seed"),
        ({"cache.views": 1}, "views"),
        ({"cache.views": 0}, "augmentation"),
        ({"cache.dtype": "float32"}, "dtype"),
        ({"cache.shard_rows": 50}, "shard_rows"),
        ({"cache.outputs": ["logits"]}, "teacher.outputs.embedding"),
    ],
)
def test_each_field_changes_the_name_and_is_told(built: Built, change: dict[str, object], field: str) -> None:
    experiment = built.experiment.override(change)
    assert content_hash(content_of(experiment)) != TeacherCache.open(built.path).manifest.key
    with pytest.raises(CacheError) as caught:
        find_cache(experiment, load_train(experiment.data))
    assert f"{field} (there " in str(caught.value) or f"{field}." in str(caught.value)
    assert "raydistill cache build CONFIG" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_weights_change_the_name(built: Built, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_weights(build_model("resnet14", 10, in_channels=1), other)
    with pytest.raises(CacheError, match=r"teacher\.weights \(there \w{8}, wanted \w{8}\)"):
        find_cache(built.experiment.override({"teacher.weights": str(other)}), built.images)


def test_what_decides_no_value_changes_no_name(built: Built) -> None:
    change = {"seed": 5, "cache.outputs": ["embedding", "logits"], "train.epochs": 9, "cache.actors": 1}
    assert find_cache(built.experiment.override(change), built.images).path == built.path


def test_output_that_the_cache_would_lack_is_told_first(built: Built) -> None:
    experiment = built.experiment.override({"cache.outputs": ["embedding"]})
    with pytest.raises(CacheError, match=r"cache\.outputs lacks 'logits'"):
        find_cache(experiment, built.images)


def test_shape_of_the_cache(built: Built) -> None:
    cache = TeacherCache.open(built.path)
    assert len(cache) == 240 * (VIEWS + 1)
    assert cache.views == (0, 1, 2)
    assert set(cache.outputs) == {"logits", "embedding"}
    assert cache.path.name == f"resnet14-{cache.manifest.key}"


def test_rows_come_in_the_order_of_the_ids(built: Built) -> None:
    cache = TeacherCache.open(built.path)
    whole = cache.read(built.images.ids)
    order = torch.tensor([201, 3, 3, 150])
    some = cache.read(built.images.ids[order].tolist())
    assert some["embedding"].dtype == torch.float32
    assert torch.equal(some["embedding"], whole["embedding"][order])
    assert set(cache.read(built.images.ids[:2], outputs=["logits"])) == {"logits"}


def test_table_holds_views_in_storage_dtype(exact: Built, built: Built) -> None:
    ids = built.images.ids[100:130]
    cache = TeacherCache.open(built.path)
    table = cache.table(ids, (2, 0), ["logits"])
    assert table["logits"].shape == (2, 30, 10)
    assert table["logits"].dtype == np.float16
    np.testing.assert_array_equal(table["logits"][0].astype(np.float32), cache.read(ids, view=2)["logits"])
    maps = TeacherCache.open(exact.path).table(ids, (0,), ["features/2"])["features/2"]
    assert maps.shape[:2] == (1, 30)
    assert maps.ndim == 5


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda cache: cache.read([10**6]), "no sample 1000000"),
        (lambda cache: cache.read([0], view=7), "no view 7"),
        (lambda cache: cache.read([0], outputs=["features/1"]), "no output 'features/1'"),
        (lambda cache: cache.table([0], [0, 9], ["logits"]), "no view 9"),
    ],
)
def test_unknown_keys_are_named(built: Built, call: Callable[[TeacherCache], object], text: str) -> None:
    with pytest.raises(CacheError, match=text):
        call(TeacherCache.open(built.path))


def test_pandas_reads_it(built: Built) -> None:
    cache = TeacherCache.open(built.path)
    frame = cache.to_pandas()
    assert len(frame) == len(cache)
    assert len(cache.to_pandas(limit=130)) == 130
    assert not frame.duplicated(["sample_id", "view_id"]).any()
    row = frame[(frame["view_id"] == 1)].iloc[5]
    expected = cache.read([int(row["sample_id"])], view=1)["logits"][0]
    np.testing.assert_array_equal(row["logits"], expected)
    raw = pd.read_parquet(built.path / SHARDS)
    np.testing.assert_array_equal(np.frombuffer(raw["logits"][0], "<f2"), frame["logits"][0].astype("<f2"))
    assert raw.loc[raw["view_id"] == 0, "flip"].isna().all()
    assert raw.loc[raw["view_id"] > 0, "crop_top"].between(-1, 1).all()


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_flipped_bit_is_found(built: Built, tmp_path: Path) -> None:
    copy = built.copy(tmp_path)
    victim = sorted((copy.path / SHARDS).iterdir())[4]
    flip_bit(victim)
    cache = TeacherCache.open(copy.path)
    (problem,) = cache.verify(full=True)
    assert victim.name in problem
    with pytest.raises(CacheError, match=victim.name):  # the page's checksum, without reading all hashes
        cache.table(copy.images.ids, cache.views, cache.outputs)


@pytest.mark.parametrize("damage", ["truncated", "deleted", "swapped", "grown"])
def test_damaged_shards_are_named_on_open(built: Built, tmp_path: Path, damage: str) -> None:
    copy = built.copy(tmp_path)
    victim, other, *_ = sorted((copy.path / SHARDS).iterdir())
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-10])
    elif damage == "grown":
        victim.write_bytes(victim.read_bytes() + b"x")
    elif damage == "deleted":
        victim.unlink()
    else:
        first, second = victim.read_bytes(), other.read_bytes()
        victim.write_bytes(second)
        other.write_bytes(first)
    with pytest.raises(CacheError, match=victim.name) as caught:
        TeacherCache.open(copy.path)
    assert "raydistill cache build CONFIG" in str(caught.value)
    problems = TeacherCache.open(built.path).verify()
    assert problems == []
    from raydistill.teachers.cache.verify import verify

    assert any(victim.name in problem for problem in verify(copy.path))


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ('"dtype": "float16"', '"dtype": "float32"', "content was edited"),
        ('"count": 240', '"count": 239', "content was edited"),
        ('"rows": 100', '"rows": 99', "does not cover"),
        ('"name": "v0000', '"name": "../../v0000', "is not the one of view 0"),
        (r'"sha256": "\w{4}', '"sha256": "0000', "changed after the build"),
        ('"sha256": "', '"sha256": "0', "damaged"),
        (r"\{", "", "damaged"),
    ],
)
def test_edited_manifest_is_refused(built: Built, tmp_path: Path, before: str, after: str, text: str) -> None:
    copy = built.copy(tmp_path)
    path = copy.path / MANIFEST
    edited = re.sub(before, after, path.read_text(), count=1)
    assert edited != path.read_text() or pytest.fail("nothing was edited: " + path.read_text()[:400])
    path.write_text(edited)
    with pytest.raises(CacheError, match=text):
        TeacherCache.open(copy.path)


def test_folder_without_manifest_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="not a teacher cache"):
        TeacherCache.open(tmp_path)
    (tmp_path / "precious").write_text("x")
    with pytest.raises(CacheError, match="nothing was deleted"):
        manage.remove(tmp_path)
    assert (tmp_path / "precious").exists()


def test_spot_check_compares_with_the_teacher(built: Built) -> None:
    found = spot_check(TeacherCache.open(built.path), teacher_of(built.experiment, built.images), built.images)
    assert found.rows == 64
    assert found.max_difference < 0.01
    assert found.min_cosine > 0.9999


def test_list_and_remove(built: Built, tmp_path: Path) -> None:
    copy = built.copy(tmp_path)
    (listed,) = manage.list_caches(copy.path.parent)
    assert (listed.path, listed.rows, listed.views, listed.finished) == (str(copy.path), 720, 3, True)
    with locked(copy.path), pytest.raises(CacheError, match="a build is at work"):
        manage.remove(copy.path)
    manage.remove(copy.path)
    assert manage.list_caches(copy.path.parent) == []


def test_export_gives_plain_numbers(built: Built, tmp_path: Path) -> None:
    expected = TeacherCache.open(built.path).to_pandas()
    lists = pd.read_parquet(manage.export(built.path, tmp_path / "out.parquet"))
    np.testing.assert_array_equal(np.stack(lists["logits"]), np.stack(expected["logits"]))
    with np.load(manage.export(built.path, tmp_path / "out.npz")) as arrays:
        np.testing.assert_array_equal(arrays["embedding"], np.stack(expected["embedding"]))
        np.testing.assert_array_equal(arrays["view_id"], expected["view_id"])
    with pytest.raises(ConfigError, match=r"\.parquet, \.npz or \.pt"):
        manage.export(built.path, tmp_path / "out.csv")


def test_plan_foretells_the_build(built: Built) -> None:
    plan = planning.plan(built.experiment)
    assert (plan.rows, plan.missing_rows, plan.path) == (720, 0, str(built.path))
    assert plan.bytes_per_row < built.report.bytes_per_row < plan.bytes_per_row + 5000 / SHARD_ROWS
    assert plan.seconds == pytest.approx(plan.startup_seconds + 720 / plan.images_per_s)
    assert plan.break_even_epochs == pytest.approx(plan.seconds * plan.images_per_s / (240 * 0.8))
    assert plan.uncacheable == ()
    lacking = planning.plan(built.experiment.override({"cache.outputs": ["embedding"], "cache.seed": 3}))
    (reason,) = lacking.uncacheable
    assert reason.startswith("kd: logits is not in cache.outputs; it would add 20 bytes a row")
    assert lacking.missing_rows == 720


@pytest.mark.parametrize(
    ("methods", "settings", "reason"),
    [
        ({"sskd": {}}, {}, "sskd: view 1 of a step is drawn in a way of the method's own"),
        ({"cocord": {}}, {"cache.views": 2}, "cocord: a step draws 3 views, but 2 augmented ones are cached"),
        ({"ft": {}}, {}, "ft: features/3 is not in cache.outputs; it would add 512 bytes a row, 0.4 MiB in all"),
        (
            {"kd": {}},
            {"train.agreement": ["cka"], "cache.outputs": ["logits"]},
            "val/cka: embedding is not in cache.outputs; it would add 128 bytes a row",
        ),
        ({"fitnet": {"teacher_stage": 9}}, {}, "fitnet: features/9 is not in cache.outputs; the teacher has no such"),
    ],
)
def test_plan_says_whom_a_cache_cannot_serve(
    built: Built, methods: dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    experiment = parse_experiment(built.experiment.to_dict() | {"methods": methods}).override(settings)
    assert any(told.startswith(reason) for told in planning.plan(experiment).uncacheable)


def test_manifest_is_plain_json(built: Built) -> None:
    values = json.loads((built.path / MANIFEST).read_text())
    assert values["content"]["teacher"]["outputs"] == {"embedding": [64], "logits": [10]}
    assert {"torch", "pyarrow"} <= set(values["versions"])
