"""The global batch: what W workers with B / W samples each need to compute what one with B computes.

Every function is the identity in a process without ``torch.distributed``. All ranks must call in the same order.

Ranks may hold different numbers of rows, n_1 + ... + n_W = B, inside ``rows_held``. A rank's loss is then multiplied by
``row_weight``, W n_r / B, before its gradient is taken: the mean over the ranks is the mean over the rows, of a loss of
single rows as of one of all rows that every rank computes alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from raydistill.lazy import Tensor, torch

PUBLISHED_BATCH = 64
"""Global batch at which published weights hold of losses that fall like 1 / B."""

_held: ContextVar[tuple[int, ...] | None] = ContextVar("rows held by each rank", default=None)
"""None where all ranks hold equally many."""


def world_size() -> int:
    """Number of workers that train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this worker, from 0."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


@contextmanager
def rows_held(shares: Sequence[int]) -> Iterator[None]:
    """Let the ranks hold so many rows of the batch each, in rank order."""
    token = _held.set(None if len({*shares}) < 2 else tuple(shares))
    try:
        yield
    finally:
        _held.reset(token)


def row_weight() -> float:
    """W n_r / B, the share of this rank in the global batch by that of an even one."""
    held = _held.get()
    return 1.0 if held is None else world_size() * held[rank()] / sum(held)


def global_rows(own: int) -> int:
    """How many rows all ranks have of something of which this one has ``own``."""
    return sum(_lengths(own))


def gather_rows(tensor: Tensor) -> Tensor:
    """Concatenate every rank's rows [B, ...] in rank order -> [W * B, ...], without a gradient.

    Ranks hold equally many rows, or as many times what ``rows_held`` says: several for each sample.
    """
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    if _held.get() is None:
        return gather_equal(tensor)
    lengths = _lengths(len(tensor))
    # All pieces of an exchange must be alike long.
    missing = tensor.new_zeros(max(lengths) - len(tensor), *tensor.shape[1:])
    pieces = gather_equal(torch.cat([tensor, missing])).chunk(world_size())
    return torch.cat([piece[:length] for piece, length in zip(pieces, lengths, strict=True)])


def gather_equal(tensor: Tensor) -> Tensor:
    """Concatenate what every rank has, [N, ...] -> [W * N, ...], without a gradient; N is the same everywhere."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    tensor = tensor.contiguous()
    pieces = [torch.empty_like(tensor) for _ in range(world_size())]
    torch.distributed.all_gather(pieces, tensor)
    return torch.cat(pieces)


def own_rows(gathered: Tensor) -> Tensor:
    """Rows of this rank in what ``gather_rows`` returned: [W * B, ...] -> [B, ...]."""
    if world_size() == 1:
        return gathered
    held = _held.get()
    if held is None:
        return gathered.chunk(world_size())[rank()]
    each = len(gathered) // sum(held)
    return torch.split(gathered, [each * rows for rows in held])[rank()]


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Average a tensor over the ranks, without a gradient."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total / world_size()


def mean_over_rows(mean: Tensor) -> Tensor:
    """Average over the rows of all ranks what each averaged over its own rows, without a gradient."""
    return mean_over_ranks(mean if _held.get() is None else mean * row_weight())


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Concatenate every rank's rows [B, ...] -> [W * B, ...]; this rank's own rows keep their gradient.

    For relations within the global batch, where every rank computes the same loss from all rows. The gradient
    of the own rows is multiplied by W, since the wrapper that averages gradients over ranks divides by W what
    each row gets from its own rank only; where ranks hold unequal numbers of rows, by B / n_r, for ``row_weight``.
    """
    if world_size() == 1:
        return tensor
    lengths = _lengths(len(tensor))
    pieces = list(torch.split(gather_rows(tensor), lengths))
    kept = tensor.detach()
    pieces[rank()] = kept + (tensor - kept) * (sum(lengths) / len(tensor))
    return torch.cat(pieces)


def _lengths(own: int) -> list[int]:
    """Rows of every rank, where this one has ``own``."""
    held = _held.get()
    if held is None:
        return [own] * world_size()
    each, rest = divmod(own, held[rank()])
    if rest:
        raise ValueError(f"{own} rows are not some for each of this rank's {held[rank()]} samples")
    return [each * rows for rows in held]
