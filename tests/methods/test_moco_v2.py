"""MoCo v2: which rows are compared, and what is remembered."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raydistill.functional import info_nce_loss
from raydistill.methods.moco_v2 import MoCoV2
from tests.methods.support import PIXELS, close, double_parts, make_step, tiny_setting, tiny_student

TINY: dict[str, Any] = {"queue": 12, "hidden": 9, "dimension": 8}


def test_a_query_meets_its_key_and_the_queue() -> None:
    method = MoCoV2(**TINY, momentum=0.9)
    student = tiny_student().double()
    parts = double_parts(method, tiny_setting(student))
    for number in range(3):
        queue = parts["queue"].keys.clone()
        step = make_step(method.needs(), number, slice(8), student=student)
        loss = method.loss(step, parts)
        with torch.no_grad():
            key = parts["key_encoder"].head(parts["key_encoder"].network(step.views[1])["embedding"])
        query = parts["head"](step.student[0]["embedding"])
        close(loss.total, info_nce_loss(query, key, queue, temperature=0.2))
        method.after_step(parts, student, loss.carry)
        entered = (torch.arange(8) + 8 * number) % 12
        close(parts["queue"].keys[entered], nn.functional.normalize(key))


def test_loss_of_an_empty_memory() -> None:
    """Orthogonal to all other keys, a query that equals its key loses log(1 + Q e^{-1 / T})."""
    method = MoCoV2(queue=3, hidden=9, dimension=4)
    student = tiny_student().double()
    parts = double_parts(method, tiny_setting(student))
    for module in (parts["head"][2], parts["key_encoder"].head[2]):
        module.weight.data.zero_()
        module.bias.data.copy_(torch.eye(4)[0])
    parts["queue"].keys.copy_(torch.eye(4)[1:])
    loss = method.loss(make_step(method.needs(), 0, slice(8), student=student), parts)
    close(loss.total, torch.log1p(3 * torch.tensor(-5.0, dtype=torch.float64).exp()))


def test_copy_follows_network_and_head() -> None:
    method = MoCoV2(**TINY, momentum=0.75)
    student = tiny_student()
    parts: Any = method.parts(tiny_setting(student))
    copies = [parts["key_encoder"].network.body.bias, parts["key_encoder"].head[0].bias]
    before = [copy.clone() for copy in copies]
    student.body.bias.data += 1.0
    parts["head"][0].bias.data += 2.0
    method.after_step(parts, student, {"key": torch.randn(4, 8)})
    torch.testing.assert_close(copies[0], before[0] + 0.25)
    torch.testing.assert_close(copies[1], before[1] + 0.5)


def test_keys_are_computed_in_groups_that_lie_apart() -> None:
    network = WithBatchNorm().double()
    whole, groups = (MoCoV2(**TINY, key_group=size) for size in (8, 4))
    setting = tiny_setting(network)
    parts = double_parts(whole, setting)
    step = make_step(whole.needs(), 0, slice(8))
    images = step.views[1]
    together, apart = (method.loss(step, parts).carry["key"] for method in (whole, groups))
    close(together, nn.functional.normalize(parts["key_encoder"]([images])))
    for first in range(2):
        close(apart[first::2], nn.functional.normalize(parts["key_encoder"]([images[first::2]])))
    assert (apart - together).abs().max() > 1e-3


class WithBatchNorm(nn.Module):
    """An embedding of batch-normalised pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm1d(PIXELS)

    def forward(self, images: torch.Tensor, outputs: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return {"embedding": self.normalise(images)[:, :6]}


def test_views() -> None:
    needs = MoCoV2().needs()
    assert set(needs.student) == {0}
    assert needs.images == {1}
    assert {view: draw.scale for view, draw in needs.draws.items()} == {0: (0.2, 1.0), 1: (0.2, 1.0)}
