"""Batch normalisation over the global batch, on any device.

torch's ``SyncBatchNorm`` has no kernel for CPUs, and it is none of the classes that it replaces. Here a batch-norm
stays what it is, with its parameters, buffers and name, and takes its statistics from all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over the ranks; the gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total: Tensor = _SumOverRanks.apply(gradients[0].contiguous())
        return total


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch-norm of all ranks' rows, of which these may hold different numbers.

    Two sums of one number a channel are exchanged, of the values and of their squared distances from the mean: as
    precise as one process with all rows. Where every rank's loss is averaged over the ranks, so is its gradient.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, ...] with the statistics of the global batch, outside of training with the running ones."""
        if not (self.training or self.running_mean is None):
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        normalised, mean, variance, count = self._normalised(input)
        if self.training and self.track_running_stats:
            self._remember(mean.detach(), (variance * (count / (count - 1))).detach())
        return normalised

    def of_batch(self, input: Tensor) -> Tensor:
        """Normalise with the statistics of the global batch and remember nothing."""
        return self._normalised(input)[0]

    def _normalised(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised values, mean and biased variance [C], and how many values a channel has on all ranks."""
        with torch.autocast(input.device.type, enabled=False):
            values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
            others = [axis for axis in range(values.ndim) if axis != 1]
            shape = [1, -1, *[1] * (values.ndim - 2)]
            own = values.new_full((1,), values.numel() // values.shape[1])
            sums = _sum_over_ranks(torch.cat([values.sum(others), own]))
            count = sums[-1].detach()
            mean = sums[:-1] / count
            centred = values - mean.view(shape)
            variance = _sum_over_ranks(centred.square().sum(others)) / count
            scale = torch.rsqrt(variance + self.eps)
            if self.weight is not None:
                scale = scale * self.weight
            made = centred * scale.view(shape)
            if self.bias is not None:
                made = made + self.bias.view(shape)
            return made.to(input.dtype), mean, variance, count

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            share = 1.0 / self.num_batches_tracked.to(mean.dtype)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance, share)
        else:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)


class _Global1d(GlobalBatchNorm, nn.BatchNorm1d):
    """Of [B, C] or [B, C, L]."""


class _Global2d(GlobalBatchNorm, nn.BatchNorm2d):
    """Of [B, C, H, W]."""


class _Global3d(GlobalBatchNorm, nn.BatchNorm3d):
    """Of [B, C, D, H, W]."""


_GLOBAL: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _Global1d,
    nn.BatchNorm2d: _Global2d,
    nn.BatchNorm3d: _Global3d,
}


def synchronise_batch_norms(module: nn.Module) -> None:
    """Let every batch-norm inside take the statistics of the global batch; their tensors stay the same objects."""
    for part in module.modules():
        part.__class__ = _GLOBAL.get(type(part), type(part))


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    total: Tensor = _SumOverRanks.apply(tensor)
    return total
