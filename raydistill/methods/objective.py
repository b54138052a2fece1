"""The weighted sum of an experiment's methods and the union of what they need."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor, nn

from raydistill.methods.base import Loss, Method, Needs, Setting, Step


def union_of_needs(methods: Mapping[str, Method]) -> Needs:
    """Everything that the methods together want to see."""
    return reduce(or_, (method.needs() for method in methods.values()), Needs())


class Objective(nn.Module):
    """Sum of weighted methods over shared student outputs; holds each method's parts under its label."""

    def __init__(self, methods: Mapping[str, Method], setting: Setting) -> None:
        """Check every method against the setting, then build its parts."""
        super().__init__()
        for method in methods.values():
            method.check(setting)
        self.methods = dict(methods)
        self.needs = union_of_needs(methods)
        self.parts = nn.ModuleDict({label: method.parts(setting) for label, method in methods.items()})

    def forward(self, step: Step) -> Loss:
        """Return the weighted total; ``terms``: unweighted, by label and ``label/term``."""
        total: Tensor | None = None
        terms: dict[str, Tensor] = {}
        carry: dict[str, Mapping[str, Any]] = {}
        for label, method in self.methods.items():
            loss = method.loss(step, self.parts[label])
            weighted = method.weight * loss.total
            total = weighted if total is None else total + weighted
            terms[label] = loss.total.detach()
            terms.update({f"{label}/{name}": value.detach() for name, value in loss.terms.items()})
            carry[label] = loss.carry
        assert total is not None
        return Loss(total=total, terms=terms, carry=carry)

    def after_step(self, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Let every method update its state."""
        for label, method in self.methods.items():
            method.after_step(self.parts[label], student, carry[label])
