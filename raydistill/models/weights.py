"""Reading, writing and identifying the weights of a network."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from raydistill.errors import WeightsError
from raydistill.files import make_folders, write_atomically

_LISTED = 8
_WRAPPERS = ("state_dict", "model")
_PARALLEL_PREFIX = "module."


def load_weights(model: nn.Module, path: str | os.PathLike[str], *, prefix: str = "") -> None:
    """Load weights strictly: every tensor of the model comes from the file, and the file holds no other.

    Args:
        model: is changed only if everything fits.
        path: ``.safetensors``, or a file of ``torch.save`` that holds a state dict, bare or under ``state_dict`` or
            ``model``; ``module.`` in front of all its names is dropped.
        prefix: take only the tensors whose names start with it, and drop it from their names.
    """
    source = Path(path)
    fit_state(model, _under_prefix(state_dict_in(read_file(source), source), prefix, source), source)


def fit_state(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load a state dict strictly. Raises ``WeightsError``, listing what does not fit, before anything changes."""
    wanted = model.state_dict()
    faults = [
        listing("missing", (name for name in wanted if name not in state)),
        listing("unexpected", (name for name in state if name not in wanted)),
        listing("wrong shape", _shape_faults(state, wanted)),
    ]
    if any(faults):
        hint = (
            _prefix_hint(state, wanted)
            or _channels_hint(state, wanted)
            or "Is it of this model, and trained for as many classes?"
        )
        raise WeightsError(f"{source} does not fit the network: {'; '.join(filter(None, faults))}. {hint}")
    model.load_state_dict(state)


def save_weights(
    model: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write the state dict as safetensors, whole or not at all. Raises ``RunError`` where that fails."""
    target = Path(path)
    make_folders(target.parent)
    # Clones, because the format refuses tensors that share memory.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    write_atomically(target, save(state, metadata={"format": "pt", **metadata}))


def weights_fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of the state dict, in its order."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        head = [name, str(value.dtype), list(value.shape)]
        digest.update(json.dumps(head).encode())
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def read_file(source: Path) -> Any:
    """Return what a checkpoint holds; no code in it is run. Raises ``WeightsError``."""
    if not source.is_file():
        writer = {"student.safetensors": "train", "model.safetensors": "teacher"}.get(source.name)
        advice = f"; `raydistill {writer} CONFIG` writes them" if writer else ""
        raise WeightsError(f"no weights at {source}{advice}")
    try:
        if source.suffix == ".safetensors":
            return load_file(source)
        # Public checkpoints often hold the arguments of their training; the class is a mere container.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever their bytes happen to mean
        raise WeightsError(f"cannot read {source}: {refusal_of(error)}") from error


def state_dict_in(content: Any, source: Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint, without ``module.`` in front of all its names."""
    return _without_parallel_prefix(_unwrapped(content, source))


def refusal_of(error: Exception) -> str:
    """Return one line of an error; PyTorch's advice to load unsafely, which may follow, is left out."""
    lines = str(error).strip().splitlines() or [""]
    refused = any("WeightsUnpickler" in line or "weights_only" in line for line in lines)
    return "it is damaged or holds more than tensors" if refused else f"{type(error).__name__}: {lines[0]}"


def _unwrapped(content: Any, source: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{source} holds no state dict but {type(content).__name__}")
    strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise WeightsError(f"{source} holds no state dict: {listing('not tensors', strange)}")
    return {str(name): value for name, value in content.items()}


def _without_parallel_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while state and all(name.startswith(_PARALLEL_PREFIX) for name in state):
        state = {name.removeprefix(_PARALLEL_PREFIX): value for name, value in state.items()}
    return state


def _under_prefix(state: dict[str, Tensor], prefix: str, source: Path) -> dict[str, Tensor]:
    chosen = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not chosen:
        raise WeightsError(f"{source} holds no tensor whose name starts with '{prefix}'")
    return chosen


def _prefix_hint(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Say what to do where the file has the network's names behind a prefix such as ``encoder_q.``."""
    longest = max(wanted, key=len, default="")
    prefix = next((name.removesuffix(longest) for name in state if name.endswith(f".{longest}")), None)
    if prefix is None or sum(f"{prefix}{name}" in state for name in wanted) < len(wanted) / 2:
        return ""
    return (
        f"Its names begin with '{prefix}': teacher.layout names published layouts (moco_v2, dino, ...); of others "
        "save the state dict without that prefix"
    )


def _channels_hint(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Say what to do where the first kernels alone differ, in the channels of the images that they saw."""
    differing = _misshaped(state, wanted)
    if len(differing) != 1:
        return ""
    there, here = state[differing[0]].shape, wanted[differing[0]].shape
    if not len(there) == len(here) == 4 or (there[0], *there[2:]) != (here[0], *here[2:]):
        return ""
    return (
        f"Its network saw images of {there[1]} channel(s), this one sees {here[1]}: data.modalities says what teacher "
        "and student see of an image (rgb, luminance, grey, ...)"
    )


def _shape_faults(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in _misshaped(state, wanted)
    ]


def _misshaped(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    return [name for name in wanted if name in state and state[name].shape != wanted[name].shape]


def listing(what: str, items: Iterable[str]) -> str:
    """Return ``"what (count): first, second, ..."``, or an empty string without items."""
    found = list(items)
    if not found:
        return ""
    rest = ", ..." if len(found) > _LISTED else ""
    return f"{what} ({len(found)}): {', '.join(found[:_LISTED])}{rest}"
