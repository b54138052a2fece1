"""Images of Parquet files that are read from a copy, one by one."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raydistill.data import parquet_rows
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_train, split_train
from raydistill.data.encoded import EncodedImages
from raydistill.data.image_set import ImageSet
from raydistill.data.parquet_rows import ParquetRows
from raydistill.data.shared import from_parts, to_parts
from raydistill.data.spool import Spooled
from raydistill.errors import DataError, RunError
from tests.data_room.test_reading import COUNT, assert_same, jpeg


@pytest.fixture(autouse=True)
def _remembers_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "remembered"))


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    write(tmp_path, range(COUNT))
    return DataConfig(name="parquet", root=str(tmp_path), image_size=16, spool=str(tmp_path / "copies"))


def write(folder: Path, numbers: range) -> None:
    table = pa.table({"image": [jpeg(number) for number in numbers], "label": [number % 3 for number in numbers]})
    pq.write_table(table.slice(0, 10), folder / "train-0.parquet", row_group_size=4)
    pq.write_table(table.slice(10), folder / "train-1.parquet", row_group_size=5)


def opened(config: DataConfig, **values: object) -> ImageSet:
    return load_train(config.model_copy(update={"reading": "stream", **values}))


def encoded_of(images: ImageSet) -> object:
    assert isinstance(images, EncodedImages)
    return images.encoded


def copies(config: DataConfig) -> list[Path]:
    return list(Path(str(config.spool)).glob("*"))


def test_images_are_those_of_the_row_groups(config: DataConfig) -> None:
    resident, stream = load_train(config.model_copy(update={"reading": "resident"})), opened(config)
    assert isinstance(encoded_of(stream), Spooled)
    assert_same(resident, stream)
    kept, parts = split_train(resident, config), split_train(stream, config)
    assert_same(kept.train, parts.train)
    assert_same(resident, from_parts(pickle.loads(pickle.dumps(to_parts(stream)))))
    part = config.model_copy(update={"subset": 20})
    assert_same(load_train(part.model_copy(update={"reading": "resident"})), opened(part))


def test_no_row_group_is_read_once_the_copy_is_there(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(config)
    (copy,) = copies(config)
    made = copy.stat().st_mtime_ns
    monkeypatch.setattr(parquet_rows, "_read_group", lambda *given: pytest.fail("read a row group"))
    again = opened(config)
    assert torch.equal(again.images, first.images) and copies(config) == [copy] and copy.stat().st_mtime_ns == made


def test_other_files_have_another_copy(config: DataConfig, tmp_path: Path) -> None:
    before = opened(config)
    write(tmp_path, range(1, COUNT + 1))
    after = opened(config)
    assert len(copies(config)) == 2
    assert torch.equal(after.images[: COUNT - 1], before.images[1:])


def test_nothing_is_copied_of_what_is_read_one_by_one_or_held_in_memory(config: DataConfig, tmp_path: Path) -> None:
    load_train(config.model_copy(update={"reading": "resident"}))
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    pq.write_table(pa.table({"image": [f"{number}.jpg" for number in range(4)]}), tmp_path / "train-0.parquet")
    (tmp_path / "train-1.parquet").unlink()
    assert isinstance(encoded_of(opened(config)), ParquetRows)
    assert not copies(config)


def test_a_copy_that_is_damaged_or_cannot_be_made_is_named(config: DataConfig, tmp_path: Path) -> None:
    stream = opened(config)
    (copy,) = copies(config)
    content = copy.read_bytes()
    copy.write_bytes(b"\0" * 200 + content[200:])
    with pytest.raises(DataError, match="image row 0: changed since the images were checked"):
        stream.pixels(torch.tensor([0]))
    copy.write_bytes(content[:-9])
    with pytest.raises(DataError, match=rf"{copy.name}: not a whole copy of {COUNT} images; remove it"):
        opened(config)
    copy.unlink()
    with pytest.raises(DataError, match=rf"image row 0: .*No such file.*{copy.name}"):
        stream.pixels(torch.tensor([0]))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        opened(config, spool=str(tmp_path / "file"))


def test_folders_need_no_copy() -> None:
    with pytest.raises(ValueError, match="spool: the data set 'image_folder' does not take it, only parquet"):
        DataConfig(name="image_folder", root="images", spool="copies")
