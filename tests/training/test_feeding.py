"""However the teacher's rows and the images are read, a run sees the same and becomes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.config import Experiment
from raydistill.errors import CacheError, ConfigError
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.training.assembly import assemble
from raydistill.training.loop import fit
from raydistill.training.material import Material, from_arrays, prepare, to_arrays
from raydistill.training.placement import read_from, streams
from raydistill.training.session import Session
from raydistill.training.trainer import train
from tests.conftest import digits, teaching
from tests.data_room.files import write_folder
from tests.methods.cases import SMALL
from tests.teachers.stored import store
from tests.training.sessions import assert_equal_states

WAYS = ("resident", "shared", "stream")
CPU = torch.device("cpu")


def distilled(folder: Path, weights: Path, method: str, views: int, **sections: Any) -> Experiment:
    """A student of 100 digits whose teacher's cache has some replayable views and two shards a view."""
    values: dict[str, Any] = {
        "data": {"name": "digits", "subset": 100, "validation": 0.2, "augment": {"crop": 1}},
        "teacher": teaching(weights),
        "methods": {"ce": {}, method: SMALL.get(method, {})},
        "train": {"epochs": 2, "batch_size": 16},
        "cache": {"root": str(folder / "cache"), "views": views, "shard_rows": 50},
    }
    return digits(folder, **(values | sections))


def session_of(experiment: Experiment, way: str, **options: Any) -> Session:
    """The session of a worker that reads in one of the ways, from arrays as they come out of the object store."""
    chosen = experiment.override({"cache.read": way})
    return assemble(chosen, from_arrays(to_arrays(prepare(chosen))), device=CPU, **options)


def trained(experiment: Experiment, way: str) -> Session:
    session = session_of(experiment, way)
    fit(session, lambda metrics, session: session.history.append(metrics))
    return session


@pytest.mark.parametrize(("method", "views"), [("kd", 0), ("kd", 2), ("cocord", 0), ("cocord", 3)])
def test_rows_on_the_spot_are_the_same(method: str, views: int, tmp_path: Path, teacher_weights: Path) -> None:
    experiment = distilled(tmp_path, teacher_weights, method, views)
    store(experiment)
    resident, *others = (session_of(experiment, way) for way in WAYS)
    positions = torch.tensor([5, 70, 5, 31, 12, 49, 50, 79])
    for epoch in range(3):
        expected = resident.draw(positions, epoch)
        for session in others:
            step = session.draw(positions, epoch)
            assert all(torch.equal(step.views[view], seen) for view, seen in expected.views.items())
            for view, outputs in expected.teachers[0].items():
                for name, values in outputs.items():
                    assert torch.equal(step.teachers[0][view][name], values)


@pytest.mark.parametrize(("method", "views"), [("kd", 0), ("cocord", 3)])
def test_students_are_the_same_bit_for_bit(
    method: str, views: int, tmp_path: Path, teacher_weights: Path, ray_session: None
) -> None:
    experiment = distilled(tmp_path, teacher_weights, method, views)
    store(experiment)
    resident, shared, stream = (trained(experiment, way) for way in WAYS)
    assert_equal_states(resident, shared)
    assert_equal_states(resident, stream)
    assert resident.history[-1]["train/loss"] == stream.history[-1]["train/loss"]
    from_the_middle = [step.columns["index"] for step in stream.steps(1, start=2)]
    assert [list(index) for index in from_the_middle] == [list(index) for index in resident.batches(1)][2:]


def test_images_and_rows_are_read_ahead_together(tmp_path: Path, ray_session: None) -> None:
    torch.manual_seed(3)
    weights = tmp_path / "colour.safetensors"
    save_weights(build_model("resnet14", 2), weights)
    write_folder(tmp_path / "images", each=20)
    augment = {"crop": 1, "mixup": {"probability": 0.4}, "cutmix": {"probability": 0.4}}
    data = {"name": "image_folder", "root": str(tmp_path / "images"), "image_size": 16, "augment": augment}
    experiment = distilled(
        tmp_path, weights, "kd", 2, data=data, methods={"kd": {}}, train={"epochs": 2, "batch_size": 8}
    )
    store(experiment)
    resident = trained(experiment, "resident")
    lazy = experiment.override({"data.reading": "stream"})
    stream = trained(lazy, "stream")
    assert_equal_states(resident, stream)
    assert resident.history[-1]["val/top1"] == stream.history[-1]["val/top1"]
    assert not stream.data.resident and torch.equal(stream.validation.images, resident.validation.images)

    other = lazy.override({"cache.dtype": "float32", "cache.read": "stream"})
    shards = list(Path(str(store(other).path)).rglob("*.parquet"))
    session = session_of(other, "stream")
    for shard in shards:
        content = bytearray(shard.read_bytes())
        content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
        shard.write_bytes(content)
    with pytest.raises(CacheError, match=r"\.parquet: damaged"):
        list(session.steps(0))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_workers_on_two_cpus_read_ahead(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = distilled(tmp_path, teacher_weights, "cocord", 3, scale={"workers": 2})
    store(experiment)
    files = {}
    for way in ("shared", "stream"):
        result = train(experiment.override({"cache.read": way, "name": way}))
        files[way] = Path(result["run"]) / "student.safetensors"
        environment = json.loads((Path(result["run"]) / "environment.json").read_text())
        assert environment["cache_read"]["way"] == way
    assert files["shared"].read_bytes() == files["stream"].read_bytes()


@pytest.mark.parametrize(
    ("table", "way"), [(0.1, "resident"), (0.2, "resident"), (0.3, "shared"), (0.64, "shared"), (0.66, "stream")]
)
def test_auto_takes_the_first_that_has_room(
    table: float, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_bytes, image_bytes = 1 << 30, (1 << 30) // 10
    size = int(table * store_bytes)
    material = Material(*[prepare(digits(tmp_path)).train] * 2, table_bytes=size, store_bytes=store_bytes)
    monkeypatch.setattr(Material, "streams", streams("auto", size, image_bytes, store_bytes))
    reading = read_from("auto", material, CPU)
    assert reading is not None and reading.way == way and f"{size / 2**20:,.1f} MiB" in reading.reason
    forced = read_from("shared", material, CPU)
    assert forced is not None and forced.way == "shared" and "cache.read=shared" in forced.reason


def test_the_store_decides_whether_rows_are_loaded(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = distilled(tmp_path, teacher_weights, "kd", 1)
    store(experiment)
    loaded, left = prepare(experiment, lambda: 1 << 20), prepare(experiment, lambda: 8_000)
    assert not loaded.streams and left.streams and left.reads_ahead
    assert loaded.table_bytes == left.table_bytes == loaded.tables[0]["logits"].nbytes  # type: ignore[index]
    assert read_from("auto", prepare(digits(tmp_path)), CPU) is None


def test_unknown_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.read"):
        digits(tmp_path, cache={"read": "mapped"})
