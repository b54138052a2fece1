"""Cluster classification: the stage that fits the clusters, and the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from torch.nn import functional as F  # noqa: N812

from raydistill.errors import ConfigError
from raydistill.methods.cluster_cls import ClusterClassification, nearest_center
from tests.methods.support import SAMPLES, close, double_parts, single_step, tiny_setting

GROUPS = torch.arange(SAMPLES) % 3


def teacher_rows() -> Tensor:
    """Three far directions with a little noise, of any length."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(SAMPLES, 7, generator=generator)
    return (torch.eye(7)[GROUPS] + noise) * (1 + torch.rand(SAMPLES, 1, generator=generator))


def fitted(order: Tensor, seed: int = 3, share: slice = slice(None)) -> tuple[ClusterClassification, Any]:
    """Parts after the stage saw the training set, or this share of each batch of 8, in this order."""
    method = ClusterClassification(clusters=3)
    parts: Any = method.parts(replace(tiny_setting(), seed=seed))
    stage = method.pretraining(parts, nn.Identity())
    assert (stage.epochs, stage.trains) == (1, ())
    before = parts["centers"].value.clone()
    for batch in order.split(8):
        index = batch[share]
        step = single_step({}, {0: {"embedding": teacher_rows()[index]}}, columns={"index": index})
        assert stage.loss(step).total == 0
        assert torch.equal(parts["centers"].value, before)
    assert stage.finish is not None
    stage.finish()
    return method, parts


def test_the_stage_finds_the_clusters() -> None:
    _, parts = fitted(torch.arange(SAMPLES))
    rows = F.normalize(teacher_rows())
    clusters = nearest_center(rows, parts["centers"].value)
    means = torch.stack([rows[group == GROUPS].mean(0) for group in range(3)])
    close(parts["centers"].value[clusters[:3]], means, rtol=1e-4, atol=1e-5)
    assert torch.equal(clusters, clusters[:3][GROUPS])


def test_the_order_of_the_epoch_does_not_count() -> None:
    shuffled = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        one, other = (fitted(order, seed)[1]["centers"].value for order in (torch.arange(SAMPLES), shuffled))
        assert torch.equal(one, other)


def test_loss_is_cross_entropy_with_the_nearest_center() -> None:
    method = ClusterClassification(clusters=3)
    parts = double_parts(method, tiny_setting())
    parts["centers"].value.copy_(torch.eye(7)[:3])
    student = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.eye(7, dtype=torch.float64)[[2, 0, 1]] * 1e4
    loss = method.loss(single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}), parts).total
    logits = parts["classifier"](student)
    close(loss, -logits.log_softmax(1)[[0, 1, 2], [2, 0, 1]].mean())


def test_nearest_is_euclidean() -> None:
    rows, centers = torch.randn(20, 4, dtype=torch.float64), 3 * torch.randn(6, 4)
    assert torch.equal(nearest_center(rows, centers), torch.cdist(rows, centers.double()).argmin(1))


def fit_on_a_rank(number: int, folder: str) -> None:
    """One of two ranks: each batch's half to each."""
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=number, world_size=2)
    _, parts = fitted(torch.arange(SAMPLES), share=slice(4 * number, 4 * number + 4))
    torch.save(parts["centers"].value, path / f"rank{number}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_find_the_clusters_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(fit_on_a_rank, args=(str(tmp_path),), nprocs=2)
    _, alone = fitted(torch.arange(SAMPLES))
    for number in range(2):
        assert torch.equal(torch.load(tmp_path / f"rank{number}.pt", weights_only=True), alone["centers"].value)


@pytest.mark.parametrize(("batch_size", "most"), [(8, 24), (10, 20), (100, 24)])
def test_too_many_clusters_are_refused(batch_size: int, most: int) -> None:
    setting = replace(tiny_setting(), batch_size=batch_size)
    ClusterClassification(clusters=most).check(setting)
    with pytest.raises(ConfigError, match=rf"^methods\.cluster_cls\.clusters: {most + 1} .* {most} samples"):
        ClusterClassification(clusters=most + 1).check(setting)
