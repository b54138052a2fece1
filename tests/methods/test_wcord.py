"""WCoRD is the weighted sum of its halves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raydistill.methods.gckt import GCKT
from raydistill.methods.lckt import LCKT
from raydistill.methods.wcord import WCoRD
from tests.methods.support import close, double_parts, single_step, tiny_setting


def test_sum_of_both_halves_over_two_steps() -> None:
    options: dict[str, Any] = {"negatives": 4, "dimension": 8, "exclude": "instance", "temperature": 0.2}
    setting = tiny_setting()
    both = WCoRD(**options, epsilon=0.1, iterations=7, global_weight=0.3, local_weight=2.0)
    halves: list[Any] = [GCKT(**options), LCKT(epsilon=0.1, iterations=7)]
    parts: Any = double_parts(both, setting)
    own = [double_parts(half, setting) for half in halves]
    for number in range(2):
        student, teacher = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
        columns = {"index": torch.arange(4) + 2 * number}
        step = single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}, columns=columns)
        loss = both.loss(step, parts)
        apart = [half.loss(step, made) for half, made in zip(halves, own, strict=True)]
        close(loss.total, 0.3 * apart[0].total + 2.0 * apart[1].total)
        close(loss.terms["global"], apart[0].total)
        close(loss.terms["local"], apart[1].total)
        both.after_step(parts, nn.Identity(), loss.carry)
        halves[0].after_step(own[0], nn.Identity(), apart[0].carry)
    for name, value in own[0].state_dict().items():
        assert torch.equal(parts["global"].state_dict()[name], value)
