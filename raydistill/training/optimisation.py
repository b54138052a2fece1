"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from inspect import unwrap
from typing import Any

import torch
from torch import nn

from raydistill.train_config import OptimizerConfig, ScheduleConfig, TrainConfig
from raydistill.training import lars


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


class LARS(_WithoutCompiler, lars.LARS):
    """Momentum with layer-wise learning rates."""


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser over all parameters that are trained."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    builders = {"sgd": _build_sgd, "adamw": _build_adamw, "lars": _build_lars}
    return builders[config.name](config, trained)


def _build_sgd(config: OptimizerConfig, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    return SGD(
        _groups(config, trained),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _build_adamw(config: OptimizerConfig, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    return AdamW(
        _groups(config, trained),
        lr=config.lr,
        betas=(config.momentum, 0.999),
        weight_decay=config.weight_decay,
        fused=True,
    )


def _build_lars(config: OptimizerConfig, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    decayed, others = _apart(trained)
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0, "trust": None}]
    return LARS(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, trust=config.trust)


def _groups(config: OptimizerConfig, trained: list[nn.Parameter]) -> list[dict[str, Any]]:
    if config.decay_norm_and_bias:
        return [{"params": trained}]
    decayed, others = _apart(trained)
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


def _apart(trained: list[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights of layers, and biases and norms' scales, which are all that have one dimension or none."""
    return [value for value in trained if value.ndim > 1], [value for value in trained if value.ndim <= 1]


def build_scaler(optimizer: torch.optim.Optimizer, device: torch.device) -> torch.amp.GradScaler:
    """Return what multiplies losses, so that their gradients do not underflow in float16, and divides these again.

    The first steps often overflow and are skipped. torch's fused SGD would keep the memory that it took for momentum in
    such a step, and go on from whatever lay there; so its momentum begins at zero, from which the first step makes the
    gradient, as from nothing.
    """
    for group in optimizer.param_groups if isinstance(optimizer, SGD) else ():
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return torch.amp.GradScaler(device.type)


def learning_rate_factor(config: ScheduleConfig, *, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return a function from the number of finished steps of the optimiser to the factor on the learning rate.

    A step is a global batch, of however many micro-batches and workers.
    """
    total, warmup = epochs * steps_per_epoch, config.warmup * steps_per_epoch

    def cosine(step: int) -> float:
        done = min(1.0, max(0.0, step - warmup) / max(1.0, total - warmup))
        return config.floor + (1.0 - config.floor) * (0.5 * (1.0 + math.cos(math.pi * done)))

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
