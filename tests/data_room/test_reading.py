"""Sets that decode on demand: the same images, ids and fingerprint as those that lie in memory."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydistill.data import machine, opening, parquet_rows
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train, split_train
from raydistill.data.encoded import EncodedImages
from raydistill.data.image_set import DecodedImages, ImageSet
from raydistill.data.shared import from_parts, to_parts
from raydistill.errors import DataError
from tests.data_room.files import write_folder

COUNT = 24


@pytest.fixture(autouse=True)
def remembers_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checks are remembered in a folder of the test's own."""
    folder = tmp_path_factory.mktemp("remembered")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def jpeg(number: int) -> bytes:
    """Noise of a size of its own."""
    buffer = io.BytesIO()
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 256, (30 + number, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_noise(root: Path, count: int = COUNT) -> None:
    for number in range(count):
        path = root / "train" / ("cat", "dog")[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))


def config_of(root: Path, name: str = "image_folder", **values: object) -> DataConfig:
    return DataConfig.model_validate({"name": name, "root": str(root), "image_size": 16, **values})


def both(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    resident, stream = (load_train(config.model_copy(update={"reading": kind})) for kind in ("resident", "stream"))
    assert isinstance(resident, DecodedImages) and isinstance(stream, EncodedImages)
    return resident, stream


def assert_same(resident: ImageSet, stream: ImageSet) -> None:
    """All that the two kinds have in common is equal, in any batch and order."""
    assert stream.shape == resident.shape and len(stream) == len(resident)
    assert torch.equal(stream.ids, resident.ids) and stream.skipped == resident.skipped
    assert (stream.mean, stream.std, stream.num_classes) == (resident.mean, resident.std, resident.num_classes)
    if resident.labels is None or stream.labels is None:
        assert resident.labels is stream.labels
    else:
        assert torch.equal(stream.labels, resident.labels)
    order = torch.randperm(len(resident), generator=torch.Generator().manual_seed(0))
    for batch in (order, order[:1], order[:0], torch.tensor([1, 1, 0])):
        assert torch.equal(stream.pixels(batch), resident.pixels(batch))
    assert torch.equal(stream.images, resident.images)
    assert stream.fingerprint() == resident.fingerprint()
    assert stream.take(order[:5]).fingerprint() == resident.take(order[:5]).fingerprint() != resident.fingerprint()
    assert torch.equal(stream.take(order[:5]).pixels(torch.tensor([1, 0])), resident.images[order[:2].flip(0)])


def test_folder(tmp_path: Path) -> None:
    write_noise(tmp_path)
    resident, stream = both(config_of(tmp_path, subset=20))
    assert_same(resident, stream)
    config = config_of(tmp_path, validation=0.4)
    kept, streamed = split_train(resident, config), split_train(stream, config)
    assert_same(kept.train, streamed.train)
    assert_same(kept.validation, streamed.validation)


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_parquet(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [jpeg(number) for number in range(COUNT)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.jpg").write_bytes(content)
    values: dict[str, list[object]] = {
        "bytes": list(contents),
        "struct": [{"bytes": content, "path": None} for content in contents],
        "path": [f"{number}.jpg" for number in range(COUNT)],
    }
    table = pa.table({"image": values[kind], "label": [number % 3 for number in range(COUNT)]})
    pq.write_table(table.slice(0, 10), tmp_path / "train-0.parquet", row_group_size=4)
    pq.write_table(table.slice(10), tmp_path / "train-1.parquet", row_group_size=5)
    pq.write_table(table.slice(10), tmp_path / "test.parquet")
    resident, stream = both(config_of(tmp_path, "parquet", subset=20))
    # One row group at a time, so that others are read again and again.
    monkeypatch.setattr(parquet_rows, "_recent", parquet_rows._Recent(1))
    assert_same(resident, stream)
    # Files of which a process keeps but a few groups, here one too.
    monkeypatch.setattr(parquet_rows, "_KEPT_BYTES", 0)
    monkeypatch.setattr(parquet_rows, "_passing", parquet_rows._Recent(1))
    large = load_train(config_of(tmp_path, "parquet", subset=20, reading="stream"))
    assert isinstance(large, EncodedImages) and isinstance(large.encoded, parquet_rows.ParquetRows)
    assert not large.encoded.small
    assert_same(resident, large)
    assert isinstance(load_test(config_of(tmp_path, "parquet", reading="stream")), EncodedImages)


@pytest.mark.parametrize("modality", ["luminance", "chrominance"])
def test_modalities(tmp_path: Path, modality: str) -> None:
    write_noise(tmp_path)
    plain = both(config_of(tmp_path))[1]
    resident, stream = both(config_of(tmp_path, modalities={"student": modality}))
    assert_same(resident, stream)
    assert stream.fingerprint() != plain.fingerprint()


def test_colours_where_all_should_be_grey(tmp_path: Path) -> None:
    write_noise(tmp_path)
    stream = load_train(config_of(tmp_path, modalities={"student": "grey", "teacher": "grey"}, reading="stream"))
    with pytest.raises(DataError, match="modality 'grey', but there are colours"):
        stream.pixels(torch.tensor([0]))


def test_another_process_sees_the_same(tmp_path: Path) -> None:
    write_noise(tmp_path)
    resident, stream = both(config_of(tmp_path))
    data = pickle.dumps(to_parts(stream))
    assert len(data) < 10_000 < len(pickle.dumps(to_parts(resident)))
    assert {field.name for field in fields(stream)} < set(to_parts(stream))
    (tmp_path / "set").write_bytes(data)
    program = (
        "import pickle, sys, torch; from raydistill.data.shared import from_parts; "
        "images = from_parts(pickle.load(open('set', 'rb'))); "
        "sys.stdout.buffer.write(images.pixels(torch.tensor([7, 2])).numpy().tobytes())"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=True).stdout
    assert found == resident.images[[7, 2]].numpy().tobytes()
    assert from_parts(to_parts(resident)).fingerprint() == resident.fingerprint()


def test_content_and_size_decide_the_fingerprint(tmp_path: Path) -> None:
    write_noise(tmp_path)
    before = load_train(config_of(tmp_path)).fingerprint()
    assert load_train(config_of(tmp_path, image_size=8)).fingerprint() != before
    path = tmp_path / "train" / "cat" / "00.jpg"
    path.write_bytes(jpeg(99))
    changed = both(config_of(tmp_path))
    assert changed[0].fingerprint() == changed[1].fingerprint() != before


def test_damaged_images_are_known_when_the_set_is_opened(tmp_path: Path) -> None:
    write_noise(tmp_path)
    (tmp_path / "train" / "cat" / "04.jpg").write_bytes(jpeg(4)[:200])
    (tmp_path / "train" / "dog" / "05.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/04\.jpg: .*set data\.on_error to skip"):
        load_train(config_of(tmp_path, reading="stream"))
    config = config_of(tmp_path, on_error="skip", max_errors=0.1)
    resident, stream = both(config)
    assert len(stream) == COUNT - 2 and len(stream.skipped) == 2
    assert_same(resident, stream)
    assert_same(resident, both(config)[1])  # what was remembered tells of them too
    with pytest.raises(DataError, match=r"2 of 24 images can't be decoded, above data\.max_errors 0\.01"):
        load_train(config_of(tmp_path, on_error="skip", reading="stream"))
    with pytest.raises(DataError, match=r"cat/04\.jpg: .*set data\.on_error to skip"):
        load_train(config_of(tmp_path, reading="stream"))


def test_files_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_noise(tmp_path)
    config = config_of(tmp_path, reading="stream")
    before = load_train(config)
    examined: list[int] = []
    examine = opening._examine

    def counted(*given: object) -> object:
        examined.append(1)
        return examine(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "_examine", counted)
    assert load_train(config).fingerprint() == before.fingerprint() and not examined
    (tmp_path / "train" / "cat" / "00.jpg").write_bytes(jpeg(98))
    assert load_train(config).fingerprint() != before.fingerprint() and len(examined) == COUNT


def test_a_damaged_memory_of_the_check_is_not_believed(tmp_path: Path, remembers_here: Path) -> None:
    write_noise(tmp_path)
    before = load_train(config_of(tmp_path, reading="stream")).fingerprint()
    (record,) = remembers_here.rglob("*.npz")
    record.write_bytes(record.read_bytes()[:100])
    assert load_train(config_of(tmp_path, reading="stream")).fingerprint() == before


def test_a_file_changed_or_lost_after_opening_is_named(tmp_path: Path) -> None:
    write_noise(tmp_path)
    stream = load_train(config_of(tmp_path, reading="stream"))
    path = tmp_path / "train" / "cat" / "02.jpg"
    told = path.stat()
    path.write_bytes(jpeg(97)[: told.st_size].ljust(told.st_size, b"\0"))
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    with pytest.raises(DataError, match=r"cat/02\.jpg: changed since the images were checked"):
        stream.pixels(torch.arange(4))
    path.unlink()
    with pytest.raises(DataError, match=r"cat/02\.jpg: .*No such file"):
        stream.pixels(torch.arange(4))
    assert stream.pixels(torch.tensor([0, 2])).shape == (2, 3, 16, 16)


def test_a_parquet_file_changed_or_lost_after_opening_is_named(tmp_path: Path) -> None:
    def write(numbers: range, column: str = "image") -> None:
        table = pa.table({column: [jpeg(number) for number in numbers]})
        pq.write_table(table, tmp_path / "train-0.parquet", row_group_size=5)

    write(range(12))
    stream, all_of_them = load_train(config_of(tmp_path, "parquet", reading="stream")), torch.arange(12)
    for numbers, column in ((range(11), "image"), (range(5), "image"), (range(12), "picture")):
        write(numbers, column)
        with pytest.raises(DataError, match=r"train-0\.parquet: changed since its rows were counted; run again"):
            stream.pixels(all_of_them)
    write(range(1, 13))
    with pytest.raises(DataError, match="image row 0: changed since the images were checked"):
        stream.pixels(all_of_them)
    (tmp_path / "train-0.parquet").unlink()
    with pytest.raises(DataError, match=r"image row 0: .*No such file.*train-0\.parquet"):
        stream.pixels(all_of_them)


def test_sizes_must_agree_without_an_image_size(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert_same(*both(config_of(tmp_path, image_size=None)))
    write_noise(tmp_path, 2)
    with pytest.raises(DataError, match=r"images differ in size: .*set data\.image_size"):
        load_train(config_of(tmp_path, image_size=None, reading="stream"))


@pytest.mark.parametrize("size", [16, None])
def test_auto_streams_what_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    write_folder(tmp_path)
    config = config_of(tmp_path, image_size=size)
    decoded = load_train(config)
    assert isinstance(decoded, DecodedImages)
    monkeypatch.setattr(machine, "memory", lambda: decoded.images.numel() * 4 - 1)
    stream = load_train(config)
    assert isinstance(stream, EncodedImages)
    assert torch.equal(stream.pixels(torch.arange(10)), decoded.images)
    with pytest.raises(DataError, match="all images at once would take"):
        _ = stream.images


def test_only_encoded_images_stream() -> None:
    with pytest.raises(ValueError, match=r"reading: 'stream' is for encoded images .*'digits' are not"):
        DataConfig(name="digits", reading="stream")
