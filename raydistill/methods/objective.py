"""The weighted sum of an experiment's methods and the union of what they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from raydistill.methods.base import Loss, Method, Setting, Stage, Step, union_of_needs


@dataclass(frozen=True)
class _Term:
    """A method with one teacher, or with all of them where ``teacher`` is None; ``share``: factor on its loss."""

    key: str
    label: str
    method: Method
    teacher: int | None
    share: float = 1.0


class Objective(nn.Module):
    """Sum of weighted methods over shared student outputs; holds each method's parts under its label.

    With several teachers a method has parts for each, under ``label/0``, ``label/1`` and so on, unless it joins them.
    """

    def __init__(self, methods: Mapping[str, Method], setting: Setting, *, mean_over_teachers: bool = False) -> None:
        """Check every method against the setting, then build its parts.

        Of a method with parts for each teacher the losses are summed, or averaged with ``mean_over_teachers``.
        """
        super().__init__()
        self.methods = dict(methods)
        self.needs = union_of_needs(methods.values())
        share = 1.0 / len(setting.teachers) if mean_over_teachers and setting.teachers else 1.0
        terms = list(_terms(methods, len(setting.teachers), share))
        settings = {term.key: setting if term.teacher is None else setting.for_teacher(term.teacher) for term in terms}
        for term in terms:
            term.method.check(settings[term.key])
        self.parts = nn.ModuleDict({term.key: term.method.parts(settings[term.key]) for term in terms})
        for term in terms:
            if not term.method.weight:  # only a stage before distillation trains these
                self.parts[term.key].requires_grad_(False)
        self._all_terms = terms
        self._terms = [term for term in terms if term.method.weight]

    def forward(self, step: Step) -> Loss:
        """Return the weighted total; ``terms``: unweighted, by label and ``label/term``."""
        total: Tensor | None = None
        terms: dict[str, Tensor] = {}
        carry: dict[str, Mapping[str, Any]] = {}
        for term in self._terms:
            seen = step if term.teacher is None else step.for_teacher(term.teacher)
            loss = term.method.loss(seen, self.parts[term.key])
            weighted = term.method.weight * term.share * loss.total
            total = weighted if total is None else total + weighted
            found = loss.total.detach()
            shared = term.share * found
            terms[term.label] = terms[term.label] + shared if term.label in terms else shared
            if term.teacher is not None:
                terms[term.key] = found
            terms.update({f"{term.key}/{name}": value.detach() for name, value in loss.terms.items()})
            carry[term.key] = loss.carry
        assert total is not None
        return Loss(total=total, terms=terms, carry=carry)

    def after_step(self, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Let every method update its state."""
        for term in self._terms:
            term.method.after_step(self.parts[term.key], student, carry[term.key])

    def stages(self, student: nn.Module) -> dict[str, Stage]:
        """Return the stages that run before distillation, in this order, by the label of their method."""
        found: dict[str, Stage] = {}
        for term in self._all_terms:
            stage = term.method.pretraining(self.parts[term.key], student)
            if stage is not None:
                found[term.key] = replace(stage, loss=_seen_by(term.teacher, stage.loss))
        return found


def _seen_by(teacher: int | None, loss: Callable[[Step], Loss]) -> Callable[[Step], Loss]:
    return loss if teacher is None else lambda step: loss(step.for_teacher(teacher))


def _terms(methods: Mapping[str, Method], teachers: int, share: float) -> Iterator[_Term]:
    for label, method in methods.items():
        if teachers < 2 or method.joins_teachers or not method.needs().teacher:
            yield _Term(label, label, method, None)
        else:
            yield from (_Term(f"{label}/{number}", label, method, number, share) for number in range(teachers))
