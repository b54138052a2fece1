"""Order and batches of a set that lives on the device."""

from __future__ import annotations

import pytest
import torch

from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_train
from raydistill.data.resident import ResidentSet
from raydistill.errors import ConfigError


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


def test_batches_drop_the_last_and_resume(resident: ResidentSet) -> None:
    batches = list(resident.batches(0, seed=0, batch_size=16))
    assert [len(batch) for batch in batches] == [16, 16, 16] and resident.steps_per_epoch(16) == 3
    assert torch.equal(torch.cat(batches), resident.order(0, 0)[:48])
    resumed = list(resident.batches(0, seed=0, batch_size=16, start=2))
    assert len(resumed) == 1 and torch.equal(resumed[0], batches[2])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_workers_share_the_global_batch(resident: ResidentSet, world_size: int) -> None:
    ranks = [
        list(resident.batches(1, seed=0, batch_size=16, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    for step, whole in enumerate(resident.batches(1, seed=0, batch_size=16)):
        assert torch.equal(torch.cat([batches[step] for batches in ranks]), whole)


def test_a_small_set_is_one_batch(resident: ResidentSet) -> None:
    assert [len(batch) for batch in resident.batches(0, seed=0, batch_size=64)] == [50]
    assert resident.steps_per_epoch(64) == 1
    assert [len(batch) for batch in resident.batches(0, seed=0, batch_size=64, rank=1, world_size=4)] == [12]


def test_shares_must_be_equal(resident: ResidentSet) -> None:
    with pytest.raises(ConfigError, match="batch size 16 can't be shared equally by 3 workers"):
        resident.batches(0, seed=0, batch_size=16, world_size=3)
    with pytest.raises(ConfigError, match="too few"):
        resident.batches(0, seed=0, batch_size=64, world_size=64)
