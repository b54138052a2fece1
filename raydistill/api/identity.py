"""What a network that exists as an object is called: its class, and a digest of all but its weights.

The digest has to be the same in another process, as caches and runs are found again by it, and another once the
network computes something else: it covers the tree of modules, their plain attributes, the names, types and shapes of
all tensors, the values of those that no state dict holds, and the code of classes which are not torch's, with the
functions and values of their own Python module that they use.
"""

from __future__ import annotations

import dis
import hashlib
import re
from collections.abc import Iterator, Mapping
from types import CellType, CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_DIGITS = 12
_OF_TORCH = ("torch.", "torchvision.", "builtins.")
_BASE = frozenset(vars(nn.Module()))
_EMPTY = CellType()


def name_of(network: nn.Module) -> str:
    """Return a name such as ``TinyNet_3f2a9c0d41b7``, which is an identifier."""
    digest = hashlib.sha256()
    for part in _Description().parts(network):
        digest.update(part.encode() + b"\0")
    return f"{re.sub(r'[^A-Za-z0-9]', '_', type(network).__name__)}_{digest.hexdigest()[:_DIGITS]}"


class _Description:
    """Texts that say what something is, and nothing of where it lies in memory; of each function once."""

    def __init__(self) -> None:
        self._said: set[FunctionType] = set()

    def parts(self, network: nn.Module) -> Iterator[str]:
        state = network.state_dict()
        for path, module in network.named_modules():
            yield f"{path} {type(module).__qualname__}"
            for key, value in sorted(vars(module).items()):
                if key not in _BASE:
                    yield f"{key} = {self._value(value)}"
        for name, value in state.items():
            yield f"{name} {value.dtype} {tuple(value.shape)}"
        for name, buffer in network.named_buffers():
            if name not in state:
                yield f"{name} = {self._value(buffer)}"
        for kind in dict.fromkeys(type(module) for module in network.modules()):
            for owner in kind.__mro__:
                if not f"{owner.__module__}.".startswith(_OF_TORCH):
                    yield from self._members(owner)

    def _members(self, owner: type) -> Iterator[str]:
        for name, member in sorted(vars(owner).items()):
            function = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
            if isinstance(function, FunctionType):
                yield f"{owner.__qualname__}.{name} {self._function(function)}"
            elif not name.startswith("__"):
                yield f"{owner.__qualname__}.{name} = {self._value(member)}"

    def _value(self, value: Any, module: str | None = None) -> str:
        """Describe a value; of functions those of the Python module ``module`` by their code, others by their names."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
            return repr(value)
        if isinstance(value, Mapping):
            return str([(self._value(key, module), self._value(held, module)) for key, held in value.items()])
        if isinstance(value, list | tuple | set | frozenset):
            parts = [self._value(part, module) for part in value]
            return str(sorted(parts) if isinstance(value, set | frozenset) else parts)
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(flat.numpy().data).hexdigest()}"
        if isinstance(value, FunctionType) and module in (None, value.__module__):
            return self._function(value)
        return f"{type(value).__qualname__} {getattr(value, '__qualname__', '')}"

    def _function(self, function: FunctionType) -> str:
        """Describe what decides what a function does: its code, and the values that it finds around it."""
        if function in self._said:
            return function.__qualname__
        self._said.add(function)
        cells = [cell.cell_contents for cell in function.__closure__ or () if cell != _EMPTY]
        used = [function.__globals__.get(name) for name in sorted(_globals(function.__code__))]
        around = [function.__defaults__, function.__kwdefaults__, cells, used]
        return f"{self._code(function.__code__)} {self._value(around, function.__module__)}"

    def _code(self, code: CodeType) -> str:
        """Describe what code says; not where it stands in a file."""
        held = [self._code(part) if isinstance(part, CodeType) else self._value(part) for part in code.co_consts]
        return f"{code.co_code.hex()} {code.co_names} {code.co_freevars} {held}"


def _globals(code: CodeType) -> set[str]:
    """Return the names that code looks up in its Python module, not those of attributes."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    return own.union(*(_globals(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
