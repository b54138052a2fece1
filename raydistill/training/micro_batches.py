"""The micro-batches of a step, whose gradients are added up before the optimiser moves anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from raydistill.data.batching import Shares
from raydistill.methods.base import Loss, Step

KeyT = TypeVar("KeyT", int, str)


@dataclass(frozen=True)
class MicroBatch:
    """This worker's part of a micro-batch.

    Attributes:
        step: what the methods see; to them it is the whole step.
        shares: rows that each worker holds of it.
        weight: factor on this worker's loss, by which the mean over workers of the sum over micro-batches is the mean
            over all rows of the step: rows here divided by what a worker holds of the step on average.
    """

    step: Step
    shares: Shares
    weight: float


def whole_batch(step: Step, rank: int) -> MicroBatch:
    """Return a worker's part of a step in one piece."""
    if not step.shares:
        return MicroBatch(step, (), 1.0)
    shares = tuple(map(sum, zip(*step.shares, strict=True)))
    return MicroBatch(step, shares, len(shares) * shares[rank] / sum(shares))


def micro_batches(step: Step, rank: int) -> list[MicroBatch]:
    """Cut a worker's part of a step into its parts of the micro-batches, as ``step.shares`` says."""
    if not step.shares:
        return [MicroBatch(step, (), 1.0)]
    lengths = [shares[rank] for shares in step.shares]
    pieces = [step] if len(lengths) == 1 else list(_pieces(step, lengths))
    workers, rows = len(step.shares[0]), sum(map(sum, step.shares))
    return [
        MicroBatch(piece, shares, workers * length / rows)
        for piece, shares, length in zip(pieces, step.shares, lengths, strict=True)
    ]


def _pieces(step: Step, lengths: list[int]) -> Iterator[Step]:
    views, columns = _cut(step.views, lengths), _cut(step.columns, lengths)
    teachers = [{view: _cut(outputs, lengths) for view, outputs in teacher.items()} for teacher in step.teachers]
    for number in range(len(lengths)):
        yield replace(
            step,
            views=_chosen(views, number),
            columns=_chosen(columns, number),
            teachers=tuple(
                {view: _chosen(outputs, number) for view, outputs in teacher.items()} for teacher in teachers
            ),
        )


def _cut(values: Mapping[KeyT, Tensor], lengths: list[int]) -> dict[KeyT, tuple[Tensor, ...]]:
    return {key: torch.split(value, lengths) for key, value in values.items()}


def _chosen(pieces: Mapping[KeyT, tuple[Tensor, ...]], number: int) -> dict[KeyT, Tensor]:
    return {key: found[number] for key, found in pieces.items()}


def weighted(loss: Loss, weight: float) -> Loss:
    """Multiply the total and all that is reported; what is carried stays."""
    return loss if weight == 1.0 else _mapped(loss, lambda value: value * weight)


def without_graph(loss: Loss) -> Loss:
    """Keep the values alone, so that no activation outlives its micro-batch."""
    return _mapped(loss, Tensor.detach)


def added(left: Loss, right: Loss) -> Loss:
    """Add totals and terms of two micro-batches of a step; what the second carries stays."""
    terms = {name: left.terms[name] + value for name, value in right.terms.items()}
    return replace(right, total=left.total + right.total, terms=terms)


def _mapped(loss: Loss, function: Callable[[Tensor], Tensor]) -> Loss:
    return replace(
        loss, total=function(loss.total), terms={name: function(value) for name, value in loss.terms.items()}
    )
