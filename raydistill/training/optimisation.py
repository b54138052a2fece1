"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from inspect import unwrap

import torch
from torch import nn

from raydistill.config import OptimizerConfig, ScheduleConfig, TrainConfig


class _WithoutCompiler(torch.optim.Optimizer):
    """An optimiser that does not import torch's compiler.

    torch decorates these methods so that ``torch.compile`` leaves them alone, and imports the whole compiler for it at
    the first call: over 3 s in each process. Nobody compiles an optimiser here, so the decorated functions do.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)


class SGD(_WithoutCompiler, torch.optim.SGD):
    """Stochastic gradient descent."""

    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class AdamW(_WithoutCompiler, torch.optim.AdamW):
    """Adam with decoupled weight decay."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser over all parameters that are trained."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if config.name == "adamw":
        return AdamW(
            trained,
            lr=config.lr,
            betas=(config.momentum, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
        )
    return SGD(
        trained,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate_factor(config: ScheduleConfig, *, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return a function from the number of finished steps to the factor on the learning rate."""
    total, warmup = epochs * steps_per_epoch, config.warmup * steps_per_epoch

    def cosine(step: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, step - warmup) / max(1.0, total - warmup))))

    def multistep(step: int) -> float:
        return config.gamma ** sum(step >= milestone * steps_per_epoch for milestone in config.milestones)

    def constant(step: int) -> float:
        return 1.0

    shapes: dict[str, Callable[[int], float]] = {"cosine": cosine, "multistep": multistep, "constant": constant}
    shape = shapes[config.name]
    return lambda step: min(1.0, (step + 1) / warmup) * shape(step) if step < warmup else shape(step)


def build_schedule(
    config: TrainConfig, optimizer: torch.optim.Optimizer, *, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule that is stepped once after every optimiser step."""
    factor = learning_rate_factor(config.schedule, epochs=config.epochs, steps_per_epoch=steps_per_epoch)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
