"""Queues, banks and averaged copies."""

from __future__ import annotations

import torch
from torch import nn

from raydistill.methods.collectives import gather_rows, gather_with_grad, mean_over_ranks, world_size
from raydistill.methods.state import KeyQueue, MemoryBank, frozen_copy, move_average, seeded
from tests.methods.support import close


def numbered(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, 2).contiguous()


def test_queue_wraps_and_forgets_the_oldest() -> None:
    queue = KeyQueue(5, 2, seed=0)
    queue.enqueue(numbered(0, 1, 2))
    queue.enqueue(numbered(3, 4, 5, 6))
    assert queue.keys[:, 0].tolist() == [5, 6, 2, 3, 4]
    assert queue.pointer == 2


def test_queue_keeps_the_last_of_too_many() -> None:
    once, twice = KeyQueue(3, 2, seed=0), KeyQueue(3, 2, seed=0)
    once.enqueue(numbered(*range(8)))
    for value in range(8):
        twice.enqueue(numbered(value))
    assert torch.equal(once.keys, twice.keys)
    assert once.pointer == twice.pointer


def test_start_is_a_function_of_the_seed() -> None:
    assert torch.equal(KeyQueue(4, 3, seed=1).keys, KeyQueue(4, 3, seed=1).keys)
    assert not torch.equal(KeyQueue(4, 3, seed=1).keys, KeyQueue(4, 3, seed=2).keys)
    close(KeyQueue(4, 3, seed=1).keys.norm(dim=1), torch.ones(4), rtol=1e-6)
    state = torch.get_rng_state()
    with seeded(1):
        nn.Linear(2, 2)
    assert torch.equal(state, torch.get_rng_state())


def test_bank_averages_and_normalises_only_its_rows() -> None:
    bank = MemoryBank(4, 2, seed=0)
    before = bank.rows.clone()
    bank.update(torch.tensor([2]), torch.tensor([[0.0, 1.0]]), 0.5)
    expected = nn.functional.normalize(0.5 * before[2] + torch.tensor([0.0, 0.5]), dim=0)
    close(bank.rows[2], expected, rtol=1e-6)
    assert torch.equal(bank.rows[[0, 1, 3]], before[[0, 1, 3]])


def test_copy_is_frozen_and_follows() -> None:
    source = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    copy = frozen_copy(source)
    assert not any(value.requires_grad for value in copy.parameters())
    assert all(value.requires_grad for value in source.parameters())
    with torch.no_grad():
        source[0].weight.add_(1.0)
    start = copy[0].weight.clone()
    move_average(copy, source, 0.75)
    close(copy[0].weight, start + 0.25, rtol=1e-5, atol=1e-6)


def test_one_process_gathers_itself() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert world_size() == 1
    assert torch.equal(gather_rows(rows), rows)
    assert not gather_rows(rows).requires_grad
    assert gather_with_grad(rows) is rows
    assert torch.equal(mean_over_ranks(rows), rows)
