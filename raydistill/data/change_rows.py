"""Applies operations to those rows of a batch that drew them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raydistill.lazy import Tensor, torch


def change_rows(pixels: Tensor, choice: Tensor, operations: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
    """Apply to each row the operation that it drew.

    Args:
        pixels: float32 [B, C, H, W]; is left as it is.
        choice: int64 [B]; 0 leaves a row alone, ``k`` asks for ``operations[k - 1]``.
        operations: called with the pixels [b, C, H, W] and the numbers int64 [b] of the rows that chose it. A row of
            the result must depend on its own pixels and draws alone.

    Returns:
        Float32 [B, C, H, W].
    """
    # One sort and one transfer of counts, instead of a wait for the device at each operation.
    order = choice.argsort(stable=True)
    groups = torch.split(order, torch.bincount(choice, minlength=len(operations) + 1).tolist())
    result = pixels.clone(memory_format=torch.contiguous_format)
    for rows, operation in zip(groups[1:], operations, strict=True):
        if len(rows):
            result.index_copy_(0, rows, operation(result.index_select(0, rows), rows))
    return result
