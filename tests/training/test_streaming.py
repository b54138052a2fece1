"""Whole data sets that stay on the disk: students as from memory, files that change under a run, rows joined by id."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydistill.config import Experiment
from raydistill.data.augment_config import AugmentConfig
from raydistill.errors import CacheError, DataError
from raydistill.methods.base import Needs
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.rows import StoredRows
from raydistill.teachers.source import CachedTeacher
from raydistill.training import streaming
from raydistill.training.assembly import assemble
from raydistill.training.feeding import Supply
from raydistill.training.loop import fit
from raydistill.training.material import prepare
from raydistill.training.requests import Plan
from raydistill.training.run_folder import RunFolder
from raydistill.training.session import Session
from raydistill.training.streaming import EpochReader, Reading, stream
from raydistill.training.trainer import train
from tests.conftest import digits
from tests.methods.cases import SMALL
from tests.teachers.stored import store
from tests.training.sessions import assert_equal_states, without_times

pytestmark = pytest.mark.usefixtures("ray_session")

COUNT, CLASSES = 60, 3
CPU = torch.device("cpu")
LOGITS = Needs(teacher={0: frozenset({"logits"})})


@pytest.fixture(autouse=True)
def _remembers_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks of images are remembered in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "remembered"))


def jpeg(number: int) -> bytes:
    """Smooth noise of a size of its own."""
    coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((16 + number % 5, 18), Image.Resampling.BILINEAR).save(buffer, "JPEG")
    return buffer.getvalue()


def write_folder(root: Path) -> dict[str, Any]:
    for number in range(COUNT):
        path = root / "train" / f"class{number % CLASSES}" / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return {"name": "image_folder", "root": str(root)}


def write_parquet(root: Path, numbers: list[int] | None = None) -> dict[str, Any]:
    """Three files with row groups of seven; ids say nothing about the rows' order."""
    root.mkdir(exist_ok=True)
    for file, part in enumerate(np.array_split(numbers or list(range(COUNT)), 3)):
        columns = {
            "image": [jpeg(number) for number in part],
            "label": [int(number) % CLASSES for number in part],
            "key": [1000 - 7 * int(number) for number in part],
        }
        pq.write_table(pa.table(columns), root / f"train-{file}.parquet", row_group_size=7)
    return {"name": "parquet", "root": str(root), "id_column": "key"}


WRITERS = {"image_folder": write_folder, "parquet": write_parquet}


def colourful(folder: Path, data: dict[str, Any], **sections: Any) -> Experiment:
    """A student of 48 images whose last batch is smaller, for three epochs, that streams all it can."""
    augment = {"crop": 1, "flip": 0.5}
    values: dict[str, Any] = {
        "data": {"image_size": 16, "validation": 0.2, "augment": augment, "reading": "stream", **data},
        "teacher": {"model": "resnet14", "weights": str(untrained(folder))},
        "train": {"epochs": 3, "batch_size": 9, "drop_last": False},
        "cache": {"root": str(folder / "cache"), "shard_rows": 25, "read": "stream"},
    }
    return digits(folder, **(values | sections))


def untrained(folder: Path) -> Path:
    path = folder / "teacher.safetensors"
    if not path.is_file():
        torch.manual_seed(3)
        save_weights(build_model("resnet14", CLASSES), path)
    return path


def in_memory(experiment: Experiment) -> Experiment:
    return experiment.override({"data.reading": "resident", "cache.read": "resident"})


def trained(experiment: Experiment) -> Session:
    session = assemble(experiment, prepare(experiment), device=CPU)
    fit(session, lambda metrics, session: session.history.append(metrics))
    return session


