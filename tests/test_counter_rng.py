"""Counter-based random numbers: pure in their keys, uniform, and unrelated between keys."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.counter_rng import hash_bits, integers, name_key, uniform

MASK = 0xFFFFFFFF


def murmur_finaliser(value: int) -> int:
    """The published finaliser in unbounded whole numbers."""
    value ^= value >> 16
    value = value * 0x85EBCA6B & MASK
    value ^= value >> 13
    value = value * 0xC2B2AE35 & MASK
    return value ^ (value >> 16)


def reference(*keys: int) -> int:
    """``hash_bits`` written with Python's own integers."""
    state = 0
    for key in keys:
        for word in (key & MASK, (key >> 32) & MASK):
            state = (murmur_finaliser(state ^ word) + 0x9E3779B9) & MASK
    return murmur_finaliser(state)


def correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    """Pearson's correlation."""
    return float(torch.corrcoef(torch.stack([left, right]))[0, 1])


keys_64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(keys_64, min_size=1, max_size=8), keys_64, keys_64)
def test_equals_the_published_mixer_in_unbounded_arithmetic(ids: list[int], seed: int, view: int) -> None:
    expected = [reference(seed, number, view) for number in ids]
    assert hash_bits(seed, torch.tensor(ids), view).tolist() == expected


@given(keys_64, keys_64)
def test_int_and_tensor_keys_are_alike(seed: int, view: int) -> None:
    ids = torch.arange(5)
    as_tensors = hash_bits(torch.tensor(seed), ids, torch.full((5,), view))
    assert torch.equal(hash_bits(seed, ids, view), as_tensors)


@given(st.integers(1, 97))
@settings(max_examples=20)
def test_same_values_for_any_batch_split(size: int) -> None:
    ids = torch.arange(97) * 7919
    parts = torch.cat([uniform(3, part, 1) for part in torch.split(ids, size)])
    assert torch.equal(parts, uniform(3, ids, 1))
    order = torch.randperm(97)
    assert torch.equal(uniform(3, ids[order], 1), uniform(3, ids, 1)[order])


def test_narrow_integer_keys_and_broadcasting() -> None:
    ids = torch.arange(4)
    narrow = hash_bits(0, ids.to(torch.int16), ids.to(torch.int32)[:, None])
    assert narrow.shape == (4, 4)
    assert torch.equal(narrow, hash_bits(0, ids, ids[:, None]))
    assert hash_bits(1, 2).shape == ()


def test_distribution_is_uniform() -> None:
    values = uniform(0, torch.arange(200_000))
    assert values.dtype == torch.float32
    assert float(values.min()) >= 0.0 and float(values.max()) < 1.0
    counts = torch.histc(values, bins=100, min=0.0, max=1.0)
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert 50 < chi_square < 160  # 99 degrees of freedom; beyond either side has odds of about 1 in 10 000
    bits = hash_bits(0, torch.arange(100_000))
    for bit in range(32):
        assert abs(float(((bits >> bit) & 1).double().mean()) - 0.5) < 0.01


def test_operations_views_seeds_and_neighbours_are_unrelated() -> None:
    ids = torch.arange(50_000)
    first = uniform(0, ids, 1, name_key("crop/top"))
    others = {
        "operation": uniform(0, ids, 1, name_key("crop/left")),
        "view": uniform(0, ids, 2, name_key("crop/top")),
        "seed": uniform(1, ids, 1, name_key("crop/top")),
        "neighbour": uniform(0, ids + 1, 1, name_key("crop/top")),
        "swapped keys": uniform(1, ids, 0, name_key("crop/top")),
        "high word": uniform(0, ids + (1 << 32), 1, name_key("crop/top")),
    }
    for name, other in others.items():
        assert abs(correlation(first, other)) < 0.02, name
        assert float((first == other).float().mean()) < 1e-3, name


def test_word_boundaries_between_keys_do_not_collide() -> None:
    one = torch.tensor([0])
    assert int(hash_bits(1 | (2 << 32), one)) != int(hash_bits(1, 2, one))


def test_integers_cover_their_range_evenly() -> None:
    values = integers(7, 5, torch.arange(70_000))
    counts = torch.bincount(values)
    assert counts.shape == (7,)
    assert int((counts - 10_000).abs().max()) < 400
    assert int(integers(2**31 - 1, 5, torch.arange(1000)).max()) < 2**31 - 1


def test_values_do_not_change_between_releases() -> None:
    """Caches hold views drawn with these numbers."""
    assert hash_bits(1, torch.tensor([0, 1, 2**40]), 3).tolist() == [3044308932, 2847737093, 1965952654]
    assert name_key("crop/top") == 1493736899
