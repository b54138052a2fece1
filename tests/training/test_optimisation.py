"""Optimisers and schedules against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from raydistill.train_config import OptimizerConfig, ScheduleConfig
from raydistill.training.optimisation import LARS, build_optimizer, build_scaler, learning_rate_factor

TRUST, LR, MOMENTUM, DECAY = 0.02, 0.5, 0.9, 0.1
CPU = torch.device("cpu")


def parameter(*shape: int, seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))


def gradients(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(4)]


def of_the_paper(weight: Tensor, found: list[Tensor], rates: list[float], trust: float | None) -> Tensor:
    """Algorithm 1 of LARS on one tensor, in its own words; without ``trust`` neither local rate nor decay."""
    weight, velocity = weight.detach().clone(), torch.zeros_like(weight)
    for gradient, rate in zip(found, rates, strict=True):
        decay, local = (DECAY, 0.0) if trust is not None else (0.0, 1.0)
        if trust is not None:
            local = trust * float(weight.norm()) / (float(gradient.norm()) + decay * float(weight.norm()))
        velocity = MOMENTUM * velocity + rate * local * (gradient + decay * weight)
        weight = weight - velocity
    return weight


def test_lars_is_the_papers_algorithm() -> None:
    weight, bias = parameter(4, 3), parameter(4, seed=1)
    starts = weight.detach().clone(), bias.detach().clone()
    config = OptimizerConfig(name="lars", lr=LR, momentum=MOMENTUM, weight_decay=DECAY, trust=TRUST)
    optimizer = build_optimizer(config, [weight, bias])
    rates = [LR, LR, 0.1 * LR, 0.3]
    for mine, its, rate in zip(gradients(4, 3), gradients(4), rates, strict=True):
        weight.grad, bias.grad = mine.clone(), its.clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert torch.equal(weight.grad, mine)
    torch.testing.assert_close(weight.detach(), of_the_paper(starts[0], gradients(4, 3), rates, TRUST))
    torch.testing.assert_close(bias.detach(), of_the_paper(starts[1], gradients(4), rates, None))


def test_lars_can_leave_zero_and_skips_what_has_no_gradient() -> None:
    zero, still, idle = nn.Parameter(torch.zeros(2, 2)), parameter(2, 2), parameter(2, 2, seed=1)
    optimizer = LARS([zero, still, idle], lr=0.5, momentum=0.9, weight_decay=0.0, trust=0.1)
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.float64)
    before = still.detach().clone()
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full((2, 2), -0.5))
    assert torch.equal(still, before) and idle not in optimizer.state


def test_lars_continues_from_its_state() -> None:
    def run(cut: int | None) -> Tensor:
        weight = parameter(4, 3)
        optimizer = LARS([weight], lr=LR, momentum=MOMENTUM, weight_decay=DECAY, trust=TRUST)
        for number, gradient in enumerate(gradients(4, 3)):
            if number == cut:
                state, optimizer = (
                    optimizer.state_dict(),
                    LARS([weight], lr=1.0, momentum=0.0, weight_decay=0.0, trust=1.0),
                )
                optimizer.load_state_dict(state)
            weight.grad = gradient
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(None), run(2))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_step_whose_scaled_gradients_overflow_moves_nothing(name: str) -> None:
    weight, bias = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(OptimizerConfig(name=name, lr=0.1), [weight, bias])  # type: ignore[arg-type]
    scaler = build_scaler(optimizer, CPU)

    def step(factor: float) -> None:
        scaler.scale((weight.sum() + bias.sum()) * factor).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    step(math.inf)
    assert torch.equal(weight, torch.ones(3, 2)) and torch.equal(bias, torch.ones(3))
    step(1.0)
    other = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))]
    plain = build_optimizer(OptimizerConfig(name=name, lr=0.1), other)  # type: ignore[arg-type]
    for value in other:
        value.grad = torch.ones_like(value)
    plain.step()
    assert scaler.get_scale() == 2.0**15
    for mine, its in zip((weight, bias), other, strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_and_norms_may_stay_free_of_decay(name: str) -> None:
    for decays in (True, False):
        values = {"weight": parameter(3, 2), "bias": parameter(3, seed=1), "scale": parameter(seed=2)}
        before = {key: value.detach().clone() for key, value in values.items()}
        config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.5, decay_norm_and_bias=decays)  # type: ignore[arg-type]
        optimizer = build_optimizer(config, values.values())
        for value in values.values():
            value.grad = torch.zeros_like(value)
        optimizer.step()
        for key, value in values.items():
            factor = 0.95 if decays or key == "weight" else 1.0
            torch.testing.assert_close(value.detach(), factor * before[key])


def test_warm_up_may_be_a_part_of_an_epoch() -> None:
    factor = learning_rate_factor(ScheduleConfig(name="constant", warmup=0.5), epochs=3, steps_per_epoch=10)
    assert [factor(step) for step in range(7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


def test_cosine_ends_at_its_floor() -> None:
    factor = learning_rate_factor(ScheduleConfig(floor=0.2, warmup=1), epochs=5, steps_per_epoch=10)
    assert [factor(10), factor(30), factor(50), factor(60)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert factor(20) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
