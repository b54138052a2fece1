"""What a network costs: parameters, bytes, multiply-adds, time and memory of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from raydistill.models.taps import blank_images, evaluating

_WARM_UP = 5


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable and frozen parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers in a file of the weights, whose header (names, shapes) comes on top.

    Only what the state dict holds; a tensor under two names is there twice, as ``save_weights`` writes it.
    """
    return sum(value.nbytes for value in model.state_dict().values())


def mult_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of convolutions and linear layers for one image of ``image_shape`` (C, H, W).

    Biases, normalisations and the products of queries, keys and values are left out, as in the papers'
    tables; the four projections of an attention layer are linear layers and count.
    """
    total = 0

    def count(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal total
        total += _mult_adds_of(module, output)

    counted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention)
    with evaluating(model), torch.no_grad(), ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, counted):
                hooks.enter_context(module.register_forward_hook(count))
        model(blank_images(model, image_shape))
    return total


def latency(
    model: nn.Module, image_shape: tuple[int, int, int], *, batch_size: int = 1, repeats: int = 30
) -> dict[str, float]:
    """Measure the time of one forward pass where the model is, after a warm-up.

    Args:
        model: measured in evaluation mode, without gradients.
        image_shape: (C, H, W).
        batch_size: images a pass.
        repeats: passes that are measured.

    Returns:
        ``p50_ms`` and ``p95_ms``: median and 95th percentile in milliseconds a batch.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    images = blank_images(model, image_shape, batch_size)
    times: list[float] = []
    with evaluating(model), torch.no_grad():
        for index in range(_WARM_UP + repeats):
            _wait_for(images.device)
            start = time.perf_counter()
            model(images)
            _wait_for(images.device)
            if index >= _WARM_UP:
                times.append(1000.0 * (time.perf_counter() - start))
    return {"p50_ms": _percentile(times, 0.5), "p95_ms": _percentile(times, 0.95)}


def peak_memory(model: nn.Module, image_shape: tuple[int, int, int], batch_size: int) -> int:
    """Return the most bytes that one forward pass holds at once where the model is, besides weights and images.

    The pass is in evaluation mode, without gradients, and after one that does not count. On an accelerator these are
    bytes of its caching allocator, which rounds each tensor up; on the CPU those of PyTorch's, without what a library
    below takes for itself.

    Args:
        model: its mode is restored.
        image_shape: (C, H, W).
        batch_size: images of the pass.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    images = blank_images(model, image_shape, batch_size)
    with evaluating(model), torch.no_grad():
        model(images)
        if images.device.type == "cpu":
            return peak_on_cpu(lambda: model(images))
        _wait_for(images.device)
        torch.accelerator.reset_peak_memory_stats(images.device)
        before = torch.accelerator.memory_allocated(images.device)
        model(images)
        return torch.accelerator.max_memory_allocated(images.device) - before


def peak_on_cpu(call: Callable[[], object]) -> int:
    """Return the most bytes of tensors on the CPU that a call allocates and holds at once, by PyTorch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    recorded: Any = profiler.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes), default=0)


def _mult_adds_of(module: nn.Module, output: Any) -> int:
    """Return the multiply-adds of one call; attention returns a tuple and does not call its linear layer."""
    result: Tensor = output[0] if isinstance(output, tuple) else output
    if isinstance(module, nn.MultiheadAttention):
        width: int = module.embed_dim
        return 4 * result.numel() * width
    if isinstance(module, nn.Linear):
        return result.numel() * module.in_features
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return result.numel() * (module.in_channels // module.groups) * math.prod(module.kernel_size)


def _wait_for(device: torch.device) -> None:
    """Let queued work finish: on an accelerator a call returns before its result exists."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _percentile(values: list[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
