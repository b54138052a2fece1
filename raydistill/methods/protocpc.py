"""ProtoCPC: contrastive prediction of the teacher's prototypes, with a prior in place of the negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raydistill.errors import ConfigError
from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Momentum, Needs, Setting, Step, Temperature, Weight
from raydistill.methods.collectives import gather_rows, own_rows
from raydistill.methods.precision import at_least_float32, no_autocast


def sinkhorn_knopp(logits: Tensor, *, iterations: int = 3) -> Tensor:
    """Balance exp(logits) over the prototypes; every row then sums to 1 (ProtoCPC Eq. 11, 12; SwAV).

    Computed on logarithms, which no logits can overflow and no column can underflow. Shifting each row by its
    own maximum instead would change the result after few iterations.

    Args:
        logits: [B, K], already divided by the temperature.
        iterations: passes over prototypes (columns), then samples (rows).

    Returns:
        Probabilities [B, K].
    """
    with no_autocast(logits):
        log_plan = at_least_float32(logits)
        for _ in range(iterations):
            log_plan = log_plan - log_plan.logsumexp(dim=0, keepdim=True)
            log_plan = log_plan - log_plan.logsumexp(dim=1, keepdim=True)
        return log_plan.exp() if iterations else F.softmax(log_plan, dim=1)


def update_prior(prior: Tensor, teacher_probabilities: Tensor, *, momentum: float) -> Tensor:
    """Average the prior: m * prior + (1 - m) * K * mean(p_t); Lee 2022, Eq. 10, times K as in Algorithm 1.

    Args:
        prior: [K], sums to K.
        teacher_probabilities: p_t, [B, K].
        momentum: m.

    Returns:
        The new prior [K], which sums to K.
    """
    mean = at_least_float32(teacher_probabilities).mean(dim=0)
    return momentum * prior + (1.0 - momentum) * mean.shape[0] * mean


def proto_cpc_loss(student_logits: Tensor, teacher_probabilities: Tensor, prior: Tensor) -> Tensor:
    """-sum_k p_t z_s + logsumexp(z_s + log prior), mean over the batch.

    Lee 2022, Eq. 7 and Algorithm 1. The prior sums to K, not to 1, which adds log K to Eq. 7's value and
    nothing to its gradient.

    Args:
        student_logits: z_s, [B, K], already divided by the student's temperature.
        teacher_probabilities: p_t, [B, K].
        prior: [K].

    Returns:
        A scalar.
    """
    with no_autocast(student_logits):
        logits = at_least_float32(student_logits)
        # A prototype that no sample chose has an entry that underflowed to 0; its logarithm must stay finite.
        log_prior = at_least_float32(prior).clamp_min(torch.finfo(prior.dtype).tiny).log()
        align = -(at_least_float32(teacher_probabilities) * logits).sum(dim=1)
        uniform = (logits + log_prior).logsumexp(dim=1)
        return (align + uniform).mean()


class ProtoCPC(Method):
    """Supervised compression: the classifiers' weights are the prototypes, the logits their scores.

    Both sides are divided by ``temperature``; ``scale_by_temperature`` multiplies the loss by its square (Eq.
    14), so that ``weight`` is the paper's beta. Sinkhorn-Knopp and the prior see the global batch. ``variant:
    paper`` updates the prior before the loss (Algorithm 1), ``code`` after it (the public code). The paper
    gives no number of iterations for the supervised case; 3 is that of its self-supervised one.
    """

    name: ClassVar[str] = "protocpc"
    paper: ClassVar[str] = "Lee, Representation Distillation by Prototypical CPC, ICLR 2022"
    equation: ClassVar[str] = "T^2 (-sum_k p_t z_s / T + logsumexp(z_s / T + log prior)), p_t = SK(z_t / T)"

    weight: Weight = 1.75
    temperature: Temperature = 4.0
    assignment: Literal["sinkhorn", "softmax"] = "sinkhorn"
    sinkhorn_iterations: Annotated[int, Field(ge=1)] = 3
    prior_momentum: Momentum = 0.9
    scale_by_temperature: bool = True
    variant: Literal["paper", "code"] = "paper"

    def needs(self) -> Needs:
        """Logits on both sides."""
        logits = {0: frozenset({"logits"})}
        return Needs(student=logits, teacher=logits)

    def check(self, setting: Setting) -> None:
        """Both sides must score the same prototypes."""
        student, teacher = setting.student["logits"], setting.teacher["logits"]
        if student != teacher:
            raise ConfigError(
                f"methods.{self.name}: student and teacher must have equally many logits,"
                f" not {student[0]} and {teacher[0]}"
            )

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The prior, uniform at first."""
        from raydistill.methods.state import Value

        return nn.ModuleDict({"prior": Value(torch.ones(setting.student["logits"][0]))})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch; carries the prior of the next step."""
        logits = step.student[0]["logits"]
        everywhere = self._assign(gather_rows(step.teacher[0]["logits"]))
        old = parts["prior"].value
        new = update_prior(old, everywhere, momentum=self.prior_momentum)
        scaled = at_least_float32(logits) / self.temperature
        total = proto_cpc_loss(scaled, own_rows(everywhere), new if self.variant == "paper" else old)
        if self.scale_by_temperature:
            total = total * self.temperature**2
        return Loss(total, carry={"prior": new})

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Keep the prior; every rank computed the same."""
        parts["prior"].set(carry["prior"])

    def _assign(self, logits: Tensor) -> Tensor:
        scaled = at_least_float32(logits) / self.temperature
        if self.assignment == "softmax":
            return F.softmax(scaled, dim=1)
        return sinkhorn_knopp(scaled, iterations=self.sinkhorn_iterations)
