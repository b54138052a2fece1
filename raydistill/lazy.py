"""Names of torch that load torch at their first use.

A method's file holds its configuration and its mathematics together. Configurations must be checked within a second,
which importing torch alone would exceed several times over, so these files take ``torch``, ``nn`` and ``F`` from here.
Decorators and base classes are evaluated at import and therefore must not use them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch import Tensor, nn
else:
    import importlib

    class _Lazy:
        """Stands for a module until an attribute of it is asked for, then keeps what it found."""

        def __init__(self, module: str) -> None:
            self._module = module

        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module(self._module), name)
            setattr(self, name, value)
            return value

    torch = _Lazy("torch")
    nn = _Lazy("torch.nn")
    F = _Lazy("torch.nn.functional")
    Tensor = Any

__all__ = ["F", "Tensor", "nn", "torch"]
