"""Training steps of every case on some ranks; run in processes of their own and in the test's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from raydistill.data.batching import Batching
from raydistill.methods.base import Method, Setting
from raydistill.methods.collectives import (
    gather_with_grad,
    mean_over_ranks,
    own_rows,
    rank,
    row_weight,
    rows_held,
    world_size,
)
from raydistill.methods.objective import Objective
from tests.methods.cases import build_cases, setting_of
from tests.methods.support import make_step, tiny_student

BATCH, STEPS = 8, 3


def freeze_statistics(module: nn.Module) -> None:
    """Give batch-norms fixed statistics: those of a batch are per rank on purpose."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean, part.running_var = (
                torch.zeros(part.num_features),
                torch.ones(part.num_features),
            )
            part.eval()


def train_case(method: Method, setting: Setting) -> dict[str, Tensor]:
    """Three steps of gradient descent on this rank's share of each batch -> losses, gradients, state.

    Shares are as equal as they can be: two ranks hold 4 rows each, three hold 3, 3 and 2.
    """
    student = tiny_student()
    objective = Objective({"case": method}, setting)
    freeze_statistics(objective)
    student.double()
    objective.double()
    (shares,) = Batching(BATCH, BATCH, world_size()).shares(0)
    rows = slice(sum(shares[: rank()]), sum(shares[: rank() + 1]))
    named = dict(student.named_parameters(prefix="student")) | {
        name: value for name, value in objective.named_parameters() if value.requires_grad
    }
    made: dict[str, Tensor] = {}
    for number in range(STEPS):
        step = make_step(objective.needs, number, rows, setting=setting, student=student)
        with rows_held(shares):
            loss = objective(step)
            total = loss.total * row_weight()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        made[f"loss {number}"] = mean_over_ranks(total)
        for (name, value), gradient in zip(named.items(), gradients, strict=True):
            if gradient is not None:
                averaged = mean_over_ranks(gradient)
                made[f"gradient {number} {name}"] = averaged
                value.data.sub_(0.1 * averaged)
        with rows_held(shares):
            objective.after_step(student, loss.carry)
    return made | {f"state {name}": value.clone() for name, value in objective.state_dict().items()}


def train_cases() -> dict[str, dict[str, Tensor]]:
    """All cases; and the gradient of a relation between all rows of the batch."""
    made = {label: train_case(method, setting_of(method)) for label, method in build_cases().items()}
    return made | {"relation": relation()}


def relation() -> dict[str, Tensor]:
    """A loss of all pairs of rows, differentiated with respect to a weight that all ranks share."""
    weight = torch.eye(3, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    everything = torch.randn(BATCH, 3, generator=generator, dtype=torch.float64)
    (shares,) = Batching(BATCH, BATCH, world_size()).shares(0)
    with rows_held(shares):
        rows = gather_with_grad(own_rows(everything) @ weight)
        loss = (rows @ rows.T).tanh().mean()
        (gradient,) = torch.autograd.grad(loss * row_weight(), weight)
    return {"loss": loss.detach(), "gradient": mean_over_ranks(gradient)}


def run_rank(number: int, ranks: int, folder: str) -> None:
    """One process: train all cases and save what came out."""
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=number, world_size=ranks)
    made: Any = train_cases()
    torch.save(made, path / f"rank{number}.pt")
    dist.barrier()
    dist.destroy_process_group()
