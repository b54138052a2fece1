"""Rows that are computed again when a cache is first used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raydistill.config import Experiment
from raydistill.data.datasets import load_train
from raydistill.errors import CacheError
from raydistill.teachers.cache import spot
from raydistill.teachers.cache.commit import begin, finish
from raydistill.teachers.cache.compute import compute_shard
from raydistill.teachers.cache.manifest import RECORDS, SHARDS
from raydistill.teachers.cache.read import TeacherCache, find_cache
from raydistill.teachers.cache.shards import Place
from raydistill.teachers.cache.verify import verify
from raydistill.teachers.network import teacher_of
from raydistill.training.material import prepare
from tests.teachers.conftest import ENCODINGS
from tests.teachers.stored import one_thread, source_of


@one_thread()
def forged(experiment: Experiment, root: Path, by: float) -> Experiment:
    """Write the experiment's cache with rows of another teacher, whose weights are off by a share; all hashes fit."""
    experiment = experiment.override({"cache.root": str(root)})
    source = source_of(experiment, load_train(experiment.data))
    torch.manual_seed(0)
    other = teacher_of(experiment, source.images)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.0 + by * torch.randn_like(parameter))
    folder = root / source.content.folder_name
    for name in (SHARDS, RECORDS):
        (folder / name).mkdir(parents=True)
    begin(folder, source.content)
    wrong = replace(source, network=other)
    places = [Place(source.content.key, *shard) for shard in source.content.shards()]
    finish(folder, source.content, {place.name: compute_shard(wrong, folder, place) for place in places})
    return experiment


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot, "_sound", set())


@pytest.mark.parametrize("encoding", ["float32", *ENCODINGS])
def test_every_encoding_is_within_its_rounding(
    taught: Experiment, caches: dict[str, TeacherCache], encoding: str
) -> None:
    images = load_train(taught.data)
    teacher = teacher_of(taught, images)
    for seed in range(3):
        found = spot.spot_check(caches[encoding], teacher, images, rows=50, seed=seed)
        assert found.passed and found.rows == 50, found


@pytest.mark.parametrize("encoding", ["float32", *ENCODINGS])
def test_rows_of_another_teacher_are_told(taught: Experiment, tmp_path: Path, encoding: str) -> None:
    section = {"dtype": "float32"} if encoding == "float32" else ENCODINGS[encoding]
    encoded = taught.override({f"cache.{name}": value for name, value in section.items()})
    experiment = forged(encoded, tmp_path / "cache", by=0.05)
    (folder,) = (tmp_path / "cache").iterdir()
    assert verify(folder, full=True) == []
    with pytest.raises(
        CacheError, match=r"in 64 rows .* difference is .* cosine 0\.\d+; .*cache rm .*cache build"
    ) as told:
        find_cache(experiment, load_train(experiment.data))
    assert "\n" not in str(told.value) and not (folder / spot.CHECKED).exists()


def test_weights_off_by_a_thousandth_are_told(taught: Experiment, tmp_path: Path) -> None:
    experiment = forged(taught, tmp_path / "cache", by=1e-3)
    with pytest.raises(CacheError, match="not what this teacher computes"):
        prepare(experiment)


def copied(caches: dict[str, TeacherCache], taught: Experiment, root: Path) -> tuple[Experiment, Path]:
    path = Path(caches["float16"].path)
    shutil.copytree(path, root / path.name, ignore=shutil.ignore_patterns(spot.CHECKED))
    return taught.override({"cache.root": str(root)}), root / path.name


def test_it_is_done_once(
    taught: Experiment, caches: dict[str, TeacherCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, path = copied(caches, taught, tmp_path)
    images = load_train(experiment.data)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    find_cache(experiment, images)
    assert {file for file in path.rglob("*") if file.is_file()} - set(before) == {path / spot.CHECKED}
    assert verify(path, full=True) == []

    asked: list[object] = []
    real = spot.spot_check
    monkeypatch.setattr(spot, "spot_check", lambda *given: asked.append(given) or real(*given))
    monkeypatch.setattr(spot, "_sound", set())  # as in another process
    find_cache(experiment, images)
    assert asked == []
    (path / spot.CHECKED).write_text("of a manifest before the last repair\n")
    find_cache(experiment, images)
    assert len(asked) == 1


def test_a_cache_that_cannot_be_written_to_is_remembered_by_the_process(
    taught: Experiment, caches: dict[str, TeacherCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, path = copied(caches, taught, tmp_path)
    images = load_train(experiment.data)
    (path / spot.CHECKED).mkdir()  # permissions would not stop root
    find_cache(experiment, images)
    monkeypatch.setattr(spot, "spot_check", lambda *_: pytest.fail("it was asked again"))
    find_cache(experiment, images)


def test_a_large_teacher_stops_in_time(
    taught: Experiment, caches: dict[str, TeacherCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spot, "_SECONDS", 0.0)
    images = load_train(taught.data)
    found = spot.spot_check(caches["float16"], teacher_of(taught, images), images)
    assert found.passed and 0 < found.rows < 64


def test_records_tell_the_device(caches: dict[str, TeacherCache]) -> None:
    path = Path(caches["float16"].path)
    assert {json.loads(file.read_text())["device"] for file in (path / RECORDS).iterdir()} == {"cpu"}
