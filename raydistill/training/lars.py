"""Layer-wise adaptive rate scaling, which torch does not have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Momentum with a local learning rate for each tensor (You, Gitman, Ginsburg 2017, arXiv 1708.03888, Algorithm 1).

        rate = trust ||w|| / (||g|| + decay ||w||)
        v <- momentum v + lr rate (g + decay w)
        w <- w - v

    The global learning rate is inside of v, so a change of it acts on later gradients only; in torch's SGD it acts on
    the whole of v. ``rate`` is 1 where w or g is zero, which could not leave zero otherwise, and in groups whose
    ``trust`` is None.

    A gradient scaler's word of an overflow is heeded on the device, without waiting for it: nothing moves then.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self, params: Iterable[Any], *, lr: float, momentum: float, weight_decay: float, trust: float | None
    ) -> None:
        """Take parameters or groups of them, which may have values of their own for all the rest."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [value for value in group["params"] if value.grad is not None]
            if parameters:
                self._move(parameters, group)

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = self._unscaled([value.grad for value in parameters if value.grad is not None])
        decay = group["weight_decay"]
        decayed = torch._foreach_add(gradients, parameters, alpha=decay) if decay else gradients
        moves = torch._foreach_mul(decayed, self._rates(parameters, gradients, group))
        velocities = [self._velocity(value) for value in parameters]
        new = torch._foreach_add(torch._foreach_mul(velocities, group["momentum"]), moves)
        overflow = getattr(self, "found_inf", None)
        if overflow is None:
            torch._foreach_copy_(velocities, new)
            torch._foreach_sub_(parameters, new)
            return
        skipped = overflow > 0
        for parameter, old, made in zip(parameters, velocities, new, strict=True):
            old.copy_(torch.where(skipped, old, made))
            parameter.sub_(made.masked_fill(skipped, 0.0))

    def _unscaled(self, gradients: list[Tensor]) -> list[Tensor]:
        scale = getattr(self, "grad_scale", None)
        return gradients if scale is None else list(torch._foreach_div(gradients, scale))

    def _rates(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Global times local learning rate of each parameter."""
        lr, trust = group["lr"], group["trust"]
        if trust is None:
            return [torch.full((), lr, device=value.device) for value in parameters]
        weight, gradient = (torch.stack(list(torch._foreach_norm(values))) for values in (parameters, gradients))
        ratio = trust * weight / (gradient + group["weight_decay"] * weight)
        return list((lr * torch.where((weight > 0) & (gradient > 0), ratio, 1.0)).unbind())

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity: Tensor = state["momentum_buffer"]
        return velocity
