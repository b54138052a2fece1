"""Weights from anybody: tensors or one line; no pickle's code is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.errors import RunError, WeightsError
from raydistill.models.layouts import LAYOUTS, load_layout
from raydistill.models.loading import build_described
from raydistill.models.weights import load_weights, read_file
from raydistill.models.zoo import build_model
from raydistill.network_config import NetworkConfig
from raydistill.training.checkpoint import read_record, read_state, write_state
from raydistill.training.shelf import Shelf
from tests.security.attacks import Trap, nothing_written, refused


def with_trap(trap: Trap, kind: str) -> bytes:
    """A file of weights that runs code where it is unpickled, in each form that torch has known."""
    buffer = io.BytesIO()
    match kind:
        case "bare pickle":
            return pickle.dumps(trap)
        case "zip":
            torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": trap}, buffer)
        case "legacy":
            torch.save(trap, buffer, _use_new_zipfile_serialization=False)
        case "protocol 4":
            torch.save(trap, buffer, pickle_protocol=4)
        case "program":  # as torch.jit and torch.export lay out theirs
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps(trap))
                archive.writestr("archive/constants.pkl", pickle.dumps(trap))
                archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["bare pickle", "zip", "legacy", "protocol 4", "program"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_code_in_weights_is_not_run(tmp_path: Path, sprung: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(with_trap(Trap(sprung), kind))
    with nothing_written(tmp_path), pytest.raises(WeightsError) as caught:
        build_described(NetworkConfig(model="resnet8", weights=str(path)), 10, 1)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # no advice to load it unsafely


def test_the_trap_is_one(tmp_path: Path) -> None:
    torch.load(io.BytesIO(with_trap(Trap(tmp_path / "trap"), "zip")), weights_only=False)
    assert (tmp_path / "trap").read_text() == "code was run"


def test_the_command_refuses_them_with_exit_code_2(tmp_path: Path, sprung: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(with_trap(Trap(sprung), "zip"))
    (tmp_path / "x.yaml").write_text(
        f"name: x\noutput: {tmp_path / 'runs'}\ndata: {{name: digits}}\nmethods: {{kd: {{}}}}\n"
        "student: {model: resnet8}\n"
        f"cache: {{root: {tmp_path / 'cache'}}}\nteacher: {{model: resnet8, weights: {tmp_path / 'weights.pt'}}}\n"
    )
    with nothing_written(tmp_path):
        assert "it is damaged or holds more than tensors" in refused("cache", "plan", str(tmp_path / "x.yaml"))


def safetensors(header: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + body


def described(**tensor: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **tensor}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b"{}", length=2**63),
        safetensors(b"{}", length=2**64 - 1),
        safetensors(b"{}", length=200 * 2**20),
        safetensors(b"{" * 100_000),
        safetensors(described(shape=[2**40, 2**40]), body=bytes(4)),
        safetensors(described(shape=[-1]), body=bytes(4)),
        safetensors(described(data_offsets=[0, 2**62]), body=bytes(4)),
        safetensors(described(data_offsets=[4, 0]), body=bytes(4)),
        safetensors(described(dtype="F31"), body=bytes(4)),
        b"",
        b"\x00" * 7,
    ],
    ids=range(11),
)
def test_headers_that_lie_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


def test_storages_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, buffer)
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(buffer) as sound, zipfile.ZipFile(path, "w") as archive:
        for name in sound.namelist():
            archive.writestr(name, b"" if name.endswith("/data/0") else sound.read(name))
    with pytest.raises(WeightsError):
        read_file(path)


def test_a_pipe_is_no_file_of_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="no weights at"):
        load_weights(build_model("resnet8", 10, 1), tmp_path / "weights.pt")


NO_NETWORKS: tuple[Any, ...] = (
    *(None, 3, [1], "text", {}, {"state_dict": None}, {"model": 1}, {"teacher": []}, {1: torch.zeros(1)}),
    *({"state_dict": {"a": [1]}}, {"model": {1: torch.zeros(1)}}, {"teacher": {"backbone.x": torch.zeros(0)}}),
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whatever_a_public_checkpoint_holds_it_fits_or_is_refused(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "weights.pt"
    network = build_model("resnet8" if layout == "crd" else "torchvision/resnet18", 10, 3)
    for content in NO_NETWORKS:
        torch.save(content, path)
        with pytest.raises(WeightsError) as caught:
            load_layout(network, path, layout)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_of_a_run_is_read_without_running_its_code(tmp_path: Path, sprung: Path) -> None:
    shelf = Shelf(tmp_path / "checkpoints")
    shelf.put({"epoch": 1}, 10, None)
    shelf.put({"epoch": 2}, 20, None)
    newest = shelf.at(20)
    write_state({"epoch": 2, "history": [Trap(sprung)]}, newest, step=20)  # with a checksum that is right
    with pytest.raises(RunError) as caught:
        read_state(newest, torch.device("cpu"))
    assert "weights_only" not in str(caught.value)
    said: list[str] = []
    taken = shelf.take(torch.device("cpu"), said.append)
    assert taken is not None and taken[1] == {"epoch": 1}
    assert len(said) == 1 and "set aside" in said[0]


@pytest.mark.parametrize("record", ["[" * 100_000, "[]", "3", '{"bytes": "x"}', '{"bytes": 1e999}', "\x00"])
def test_records_of_checkpoints_that_are_none(tmp_path: Path, record: str) -> None:
    shelf = Shelf(tmp_path / "checkpoints")
    shelf.put({"epoch": 1}, 10, None)
    (shelf.at(10) / "checkpoint.json").write_text(record)
    assert isinstance(read_record(shelf.at(10)), dict)
    with pytest.raises(RunError):
        read_state(shelf.at(10), torch.device("cpu"))