@pytest.mark.parametrize(
    ("layout", "method", "views", "augment"),
    [
        ("parquet", "kd", 2, {"mixup": {"probability": 0.5}, "cutmix": {"probability": 0.4}}),
        ("parquet", "cocord", 3, {}),
        ("image_folder", "crd", 0, {}),
        ("image_folder", "dino", 0, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_students_are_those_from_memory(
    layout: str, method: str, views: int, augment: dict[str, Any], tmp_path: Path
) -> None:
    """With partners of mixed views, several views, small crops, a smaller last batch and rows of the cache."""
    data = WRITERS[layout](tmp_path / "images")
    experiment = colourful(tmp_path, data, methods={"ce": {}, method: SMALL.get(method, {})})
    experiment = experiment.override({"data.augment": {"crop": 1, **augment}, "cache.views": views})
    if experiment.needs.teacher:
        store(experiment)
    resident, streamed = trained(in_memory(experiment)), trained(experiment)
    assert resident.data.resident and not streamed.data.resident
    assert all(teacher.stored for teacher in streamed.teachers)
    assert streamed.batching.images_per_epoch == len(streamed.data) == 48
    assert_equal_states(resident, streamed)
    for left, right in zip(resident.history, streamed.history, strict=True):
        assert without_times(left) == without_times(right)


def test_held_out_images_are_compared_with_rows_from_the_disk(tmp_path: Path) -> None:
    experiment = colourful(tmp_path, write_folder(tmp_path / "images"), methods={"ce": {}, "kd": {}})
    experiment = experiment.override({"train.agreement": ["neighbours@3", "cka"], "train.epochs": 1})
    store(experiment)
    resident, streamed = trained(in_memory(experiment)), trained(experiment)
    assert all(teacher.stored for teacher in streamed.teachers) and not streamed.validation.resident
    assert without_times(resident.history[0]) == without_times(streamed.history[0])
    assert streamed.history[0]["val/cka"] > 0.0


@pytest.mark.slow
def test_a_worker_of_ray_train_streams_to_the_same_student(tmp_path: Path) -> None:
    """With as many threads; one that streams leaves a part of the CPUs to the tasks that read, unless told."""
    data, scale = write_parquet(tmp_path / "images"), {"cpus_per_worker": 1}
    experiment = colourful(tmp_path, data, methods={"ce": {}, "kd": {}}, scale=scale)
    store(experiment)
    runs = {}
    for name, chosen in (("stream", experiment), ("memory", in_memory(experiment))):
        result = train(chosen.override({"name": name}))
        runs[name] = (Path(result["run"]) / "student.safetensors").read_bytes()
        environment = json.loads((Path(result["run"]) / "environment.json").read_text())
        assert environment["cache_read"]["way"] == {"stream": "stream", "memory": "resident"}[name]
    assert runs["stream"] == runs["memory"]


def test_the_next_epoch_is_begun_before_this_one_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used if it is what is asked for; another epoch, or one from another step on, begins anew."""
    experiment = colourful(tmp_path, write_folder(tmp_path / "images"), teacher=None)
    session, begun = assemble(experiment, prepare(experiment), device=CPU), []

    def noted(reading: Reading, *given: Any) -> Any:
        begun.append(reading.epoch)
        return stream(reading, *given)

    def seen(epoch: int, start: int = 0) -> list[list[int]]:
        return [step.columns["index"].tolist() for step in session.steps(epoch, start=start)]

    monkeypatch.setattr(streaming, "stream", noted)
    expected = {epoch: [positions.tolist() for positions in session.batches(epoch)] for epoch in range(3)}
    steps = session.steps(0)
    for _ in range(session.batching.steps - 1):
        next(steps)
    assert begun == [0, 1]
    assert len(list(steps)) == 1
    assert seen(1) == expected[1] and begun == [0, 1, 2]
    assert seen(1, start=2) == expected[1][2:] and begun == [0, 1, 2, 1, 2]  # the second epoch again, a part of it
    assert seen(2) == expected[2] and begun == [0, 1, 2, 1, 2]  # the run has no fourth


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    path.write_bytes(jpeg(999))


@pytest.mark.parametrize(
    ("change", "told"), [(remove, "No such file"), (replace, "changed since the images were checked")]
)
def test_an_image_that_goes_while_steps_are_read_ahead(
    change: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    experiment = colourful(tmp_path, write_folder(tmp_path / "images"), teacher=None)
    session, path = assemble(experiment, prepare(experiment), device=CPU), tmp_path / "images/train/class1/07.jpg"

    def after_epoch(metrics: dict[str, float], session: Session) -> None:
        change(path)

    with pytest.raises(DataError, match=rf"class1/07\.jpg: .*{told}") as failure:
        fit(session, after_epoch)
    assert "\n" not in str(failure.value) and "Traceback" not in str(failure.value)
    assert session.epoch >= 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_command_whose_images_go_says_so_in_a_line_and_can_be_resumed(workers: int, tmp_path: Path) -> None:
    """Whichever of the workers has to read the image."""
    experiment = colourful(tmp_path, write_folder(tmp_path / "images"), teacher=None, scale={"workers": workers})
    experiment = experiment.override({"train.batch_size": 12})
    (tmp_path / "experiment.yaml").write_text(experiment.to_yaml())
    command = [sys.executable, "-m", "raydistill.cli", "train", "experiment.yaml", "train.epochs=400"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    path, folder = tmp_path / "images/train/class1/07.jpg", RunFolder(tmp_path / "runs" / "digits")
    while not folder.history():
        assert process.poll() is None
        time.sleep(0.1)
    content = path.read_bytes()
    path.unlink()
    _, errors = process.communicate(timeout=240)
    said = [line for line in errors.splitlines() if "07.jpg" in line]
    assert process.returncode == 2 and len(said) == 1 and "No such file" in said[0]
    assert "Traceback" not in errors and "attempt" not in errors and not folder.succeeded
    path.write_bytes(content)
    done = len(folder.history())
    command[-1:] = [f"train.epochs={done + 1}", "--resume"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert len(folder.history()) == done + 1


def rows_of(cache: TeacherCache, ids: torch.Tensor) -> tuple[Supply, Plan]:
    """What tasks read of a cache for training images of these ids."""
    teacher = CachedTeacher(StoredRows.of(cache, ids, ["logits"]), LOGITS)
    plan = Plan(ids, seed=0, augment_seed=0, cached_views=0, augment=AugmentConfig(), size=(1, 1))
    return Supply({}, {0: teacher}), plan


def test_rows_of_the_teacher_are_joined_by_id(tmp_path: Path) -> None:
    """Not by place: a set that holds some of the ids, in another order than the cache, gets the rows of its ids."""
    experiment = colourful(tmp_path, write_parquet(tmp_path / "images"), methods={"kd": {}})
    cache = store(experiment)
    ids = torch.from_numpy(cache.ids)[torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))[:40]]
    steps = list(torch.arange(40).split(12))
    brought = EpochReader(*rows_of(cache, ids), 1).read(steps, 0, LOGITS)
    for positions, columns in zip(steps, brought, strict=True):
        assert torch.equal(columns["0/0/logits"], cache.read(ids[positions])["logits"])
    ids[17] = 123_456
    with pytest.raises(CacheError, match=r"has no sample 123456 \(1 unknown of 40\)") as failure:
        list(EpochReader(*rows_of(cache, ids), 1).read([torch.arange(40)], 0, LOGITS))
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("change", ["one more", "one less", "another order", "another image"])
def test_a_cache_of_other_images_is_noticed_before_a_worker_starts(change: str, tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "images", list(range(COUNT)))
    experiment = colourful(tmp_path, data, methods={"kd": {}})
    store(experiment)
    prepare(experiment)
    numbers = list(range(COUNT))
    changed = {
        "one more": [*numbers, COUNT],
        "one less": numbers[:-1],
        "another order": numbers[::-1],
        "another image": [*numbers[:-1], COUNT],
    }
    write_parquet(tmp_path / "images", changed[change])
    with pytest.raises(CacheError, match=r"no teacher cache for this teacher and data .*data\.") as failure:
        prepare(experiment)
    assert "\n" not in str(failure.value)
