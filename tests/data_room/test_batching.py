"""How epochs are cut."""

from __future__ import annotations

import pytest

from raydistill.data.batching import Batching
from raydistill.errors import ConfigError


def test_parts_differ_by_one_at_most() -> None:
    assert Batching(100, 32, workers=3).shares(0) == ((11, 11, 10),)
    assert Batching(100, 32, workers=3, accumulate=2).shares(2) == ((6, 5, 5), (6, 5, 5))
    assert Batching(100, 32, workers=4, accumulate=2).shares(0) == ((4, 4, 4, 4), (4, 4, 4, 4))


def test_a_smaller_batch_has_no_larger_micro_batches() -> None:
    batching = Batching(100, 32, accumulate=4, drop_last=False)
    assert batching.steps == 4 and batching.images_per_epoch == 100
    assert batching.shares(3) == ((4,),)
    assert Batching(109, 32, accumulate=4, drop_last=False).shares(3) == ((7,), (6,))


def test_a_small_set_is_one_batch() -> None:
    for drop_last in (True, False):
        batching = Batching(50, 64, workers=4, drop_last=drop_last)
        assert batching.steps == 1 and batching.images_per_epoch == 50
        assert batching.shares(0) == ((13, 13, 12, 12),)


def test_what_is_left_over_is_dropped_unless_asked_for() -> None:
    assert (Batching(50, 16).steps, Batching(50, 16).images_per_epoch) == (3, 48)
    assert Batching(48, 16, drop_last=False).steps == 3


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="50 images are too few for 64 workers"):
        Batching(50, 64, workers=64)
    with pytest.raises(ConfigError, match=r"last batch of an epoch would have 1 of the 17 images.*train\.batch_size"):
        Batching(17, 16, drop_last=False)
    with pytest.raises(ConfigError, match="3 of the 19 images, fewer than 2 for each worker"):
        Batching(19, 16, workers=2, drop_last=False)
    assert Batching(18, 16, drop_last=False).steps == 2
