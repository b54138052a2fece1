"""Order and batches of a set that lives on the device."""

from __future__ import annotations

import pytest
import torch

from raydistill.data.batching import Batching
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_train
from raydistill.data.resident import ResidentSet


@pytest.fixture(scope="module")
def resident() -> ResidentSet:
    return ResidentSet(load_train(DataConfig(name="synthetic", synthetic_size=50)), "cpu")


def test_order_is_a_function_of_seed_and_epoch(resident: ResidentSet) -> None:
    torch.manual_seed(1)
    first = resident.order(3, 7)
    torch.manual_seed(2)
    assert torch.equal(first, resident.order(3, 7))
    assert sorted(first.tolist()) == list(range(50))
    assert not torch.equal(first, resident.order(4, 7)) and not torch.equal(first, resident.order(3, 8))
    assert not torch.equal(resident.order(1, 2), resident.order(2, 1))


def test_batches_follow_the_order_and_resume(resident: ResidentSet) -> None:
    batches = list(resident.batches(0, Batching(50, 16), seed=0))
    assert [len(batch) for batch in batches] == [16, 16, 16]
    assert torch.equal(torch.cat(batches), resident.order(0, 0)[:48])
    resumed = list(resident.batches(0, Batching(50, 16), seed=0, start=2))
    assert len(resumed) == 1 and torch.equal(resumed[0], batches[2])


def test_an_epoch_may_end_with_a_smaller_batch(resident: ResidentSet) -> None:
    batches = list(resident.batches(0, Batching(50, 16, drop_last=False), seed=0))
    assert [len(batch) for batch in batches] == [16, 16, 16, 2]
    assert torch.equal(torch.cat(batches), resident.order(0, 0))


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_workers_share_every_micro_batch(resident: ResidentSet, workers: int, accumulate: int) -> None:
    """Whatever their number, the n-th micro-batch of a step is the same images in the same order."""
    alone = Batching(50, 30, 1, accumulate, drop_last=False)
    batching = Batching(50, 30, workers, accumulate, drop_last=False)
    ranks = [list(resident.batches(1, batching, seed=0, rank=rank)) for rank in range(workers)]
    assert batching.steps == 2
    for step, whole in enumerate(resident.batches(1, alone, seed=0)):
        shares = batching.shares(step)
        parts = [batches[step].split([held[rank] for held in shares]) for rank, batches in enumerate(ranks)]
        together = [torch.cat([part[number] for part in parts]) for number in range(len(shares))]
        lengths = [held[0] for held in alone.shares(step)]
        assert all(torch.equal(left, right) for left, right in zip(together, whole.split(lengths), strict=True))
