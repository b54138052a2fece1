"""A network without its weights as bytes, also of a class that only a notebook knows.

The bytes go through Ray to the workers of the process that made them, as arguments do, and never into a file. Tensors
of the state dict are left out: they come from safetensors.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from ray import cloudpickle
from torch import Tensor, nn

_Told = tuple[str, tuple[int, ...], torch.dtype, bool, bool]
"""Name, shape, type, whether it is a parameter, and whether it has a gradient."""


def pickled(network: nn.Module) -> bytes:
    """Return a network, on the CPU, as bytes; raises whatever its parts raise that cannot be pickled."""
    kept = network.state_dict().keys()
    named = [*network.named_parameters(), *network.named_buffers()]
    told: dict[int, _Told] = {
        id(value): (name, tuple(value.shape), value.dtype, isinstance(value, nn.Parameter), value.requires_grad)
        for name, value in named
        if name in kept
    }
    file = io.BytesIO()
    _Pickler(file, told).dump(network)
    return file.getvalue()


def unpickled(data: bytes) -> nn.Module:
    """Undo ``pickled``: a new network whose weights are still to be loaded."""
    network: nn.Module = _Unpickler(io.BytesIO(data)).load()
    return network


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Names tensors in place of writing them."""

    def __init__(self, file: io.BytesIO, told: Mapping[int, _Told]) -> None:
        super().__init__(file)
        self._told = told

    def persistent_id(self, value: Any) -> _Told | None:
        return self._told.get(id(value)) if isinstance(value, Tensor) else None


class _Unpickler(pickle.Unpickler):
    """Makes an empty tensor for each name; a tensor that several modules share stays shared."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._made: dict[str, Tensor] = {}

    def persistent_load(self, told: _Told) -> Tensor:
        name, shape, dtype, is_parameter, has_gradient = told
        if name not in self._made:
            empty = torch.zeros(shape, dtype=dtype)
            self._made[name] = nn.Parameter(empty, has_gradient) if is_parameter else empty
        return self._made[name]
