"""Arrays of Ray's object store as tensors and sets of images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from raydistill.data.image_set import ImageSet

_KIND = "kind"


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor on the array's own memory, which all processes of a node may share: it must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def to_parts(images: ImageSet) -> dict[str, Any]:
    """Take a set of either kind apart into arrays, which Ray maps without a copy, and small values.

    Of a set that decodes on demand, no pixel is among them.
    """
    values = {field.name: getattr(images, field.name) for field in fields(images)}
    return {_KIND: type(images)} | {
        name: value.cpu().numpy() if isinstance(value, Tensor) else value for name, value in values.items()
    }


def from_parts(parts: Mapping[str, Any]) -> ImageSet:
    """Undo ``to_parts``; the tensors share the arrays' memory and must not be written to."""
    values = {name: value for name, value in parts.items() if name != _KIND}
    return cast(
        "ImageSet",
        parts[_KIND](
            **{name: tensor_of(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}
        ),
    )
