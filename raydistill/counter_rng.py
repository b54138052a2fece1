"""Random numbers that are a pure function of their keys, on any device.

``uniform(seed, ids, view, op)`` gives the same value for the same keys whatever the batch, the worker, the
device or the order of calls, so an augmentation or a draw of negatives needs no stored state and can be
replayed anywhere. The mixer is the 32-bit finaliser of MurmurHash3 applied to both 32-bit words of every key
in turn; all arithmetic is modulo 2**32 inside int64, which torch computes alike on every device. An int key
gives what a tensor of that value gives.
"""

from __future__ import annotations

import zlib

from raydistill.lazy import Tensor, torch

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
# The finaliser's factors modulo 2**32 as signed numbers: a 32-bit value times one of them stays inside int64.
_FIRST = 0x85EBCA6B - (1 << 32)
_SECOND = 0xC2B2AE35 - (1 << 32)


def _mix(value: Tensor | int) -> Tensor | int:
    value = ((value ^ (value >> 16)) * _FIRST) & _MASK
    value = ((value ^ (value >> 13)) * _SECOND) & _MASK
    return value ^ (value >> 16)


def name_key(name: str) -> int:
    """A stable 32-bit key for a name, such as that of an augmentation's operation."""
    return zlib.crc32(name.encode())


def hash_bits(*keys: Tensor | int) -> Tensor:
    """Mix keys to 32 random bits.

    Args:
        keys: ints of up to 64 bits or integer tensors whose shapes broadcast; put ints first, they cost
            nothing there.

    Returns:
        Int64 values in [0, 2**32) in the broadcast shape; without a tensor among the keys, a scalar on the
        CPU.
    """
    state: Tensor | int = 0
    for key in keys:
        word = key if isinstance(key, int) else key.to(torch.int64)
        for part in (word & _MASK, (word >> 32) & _MASK):
            state = (_mix(state ^ part) + _GOLDEN) & _MASK
    return torch.as_tensor(_mix(state))


def uniform(*keys: Tensor | int) -> Tensor:
    """Float32 values in [0, 1), one for each element of the broadcast keys; 24 random bits each."""
    return unit_interval(hash_bits(*keys))


def unit_interval(bits: Tensor) -> Tensor:
    """Turn what ``hash_bits`` returned into float32 values in [0, 1) of the same shape."""
    return (bits >> 8).to(torch.float32) * (1.0 / (1 << 24))


def integers(high: int, *keys: Tensor | int) -> Tensor:
    """Int64 values in [0, ``high``), ``high`` < 2**31; the bias is below ``high`` / 2**32."""
    return (hash_bits(*keys) * high) >> 32
