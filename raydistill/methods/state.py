"""What methods remember between steps: queues, banks and averaged copies.

They are modules, so that they live in the checkpoint and move with ``.to``. Only ``Method.after_step``
changes them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _NormBase

ModuleT = TypeVar("ModuleT", bound=nn.Module)


_resting: ContextVar[bool] = ContextVar("averages are resting", default=False)


@contextmanager
def averages_resting() -> Iterator[None]:
    """Let ``move_average`` do nothing: after a micro-batch that leaves the student as it was.

    An average that moved after each of n such would have its momentum to the power n.
    """
    token = _resting.set(True)
    try:
        yield
    finally:
        _resting.reset(token)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights on the CPU from ``seed`` and leave the process's own random state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class KeyQueue(nn.Module):
    """First in, first out memory of ``size`` keys [size, dimension]; starts with random unit vectors."""

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dimension: int, seed: int) -> None:
        """Fill the queue from ``seed``."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        start = F.normalize(torch.randn(size, dimension, generator=generator), dim=1)
        self.register_buffer("keys", start)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def enqueue(self, rows: Tensor) -> None:
        """Replace the oldest keys by ``rows`` [N, dimension]; of more rows than places the last ones stay."""
        size = len(self.keys)
        skipped = max(0, len(rows) - size)
        # The pointer stays on the device: reading it here would make every step wait for the accelerator.
        places = torch.arange(skipped, len(rows), device=self.keys.device)
        with torch.no_grad():
            self.keys.index_copy_(0, (places + self.pointer) % size, rows[skipped:].detach().to(self.keys))
            self.pointer.add_(len(rows)).remainder_(size)


class MemoryBank(nn.Module):
    """One averaged unit vector for each training sample, [size, dimension]."""

    rows: Tensor

    def __init__(self, size: int, dimension: int, seed: int) -> None:
        """Fill the bank from ``seed``, uniformly and with a mean squared norm of 1, as CRD's code does."""
        super().__init__()
        bound = (3.0 / dimension) ** 0.5
        generator = torch.Generator().manual_seed(seed)
        start = torch.rand(size, dimension, generator=generator) * (2 * bound) - bound
        self.register_buffer("rows", start)

    def update(self, index: Tensor, values: Tensor, momentum: float) -> None:
        """Move rows ``index`` [N], all different, towards ``values`` [N, dimension]; normalise them."""
        with torch.no_grad():
            new = torch.lerp(values.detach().to(self.rows), self.rows[index], momentum)
            self.rows.index_copy_(0, index, F.normalize(new, dim=1))


def frozen_copy(module: ModuleT) -> ModuleT:
    """Copy a module without gradients, its batch-norms using batch statistics without remembering any.

    The copy's forward changes nothing, in training and in evaluation mode alike, so a loss may call it and
    stay pure.
    """
    twin = copy.deepcopy(module).requires_grad_(False)
    without_running_statistics(twin)
    return twin


def without_running_statistics(module: nn.Module) -> None:
    """Let every batch-norm use batch statistics only, which frees the module's forward of side effects."""
    for part in module.modules():
        if isinstance(part, _NormBase):
            part.track_running_stats = False
            part.running_mean = None
            part.running_var = None
            part.num_batches_tracked = None


def move_average(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Set every parameter of ``target`` to ``momentum * target + (1 - momentum) * source``; buffers stay."""
    if _resting.get():
        return
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
            slow.lerp_(fast.detach().to(slow), 1.0 - momentum)


class Value(nn.Module):
    """A tensor that is remembered as it is."""

    value: Tensor

    def __init__(self, start: Tensor) -> None:
        """Start with a copy of ``start``."""
        super().__init__()
        self.register_buffer("value", start.clone())

    def set(self, new: Tensor) -> None:
        """Replace the value by one of the same shape."""
        self.value.copy_(new.detach())
