"""SwAV against two public implementations of its loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.functional import sinkhorn_knopp, swav_loss
from raydistill.methods.swav import SwAV
from tests.golden import golden
from tests.methods.support import close, double_parts, make_step, single_step, tensor, tiny_setting

TINY: dict[str, Any] = {"prototypes": 11, "hidden": 9, "dimension": 8, "local_crops": 2}
CROPS = ("high0", "high1", "low0", "low1")


def codes_of(values: dict[str, Any], crop: int, queued: bool, dtype: torch.dtype) -> Tensor:
    scores = tensor(values[f"swav/in/high{crop}"], dtype)
    queue = tensor(values[f"swav/in/queue_out{crop}"], dtype)
    return sinkhorn_knopp(torch.cat([scores, queue] if queued else [scores]) / 0.05)[: len(scores)]


@pytest.mark.parametrize("kind", ["noqueue", "queue"])
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 1e-4, 1e-5)])
def test_loss_and_gradients(kind: str, dtype: torch.dtype, rtol: float, atol: float) -> None:
    values = golden("sinkhorn_swav.npz")
    scores = {crop: tensor(values[f"swav/in/{crop}"], dtype).requires_grad_() for crop in CROPS}
    codes = torch.cat([codes_of(values, crop, kind == "queue", dtype) for crop in (0, 1)])
    loss = swav_loss(torch.cat([*scores.values()]), codes, temperature=0.1, crops=4)
    loss.backward()
    close(loss, values[f"swav/lightly_f64/{kind}/loss"], rtol=rtol)
    if kind == "noqueue":
        close(loss, values["swav/solo_f64/noqueue/loss"], rtol=rtol)
    for crop, rows in scores.items():
        close(rows.grad, values[f"swav/lightly_f64/{kind}/grad_{crop}"], rtol=rtol, atol=atol)


class Cosines(torch.nn.Module):
    """Stands for the head and for prototypes that are the axes: scores are what comes in."""

    def forward(self, rows: Tensor, trained: bool = True) -> Tensor:
        return rows

    weight = torch.zeros(9, 9)


@pytest.mark.parametrize("kind", ["noqueue", "queue"])
def test_class(kind: str) -> None:
    """Unit rows are their own cosines with the axes; the stored scores are not, hence a comparison of parts."""
    values = golden("sinkhorn_swav.npz")
    rows = {crop: torch.nn.functional.normalize(tensor(values[f"swav/in/{crop}"])) for crop in CROPS}
    queues = [torch.nn.functional.normalize(tensor(values[f"swav/in/queue_out{crop}"])) for crop in (0, 1)]
    method = SwAV(prototypes=9, dimension=9, local_crops=2, queue=10 * (kind == "queue"), queue_from=0)
    parts = double_parts(method, tiny_setting())
    parts["head"] = parts["prototypes"] = Cosines()
    for queue, stored in zip(parts["queues"], queues, strict=kind == "queue"):
        queue.keys.copy_(stored)
    loss = method.loss(single_step({view: {"embedding": value} for view, value in enumerate(rows.values())}, {}), parts)
    used = queues if kind == "queue" else [torch.empty(0, 9)] * 2
    codes = [sinkhorn_knopp(torch.cat([rows[f"high{n}"], used[n]]) / 0.05)[:6] for n in (0, 1)]
    close(loss.total, swav_loss(torch.cat([*rows.values()]), torch.cat(codes), temperature=0.1, crops=4))


def test_queue_waits_for_its_epoch_and_holds_each_large_crop() -> None:
    method = SwAV(**TINY, queue=12, queue_from=1)
    without = SwAV(**TINY)
    parts = double_parts(method, tiny_setting())
    for number in range(2):
        step = make_step(method.needs(), number, slice(8))
        loss = method.loss(step, parts)
        same = torch.equal(loss.total, without.loss(step, parts).total)
        assert same == (number == 0)
        method.after_step(parts, torch.nn.Identity(), loss.carry)
        for view, queue in enumerate(parts["queues"]):
            entered = (torch.arange(8) + 8 * number) % 12
            close(queue.keys[entered], loss.carry["rows"][view])


def test_prototypes_wait_and_stay_of_length_one() -> None:
    method = SwAV(**TINY, freeze_prototypes=1)
    parts = double_parts(method, tiny_setting())
    weight = parts["prototypes"].weight
    close(weight.norm(dim=1), torch.ones(11), rtol=1e-6)
    for epoch in range(2):
        parts.zero_grad()
        loss = method.loss(make_step(method.needs(), epoch, slice(8)), parts)
        loss.total.backward()
        assert (weight.grad.abs().sum() > 0) == (epoch == 1)
    weight.data *= 3.0
    method.after_step(parts, torch.nn.Identity(), loss.carry)
    close(weight.norm(dim=1), torch.ones(11))


def test_uniform_scores_lose_log_k() -> None:
    codes = torch.eye(5, dtype=torch.float64)[:4]
    close(swav_loss(torch.ones(8, 5, dtype=torch.float64), codes, temperature=0.1, crops=4), math.log(5))


def test_equal_embeddings_have_balanced_codes() -> None:
    """Where all images look alike every code is uniform, which is what keeps SwAV from choosing one prototype."""
    method = SwAV(**TINY)
    parts = double_parts(method, tiny_setting())
    same = torch.ones(8, 6, dtype=torch.float64)
    for layer in parts["head"]:  # batch-norm would divide nothing by nothing
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.weight.data.zero_()
            layer.bias.data.fill_(1.0)
    loss = method.loss(single_step({view: {"embedding": same} for view in range(4)}, {}), parts)
    scores = parts["prototypes"](parts["head"](same))
    codes = torch.full((16, 11), 1 / 11, dtype=torch.float64)
    close(loss.total, swav_loss(scores.repeat(4, 1), codes, temperature=0.1, crops=4))
    assert loss.terms["entropy"] == 0


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_extreme_scores(scale: float) -> None:
    scores = (scale * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = swav_loss(scores, sinkhorn_knopp(scores.detach()[:4] / 0.05), temperature=1e-4, crops=4)
    loss.backward()
    assert torch.isfinite(loss)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
