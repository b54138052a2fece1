"""A method can't tell a cached teacher from a live one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydistill.data.views import render
from raydistill.errors import CacheError, ConfigError
from raydistill.methods.base import Needs
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.network import teacher_of
from raydistill.teachers.rows import HeldRows
from raydistill.teachers.source import CachedTeacher, LiveTeacher, wanted_outputs
from tests.teachers.conftest import Built

BOTH = frozenset({"logits", "embedding"})


def draw(built: Built, positions: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    images = built.images
    return render(
        images.images[positions],
        images.ids[positions],
        views,
        augment=built.experiment.data.augment,
        seed=built.experiment.cache.seed,
        mean=images.mean,
        std=images.std,
    )


def cached_teacher(cache: TeacherCache, ids: torch.Tensor, needs: Needs) -> CachedTeacher:
    table = cache.table(ids, cache.views, wanted_outputs(needs, cache))
    return CachedTeacher(HeldRows(table, cache.views, "cpu"), needs)


def test_cached_equals_live(built: Built) -> None:
    needs = Needs(student={0: BOTH, 1: BOTH}, teacher={0: BOTH, 1: frozenset({"embedding"})})
    cached = cached_teacher(TeacherCache.open(built.path), built.images.ids, needs)
    live = LiveTeacher(teacher_of(built.experiment, built.images), needs, image_shape=built.images.shape)
    positions = torch.randperm(240, generator=torch.Generator().manual_seed(0))[:50]
    view_ids = {0: torch.arange(50) % 2 + 1, 1: 2 - torch.arange(50) % 2}
    images = {view: draw(built, positions, ids) for view, ids in view_ids.items()}
    stored, computed = (source.outputs(positions, view_ids, images) for source in (cached, live))
    assert {view: set(outputs) for view, outputs in stored.items()} == {0: set(BOTH), 1: {"embedding"}}
    for view, outputs in computed.items():
        for name, values in outputs.items():
            assert stored[view][name].dtype == values.dtype == torch.float32
            assert not values.requires_grad
            torch.testing.assert_close(stored[view][name], values, rtol=2e-3, atol=2e-3)
    assert cached.shapes == live.shapes == {"embedding": (64,), "logits": (10,)}
    assert (cached.forwards, live.forwards) == (0, 100)


def test_evaluation_view_stands_for_all(exact: Built) -> None:
    needs = Needs(student={0: BOTH, 3: BOTH}, teacher={3: BOTH})
    cache = TeacherCache.open(exact.path)
    teacher = cached_teacher(cache, exact.images.ids, needs)
    positions = torch.tensor([7, 2])
    found = teacher.outputs(positions, {3: torch.tensor([41, 99])}, {})
    assert torch.equal(found[3]["logits"], cache.read(exact.images.ids[positions])["logits"])


def test_lacking_output_and_view_are_named(built: Built) -> None:
    cache = TeacherCache.open(built.path)
    with pytest.raises(CacheError, match=r"view 1 of a step needs 'features/1'.*raydistill cache build CONFIG"):
        wanted_outputs(Needs(teacher={1: frozenset({"features/1"})}), cache)
    three = Needs(student=dict.fromkeys(range(3), BOTH), teacher={2: BOTH})
    with pytest.raises(CacheError, match=r"a step draws 3 views, but 2 augmented ones.*cache\.views=3"):
        wanted_outputs(three, cache)
    assert wanted_outputs(Needs(teacher={0: BOTH}), cache) == ("embedding", "logits")


def test_uncached_view_id_is_refused(built: Built) -> None:
    teacher = cached_teacher(TeacherCache.open(built.path), built.images.ids, Needs(teacher={0: BOTH}))
    with pytest.raises(CacheError, match="views 1 to 3"):
        teacher.outputs(torch.tensor([0, 1]), {0: torch.tensor([1, 3])}, {})


def test_table_from_the_object_store_is_read_only() -> None:
    table = {"logits": np.zeros((1, 4, 3), dtype=np.float16)}
    table["logits"].setflags(write=False)
    teacher = CachedTeacher(HeldRows(table, (0,), "cpu"), Needs(teacher={0: frozenset({"logits"})}))
    assert teacher.outputs(torch.tensor([1]), {}, {})[0]["logits"].shape == (1, 3)


def test_live_teacher_refuses_an_unknown_output(built: Built) -> None:
    needs = Needs(teacher={0: frozenset({"logit"})})
    with pytest.raises(ConfigError, match="logit"):
        LiveTeacher(teacher_of(built.experiment, built.images), needs, image_shape=built.images.shape)
