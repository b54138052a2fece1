"""Full precision inside autocast: exp(1 / 0.07) overflows float16 and sharp softmaxes lose order in it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from raydistill.lazy import Tensor, torch


def no_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off on the device of ``like``."""
    return torch.autocast(device_type=like.device.type, enabled=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Raise half precision to float32; float32 and float64 stay as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
