"""Images from anybody: pixels or one line; no bomb, no endless file, no file from elsewhere, no program that is run."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_train
from raydistill.data.decoding import attempt
from raydistill.errors import DataError
from tests.security.attacks import nothing_written, refused


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG of one bit a pixel that says how large it is; all its pixels are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def small(colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


BOMB = png(60_000, 60_000)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(code) run\nshowpage\n%%EOF\n"


def a_folder(root: Path, bad: bytes) -> DataConfig:
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "1.png").write_bytes(small())
    (root / "train" / "dog" / "2.png").write_bytes(bad)
    return DataConfig(name="image_folder", root=str(root))


def a_parquet(root: Path, bad: Any) -> DataConfig:
    root.mkdir()
    pq.write_table(pa.table({"image": [small(), bad]}), root / "train.parquet")
    return DataConfig(name="parquet", root=str(root))


@pytest.mark.parametrize("made", [a_folder, a_parquet])
@pytest.mark.parametrize("bad", [BOMB, png(2**31 - 1, 2**31 - 1), png(0, 0), EPS, b"", b"\x00" * 100], ids=range(6))
@pytest.mark.parametrize("reading", ["resident", "stream"])
def test_bombs_and_what_is_no_image_stop_the_reading(tmp_path: Path, made: Any, bad: bytes, reading: str) -> None:
    config = made(tmp_path / "data", bad).model_copy(update={"reading": reading})
    with nothing_written(tmp_path), pytest.raises(DataError) as caught:
        load_train(config)
    assert "\n" not in str(caught.value)


def test_the_command_refuses_a_bomb_with_exit_code_2(tmp_path: Path) -> None:
    config = a_folder(tmp_path / "data", BOMB)
    (tmp_path / "x.yaml").write_text(
        f"name: x\ndata: {{name: image_folder, root: {config.root}}}\nmethods: {{kd: {{}}}}\n"
        f"cache: {{root: {tmp_path / 'cache'}}}\nstudent: {{model: resnet8}}\nteacher: {{model: resnet8}}\n"
    )
    with nothing_written(tmp_path):
        assert "dog/2.png: Image size (3600000000 pixels) exceeds limit" in refused(
            "cache", "plan", str(tmp_path / "x.yaml")
        )


def test_a_text_that_grows_when_it_is_unpacked_is_refused() -> None:
    text = b"Comment\x00\x00" + zlib.compress(bytes(200 * 2**20), 9)
    kind = b"zTXt"
    chunk = struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text))
    assert isinstance(attempt(png(8, 8, chunk), None), str)


@pytest.mark.parametrize("name", ["/dev/zero", "../outside.png", "/etc/hostname", "a/../../outside.png", "pipe", "x\0"])
def test_rows_name_regular_files_below_their_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.png").write_bytes(small())
    config = a_parquet(tmp_path / "data", small())
    os.mkfifo(tmp_path / "data" / "pipe")
    (tmp_path / "data" / "inside.png").write_bytes(small())
    pq.write_table(pa.table({"image": ["inside.png", "inside.png"]}), tmp_path / "data" / "train.parquet")
    assert len(load_train(config)) == 2
    pq.write_table(pa.table({"image": ["inside.png", name]}), tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError, match=r"not below the folder|no regular file"):
        load_train(config)


def test_an_endless_file_among_images_is_no_image(tmp_path: Path) -> None:
    config = a_folder(tmp_path / "data", small())
    (tmp_path / "data" / "train" / "dog" / "2.png").unlink()
    (tmp_path / "data" / "train" / "dog" / "2.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="no regular file"):
        load_train(config)


def test_annotations_name_files_of_their_folder(tmp_path: Path) -> None:
    for name in ("train/n1/images", "val/images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "train/n1/images/1.png").write_bytes(small())
    (tmp_path / "outside.png").write_bytes(small())
    (tmp_path / "val" / "val_annotations.txt").write_text("../../outside.png\tn1\n")
    from raydistill.data.datasets import load_test

    with pytest.raises(DataError, match="expected a file name"):
        load_test(DataConfig(name="tiny_imagenet", root=str(tmp_path)))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (pa.array([0, 2**40], pa.int64()), "beyond the 10000000 classes"),
        (pa.array([0, 2**64 - 1], pa.uint64()), "from 2\\^63 on"),
        (pa.array([-1, 0], pa.int64()), "below 0"),
        (pa.array([0.5, 1.0]), "expected whole numbers"),
        (pa.StringArray.from_buffers(2, pa.py_buffer(np.int32([0, 1, 2])), pa.py_buffer(b"\xff\xfe")), "utf-8"),
    ],
)
def test_labels_beyond_all_measure_are_refused(tmp_path: Path, labels: pa.Array, said: str) -> None:
    config = a_parquet(tmp_path / "data", small())
    pq.write_table(pa.table({"image": [small(), small()], "label": labels}), tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError, match=said):
        load_train(config)


def test_mutated_parquet_files_are_read_or_refused(tmp_path: Path) -> None:
    config = a_parquet(tmp_path / "data", small(1))
    path = tmp_path / "data" / "train.parquet"
    pq.write_table(pa.table({"image": [small(), small(1)], "label": ["a", "b"]}), path)
    sound, draw = path.read_bytes(), random.Random(0)
    refusals = 0
    for _ in range(200):
        data = bytearray(sound)
        for _ in range(draw.choice((1, 2, 5))):
            place = draw.randrange(len(data) - 400, len(data)) if draw.random() < 0.7 else draw.randrange(len(data))
            data[place] = draw.randrange(256)
        path.write_bytes(data)
        try:
            load_train(config)
        except DataError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert refusals > 50


def test_mutated_images_are_decoded_or_refused() -> None:
    draw = random.Random(0)
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        pixels.save(buffer, kind)
        sound = buffer.getvalue()
        for _ in range(100):
            data = bytearray(sound)
            for _ in range(draw.choice((1, 3))):
                data[draw.randrange(min(len(data), 200))] = draw.randrange(256)
            found = attempt(bytes(data), 8)
            assert isinstance(found, str) or found.shape == (8, 8, 3)
