"""Weights: what is written comes back; what does not fit is refused before anything changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.errors import RunError, WeightsError
from raydistill.models.weights import load_weights, save_weights, weights_fingerprint
from raydistill.models.zoo import build_model


def _model(seed: int, name: str = "resnet8") -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, num_classes=4)


def _state(seed: int) -> dict[str, Tensor]:
    return dict(_model(seed).state_dict())


def test_round_trip(tmp_path: Path) -> None:
    source, target = _model(0), _model(1)
    assert weights_fingerprint(source) != weights_fingerprint(target)
    save_weights(source, tmp_path / "deep" / "student.safetensors")
    load_weights(target, tmp_path / "deep" / "student.safetensors")
    assert weights_fingerprint(source) == weights_fingerprint(target)
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["student.safetensors"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "student.safetensors"
    save_weights(_model(0), path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"student\.safetensors: cannot be written: disk full"):
        save_weights(_model(1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "best": 0.7},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    ],
)
def test_forms_of_state_dicts(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(_state(0)), tmp_path / "w.pth")
    target = _model(1)
    load_weights(target, tmp_path / "w.pth")
    assert weights_fingerprint(target) == weights_fingerprint(_model(0))


def test_prefix_chooses_one_of_several_networks(tmp_path: Path) -> None:
    both = {f"teacher.{n}": v for n, v in _state(0).items()} | {f"student.{n}": v for n, v in _state(2).items()}
    torch.save(both, tmp_path / "w.pth")
    target = _model(1)
    load_weights(target, tmp_path / "w.pth", prefix="student.")
    assert weights_fingerprint(target) == weights_fingerprint(_model(2))
    with pytest.raises(WeightsError, match=r"no tensor whose name starts with 'pupil\.'"):
        load_weights(target, tmp_path / "w.pth", prefix="pupil.")


def _refused(tmp_path: Path, content: Any) -> str:
    """Save, try to load, check that the network is untouched, return the message."""
    torch.save(content, tmp_path / "w.pth")
    target = _model(1)
    with pytest.raises(WeightsError) as caught:
        load_weights(target, tmp_path / "w.pth")
    assert weights_fingerprint(target) == weights_fingerprint(_model(1))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_unexpected_and_misshaped_tensors_are_listed(tmp_path: Path) -> None:
    state = _state(0)
    del state["fc.bias"]
    state["fc.weight"] = torch.zeros(7, 64)
    state |= {f"extra.{index}": torch.zeros(1) for index in range(9)}
    message = _refused(tmp_path, state)
    assert "missing (1): fc.bias" in message
    assert "unexpected (9): extra.0" in message
    assert "extra.7, ..." in message
    assert "extra.8" not in message
    assert "wrong shape (1): fc.weight (7, 64) instead of (4, 64)" in message


def test_weights_for_images_of_other_channels_are_told_from_others(tmp_path: Path) -> None:
    state = dict(build_model("resnet8", num_classes=4, in_channels=1).state_dict())
    assert "of 1 channel(s), this one sees 3: data.modalities" in _refused(tmp_path, state)
    state["fc.weight"] = torch.zeros(7, 64)
    assert "as many classes" in _refused(tmp_path, state)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(2), {"model": {"a": "text"}}])
def test_files_without_state_dict(tmp_path: Path, content: Any) -> None:
    assert "holds no state dict" in _refused(tmp_path, content)


class _Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    message = _refused(tmp_path, {"model": _Malicious(trace)})
    assert "cannot read" in message
    assert "more than tensors" in message
    assert not trace.exists()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(WeightsError, match="no weights at"):
            load_weights(_model(0), path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02}q\x00."])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load_weights(_model(0), tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["encoder_q.", "model.student."])
def test_names_behind_a_prefix_are_told_with_what_to_do(tmp_path: Path, prefix: str) -> None:
    torch.save({f"{prefix}{name}": value for name, value in _state(0).items()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"names begin with '{prefix}': teacher.layout"):
        load_weights(_model(0), tmp_path / "w.pth")


def test_names_that_end_alike_by_chance_are_no_prefix(tmp_path: Path) -> None:
    state = _state(0)
    longest = max(state, key=len)
    state[f"layer.{longest}"] = state.pop(longest)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights(_model(0), tmp_path / "w.pth")
    assert "names begin with" not in str(caught.value)


def test_a_run_that_was_not_trained_yet_is_told_of_as_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="`raydistill train CONFIG`"):
        load_weights(_model(0), tmp_path / "student.safetensors")


def test_truncated_file(tmp_path: Path) -> None:
    for name in ("w.pth", "w.safetensors"):
        path = tmp_path / name
        if name.endswith("pth"):
            torch.save(_state(0), path)
        else:
            save_weights(_model(0), path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(WeightsError, match="cannot read"):
            load_weights(_model(0), path)


def test_fingerprint_sees_names_types_shapes_and_values() -> None:
    def of(**tensors: Tensor) -> str:
        module = nn.Module()
        for name, value in tensors.items():
            module.register_buffer(name, value)
        return weights_fingerprint(module)

    base = torch.arange(4.0)
    prints = {
        of(a=base),
        of(b=base),
        of(a=base.reshape(2, 2)),
        of(a=base.double()),
        of(a=base + 1),
        of(a=base.view(torch.int32)),
        of(a=base[:2], b=base[2:]),
        of(b=base[2:], a=base[:2]),
    }
    assert len(prints) == 8
    assert of(a=base) == of(a=base.clone())
    assert of(a=torch.tensor(3)) != of(a=torch.tensor(4))
