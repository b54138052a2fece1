"""Arrays of Ray's object store as tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor on the array's own memory, which all processes of a node may share: it must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
