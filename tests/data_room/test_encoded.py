"""Folders and Parquet files of encoded images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train
from raydistill.errors import DataError
from tests.data_room.files import write_folder, write_image


def folder_config(root: Path, **fields: object) -> DataConfig:
    return DataConfig.model_validate({"name": "image_folder", "root": str(root), "image_size": 8, **fields})


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def test_folder_of_classes(tmp_path: Path) -> None:
    write_folder(tmp_path)
    train = load_train(folder_config(tmp_path))
    assert train.images.shape == (10, 3, 8, 8) and train.num_classes == 2
    assert train.labels is not None and train.labels.tolist() == [0] * 5 + [1] * 5
    assert train.images[7, :, 4, 4].tolist() == [102, 51, 153]
    assert int(train.ids.min()) >= 0
    assert not set(train.ids.tolist()) & set(load_test(folder_config(tmp_path)).ids.tolist())


def test_new_files_leave_old_ids_alone(tmp_path: Path) -> None:
    write_folder(tmp_path)
    before = load_train(folder_config(tmp_path))
    write_image(tmp_path / "train" / "cat" / "00.png", value=7)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / ".hidden.png").write_text("no image")
    after = load_train(folder_config(tmp_path))
    assert len(after) == 11 and set(before.ids.tolist()) < set(after.ids.tolist())


def test_subset_is_chosen_before_decoding(tmp_path: Path) -> None:
    write_folder(tmp_path)
    chosen = set(load_train(folder_config(tmp_path, subset=3)).ids.tolist())
    everything = load_train(folder_config(tmp_path))
    files = sorted((tmp_path / "train").glob("*/*.png"))
    for path, number in zip(files, everything.ids.tolist(), strict=True):
        if number not in chosen:
            path.write_bytes(b"damaged")
    assert set(load_train(folder_config(tmp_path, subset=3)).ids.tolist()) == chosen
    with pytest.raises(DataError, match=r"data\.subset asks for 11"):
        load_train(folder_config(tmp_path, subset=11))


def test_folder_without_classes(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "train" / f"{number}.jpg")
    train = load_train(folder_config(tmp_path))
    assert train.labels is None and train.num_classes == 0 and len(train.take(torch.tensor([1]))) == 1
    write_image(tmp_path / "train" / "cat" / "0.jpg")
    with pytest.raises(DataError, match="an image beside class folders"):
        load_train(folder_config(tmp_path))


def test_folder_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder; images lie in train and test"):
        load_train(folder_config(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no folder train there; images lie in train and test"):
        load_train(folder_config(tmp_path))
    write_image(tmp_path / "unsplit" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"move its folders \(cat\) into \S+unsplit/train, then about a fifth"):
        load_train(folder_config(tmp_path / "unsplit"))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="no image in it"):
        load_train(folder_config(tmp_path))
    write_folder(tmp_path)
    write_image(tmp_path / "test" / "bird" / "0.png")
    with pytest.raises(DataError, match=r"missing none, unknown \['bird'\]"):
        load_test(folder_config(tmp_path))
    (tmp_path / "train" / "bird").mkdir()
    with pytest.raises(DataError, match="bird: a class without an image"):
        load_train(folder_config(tmp_path))


def test_damaged_images_stop_or_are_skipped(tmp_path: Path) -> None:
    write_folder(tmp_path)
    whole = tmp_path / "train" / "cat" / "2.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(whole)
    whole.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"cat/2\.png: .*truncated.*on_error"):
        load_train(folder_config(tmp_path))
    train = load_train(folder_config(tmp_path, on_error="skip", max_errors=0.1))
    assert len(train) == 9 and len(train.skipped) == 1 and "cat/2.png: " in str(train.skipped[0])
    assert train.labels is not None and train.labels.tolist() == [0] * 4 + [1] * 5
    (tmp_path / "train" / "dog" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 10 images can't be decoded, above data\.max_errors 0\.1"):
        load_train(folder_config(tmp_path, on_error="skip", max_errors=0.1))


def test_decompression_bombs_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(DataError, match=r"cat/0\.png: .*(320|20 x 16) pixels"):
        load_train(folder_config(tmp_path))


def test_sizes_must_agree_without_an_image_size(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert load_train(folder_config(tmp_path, image_size=None)).shape == (3, 16, 20)
    write_image(tmp_path / "train" / "dog" / "9.png", size=(9, 9))
    with pytest.raises(DataError, match=r"is 20 x 16, .*dog/9\.png is 9 x 9; set data\.image_size"):
        load_train(folder_config(tmp_path, image_size=None))


def test_unusual_pixels_become_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    Image.fromarray(np.full((8, 8), 200 * 256, np.uint16)).save(folder / "a.png")
    Image.new("L", (8, 8), 100).save(folder / "b.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(folder / "c.png")
    Image.new("P", (8, 8), 0).save(folder / "d.gif")
    images = load_train(folder_config(tmp_path)).images
    assert images[:3, :, 0, 0].tolist() == [[200] * 3, [100] * 3, [1, 2, 3]]


def test_wide_images_are_scaled_and_cut_to_the_centre(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    picture = np.zeros((16, 48, 3), np.uint8)
    picture[:, 16:32] = 255
    Image.fromarray(picture).save(folder / "a.png")
    image = load_train(folder_config(tmp_path)).images[0]
    assert image.shape == (3, 8, 8) and int(image[:, :, 1:-1].min()) == 255


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for name in ("n01", "n02"):
        for number in range(2):
            write_image(root / "train" / name / "images" / f"{name}_{number}.JPEG", size=(64, 64))
    for number in range(2):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", size=(64, 64))
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn02\t0\t0\t1\t1\nval_1.JPEG\tn01\t0\t0\t1\t1\n")
    config = DataConfig(name="tiny_imagenet", root=str(tmp_path))
    train, test = load_train(config), load_test(config)
    assert train.shape == (3, 64, 64) and train.labels is not None and train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels is not None and test.labels.tolist() == [1, 0]
    annotations.write_text("val_0.JPEG\tn09\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt:1: expected"):
        load_test(config)


def parquet_config(root: Path, **fields: object) -> DataConfig:
    return DataConfig.model_validate({"name": "parquet", "root": str(root), "image_size": 8, **fields})


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_parquet_image_columns(tmp_path: Path, kind: str) -> None:
    values: list[object] = []
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        content = png(number)
        values.append({"bytes": content, "struct": {"bytes": content, "path": None}, "path": f"{number}.png"}[kind])
    table = pa.table({"image": values, "label": [3, 0, 1, 3]})
    pq.write_table(table.slice(0, 2), tmp_path / "train-0.parquet")
    pq.write_table(table.slice(2), tmp_path / "train-1.parquet")
    pq.write_table(table.slice(1, 1), tmp_path / "test.parquet")
    train, test = load_train(parquet_config(tmp_path)), load_test(parquet_config(tmp_path))
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3] and train.ids.tolist() == [0, 1, 2, 3]
    assert train.labels is not None and train.labels.tolist() == [3, 0, 1, 3] and train.num_classes == 4
    assert len(test) == 1 and test.num_classes == 4


def test_parquet_names_ids_and_subset(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    columns = {"picture": [png(n) for n in range(4)], "kind": ["b", "a", "b", "c"], "key": [40, 10, 30, 20]}
    pq.write_table(pa.table(columns), path)
    config = parquet_config(path, image_column="picture", label_column="kind", id_column="key")
    train = load_train(config)
    assert train.ids.tolist() == [40, 10, 30, 20] and train.num_classes == 3
    assert train.labels is not None and train.labels.tolist() == [1, 0, 1, 2]
    part = load_train(config.model_copy(update={"subset": 2}))
    assert set(part.ids.tolist()) < {40, 10, 30, 20} and part.num_classes == 3
    with pytest.raises(DataError, match="is a single file"):
        load_test(config)
    with pytest.raises(DataError, match="no column 'pictures'; did you mean 'picture'"):
        load_train(config.model_copy(update={"image_column": "pictures"}))
    with pytest.raises(DataError, match="expected bytes or paths, found int"):
        load_train(config.model_copy(update={"image_column": "key"}))


def test_parquet_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which has none"):
        load_train(parquet_config(tmp_path))
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"train\.parquet: not a whole Parquet file"):
        load_train(parquet_config(tmp_path))
    for columns, words in (
        ({"image": [png(0), png(1)], "id": [1, 1]}, "ids are not unique"),
        ({"image": [png(0), png(1)], "id": [1, None]}, "1 rows have no value"),
        ({"image": [png(0), png(1)], "id": [1, 2], "label": [0, -1]}, "label -1 is below 0"),
        ({"image": [png(0), None], "id": [1, 2]}, "row 1: no image"),
        ({"image": [png(0), png(1)], "id": [0.5, 2.0]}, "expected whole numbers or strings, found double"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(DataError, match=words):
            load_train(parquet_config(tmp_path, id_column="id"))
    pq.write_table(pa.table({"image": [png(0)], "label": ["cat"]}), path)
    pq.write_table(pa.table({"image": [png(0)], "label": ["dog"]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="no training image has: dog"):
        load_test(parquet_config(tmp_path))
