"""The global batch: what W workers with B / W samples each need to compute what one with B computes.

Every function is the identity in a process without ``torch.distributed``. All ranks must hold equally many
rows and must call in the same order.
"""

from __future__ import annotations

from raydistill.lazy import Tensor, torch

PUBLISHED_BATCH = 64
"""Global batch at which published weights hold of losses that fall like 1 / B."""


def world_size() -> int:
    """Number of workers that train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this worker, from 0."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


def gather_rows(tensor: Tensor) -> Tensor:
    """Concatenate every rank's rows [B, ...] in rank order -> [W * B, ...], without a gradient."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    tensor = tensor.contiguous()
    pieces = [torch.empty_like(tensor) for _ in range(world_size())]
    torch.distributed.all_gather(pieces, tensor)
    return torch.cat(pieces)


def own_rows(gathered: Tensor) -> Tensor:
    """Rows of this rank in what ``gather_rows`` returned: [W * B, ...] -> [B, ...]."""
    return gathered.chunk(world_size())[rank()] if world_size() > 1 else gathered


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Average a tensor over the ranks, without a gradient."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total / world_size()


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Concatenate every rank's rows [B, ...] -> [W * B, ...]; this rank's own rows keep their gradient.

    For relations within the global batch, where every rank computes the same loss from all rows. The gradient
    of the own rows is multiplied by W, since the wrapper that averages gradients over ranks divides by W what
    each row gets from its own rank only.
    """
    if world_size() == 1:
        return tensor
    pieces = list(gather_rows(tensor).chunk(world_size()))
    kept = tensor.detach()
    pieces[rank()] = kept + (tensor - kept) * world_size()
    return torch.cat(pieces)
