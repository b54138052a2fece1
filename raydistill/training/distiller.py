"""The one module that is wrapped for distributed training: the student and the objective's trainable parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from raydistill.methods.base import Loss, Needs, Outputs, Step
from raydistill.methods.objective import Objective
from raydistill.models.head import freeze_all_but, head_modules
from raydistill.training.phases import OBJECTIVE, STUDENT, Phases


class Distiller(nn.Module):
    """Runs the student once for each view that the objective needs, then the objective on all of it.

    Every trainable parameter, the methods' heads included, is used in this module's forward pass, so one wrapper for
    distributed training sees them all. The teacher stays outside, and so outside of every checkpoint.

    Attributes:
        peers: networks that are trained together with the student, by name; none here.
        phases: told how long the student and the objective take.
    """

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        """Join a student and an objective whose parts were built for it."""
        super().__init__()
        self.student = student
        self.objective = objective
        self.peers = nn.ModuleDict()
        self.phases = Phases(torch.device("cpu"))
        self._head: tuple[nn.Module, ...] | None = None

    def train_head_alone(self, head: Collection[str]) -> None:
        """Freeze the student but for its head, whose parameters are named; the rest stays in evaluation mode, too."""
        freeze_all_but(self.student, head)
        self._head = tuple(head_modules(self.student, head))
        self.train(self.training)

    def train(self, mode: bool = True) -> Distiller:
        """Set the mode of all parts that are trained."""
        super().train(mode)
        if self._head is not None:
            self.student.eval()
            for module in self._head:
                module.train(mode)
        return self

    def forward(self, step: Step) -> Loss:
        """Return the weighted loss of a step whose ``student`` is still empty."""
        with self.phases(STUDENT):
            outputs = self.student_outputs(step, self.objective.needs)
        with self.phases(OBJECTIVE):
            loss: Loss = self.objective(replace(step, student=outputs))
        return loss

    def student_outputs(self, step: Step, needs: Needs) -> dict[int, Outputs]:
        """Run the student once for each view that is needed of it."""
        wanted = needs.student
        return {view: self.student(step.views[view], outputs=tuple(sorted(names))) for view, names in wanted.items()}

    def after_step(self, carry: Mapping[str, Any]) -> None:
        """Let the methods update their state; to be called after the optimiser's step."""
        with self.phases(OBJECTIVE):
            self.objective.after_step(self.student, carry)
