"""Inner products of each sample with rows of a bank that are its own choice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

WHOLE_BANK_RATIO = 12
"""Products with the whole bank are faster up to this ratio of its size to K; experiments/benchmarks/methods.py."""
WHOLE_WEIGHTS_RATIO = 4
"""So is the gradient from weights laid out for the whole bank, mostly zeros; the same benchmark."""
_BLOCK = 1 << 21
"""Numbers that are read from the bank at a time."""


def sampled_products(embedding: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """<embedding, bank[index]>: [B, D], [M, D], int64 [B, K] -> [B, K]; the bank is a constant.

    The rows [B, K, D] are never laid out together.
    """
    products: Tensor = _SampledProducts.apply(embedding, bank, index)
    return products


class _SampledProducts(torch.autograd.Function):
    """The gradient is a sum of the chosen rows, each with its weight."""

    @staticmethod
    def forward(ctx: Any, embedding: Tensor, bank: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(bank, index)
        if len(bank) <= WHOLE_BANK_RATIO * index.shape[1]:
            return whole_products(embedding, bank).gather(1, index)
        return read_products(embedding, bank, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        bank, index = ctx.saved_tensors
        if len(bank) <= WHOLE_WEIGHTS_RATIO * index.shape[1]:
            return whole_sum(gradient, bank, index), None, None
        return read_sum(gradient, bank, index), None, None


def whole_products(embedding: Tensor, bank: Tensor) -> Tensor:
    """<embedding, bank>, [B, D] and [M, D] -> [B, M].

    On CPUs by oneDNN, as compiled networks do, where torch has it: MKL takes twice as long on those that Intel did not
    make.
    """
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if linear is None or embedding.device.type != "cpu" or embedding.dtype != torch.float32:
        return embedding @ bank.T
    products: Tensor = linear(embedding, bank, None, "none", [], "")
    return products


def read_products(embedding: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """``sampled_products`` by reading the rows asked for, which pays where they are few among many."""
    samples = max(1, _BLOCK // (index.shape[1] * bank.shape[1]))
    return torch.cat(
        [
            torch.bmm(own[:, None], bank.index_select(0, chosen.flatten()).view(*chosen.shape, -1).mT)[:, 0]
            for own, chosen in zip(torch.split(embedding, samples), torch.split(index, samples), strict=True)
        ]
    )


def whole_sum(weights: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Sum of the rows bank[index] with weights of their own: [B, K], [M, D], [B, K] -> [B, D]."""
    return weights.new_zeros(len(weights), len(bank)).scatter_add_(1, index, weights) @ bank


def read_sum(weights: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """``whole_sum`` by reading the rows asked for, in place."""
    return F.embedding_bag(index, bank, per_sample_weights=weights.contiguous(), mode="sum")
