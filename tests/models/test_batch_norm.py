"""Batch normalisation over the global batch; on several ranks it is tested in tests/training/test_ranks.py."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist

from raydistill.models.batch_norm import GlobalBatchNorm, synchronise_batch_norms
from raydistill.models.zoo import build_model

LENGTHS = (4, 3, 1)
OPTIONS = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}]


def norms() -> list[nn.BatchNorm2d]:
    """Batch-norms of each kind, in float64 and with scales that are not 1."""
    made = [nn.BatchNorm2d(5, **options).double() for options in OPTIONS]
    for norm in made:
        for number, parameter in enumerate(norm.parameters()):
            parameter.data.add_(torch.linspace(0.1, 0.5, 5) * (number + 1))
    return made


def outcome(norm: nn.Module, rows: slice) -> list[Tensor]:
    """Two passes over a share of eight maps -> outputs, gradients of inputs and parameters, buffers."""
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    for _ in range(2):
        maps, wanted = (3.0 + torch.randn(8, 5, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
        own = maps[rows].requires_grad_()
        made = norm(own)
        loss = ((made - wanted[rows]) ** 3).sum() / len(maps)
        found += [made.detach(), *torch.autograd.grad(loss, [own, *norm.parameters()])]
    return [*found, *(buffer.clone() for buffer in norm.buffers())]


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=rank, world_size=len(LENGTHS))
    first = sum(LENGTHS[:rank])
    made = norms()
    for norm in made:
        synchronise_batch_norms(norm)
    torch.save([outcome(norm, slice(first, first + LENGTHS[rank])) for norm in made], path / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_with_unequal_parts_normalise_as_one_process(tmp_path: Path) -> None:
    """Values, all gradients and running statistics, to the precision of float64."""
    multiprocessing.spawn(run_rank, args=(str(tmp_path),), nprocs=len(LENGTHS))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(LENGTHS))]
    for kind, norm in enumerate(norms()):
        expected = outcome(norm, slice(None))
        for place, whole in enumerate(expected):
            parts = [found[kind][place] for found in ranks]
            of_rows = whole.shape[:1] == (8,)
            is_gradient = not of_rows and place < 2 * (2 + len(list(norm.parameters())))
            if of_rows:
                torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-11)
            elif is_gradient:  # of a loss that is a sum over the ranks
                torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-9, atol=1e-11)
            else:
                assert all(torch.equal(part, parts[0]) for part in parts)
                torch.testing.assert_close(parts[0], whole, rtol=1e-9, atol=1e-11)


def test_one_process_normalises_as_before() -> None:
    torch.manual_seed(0)
    network = build_model("wrn_16_1", 10, in_channels=1)
    other = copy.deepcopy(network)
    synchronise_batch_norms(other)
    assert sum(isinstance(part, GlobalBatchNorm) for part in other.modules()) == 13
    assert network.state_dict().keys() == other.state_dict().keys()
    images = torch.randn(6, 1, 16, 16)
    for mode in (True, False):
        network.train(mode)
        other.train(mode)
        names = ("logits", "preact/1", "preact/3")
        left, right = network(images, outputs=names), other(images, outputs=names)
        for name in names:
            torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_statistics_in_single(dtype: torch.dtype) -> None:
    norm = nn.BatchNorm2d(3)
    synchronise_batch_norms(norm)
    maps = (100.0 + torch.randn(16, 3, 8, 8)).to(dtype)
    made = norm(maps)
    assert made.dtype == dtype and norm.running_mean is not None and norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(made.float().std((0, 2, 3)), torch.ones(3), rtol=2e-2, atol=0)
