"""ProtoCPC: contrastive prediction of the teacher's prototypes, with a prior in place of the negatives."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Momentum, Needs, SearchSpace, Setting, Step, Temperature, Weight
from raydistill.methods.collectives import gather_rows, own_rows
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.protocpc_modes import DEFAULTS, MODES, ONLY_FOR
from raydistill.methods.prototypes import sinkhorn_knopp
from raydistill.methods.self_distillation import SelfDistillation


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


class ProtoCPC(SelfDistillation, Method):
    """The student predicts which prototypes the teacher assigns an image to. The paper's three uses are modes.

    ``supervised``: compression of a classifier. The classifiers' weights are the prototypes, the logits their
    scores, both divided by ``temperature``; ``scale_by_temperature`` multiplies the loss by its square (Eq. 14),
    so that ``weight`` is the paper's beta.

    ``compress``: compression of any teacher without labels (Eq. 15). A head (``layers``, ``hidden``,
    ``batch_norm``: the paper takes the teacher's head's shape, and adds batch-norm) maps the student's embedding to
    the teacher's width; both are L2-normalised and compared with unit ``prototypes``. The student's are trained;
    the teacher's are ``copied`` from them in each step, or ``pretrained`` ones from ``prototypes_file``, the tensor
    ``prototypes_tensor`` [prototypes, width] of a safetensors file, which suits SwAV (3000). ``local_crops`` small
    crops of the student alone, views 1 and up, are added with weight 1 each (Eq. 16); view 0 stays as the
    experiment draws it, so that a cache can hold the teacher's side. Small crops are not mixed with other images, so
    that mixup and CutMix need ``local_crops: 0``.

    ``self``: self-distillation without a teacher, which is ``dino`` with another loss (Eq. 17); crops, head and
    averaged teacher are described there. The paper does not say whether DINO's centring stays; ``centering`` keeps
    it, with softmax alone, since Sinkhorn-Knopp undoes any shift of a prototype's scores.

    The teacher's probabilities are Sinkhorn-Knopp of the scores of each view over the global batch, 3 iterations
    (the paper gives none for the supervised case), or a ``softmax``. The prior is updated once a step, by all views
    of the teacher: by ``variant: paper`` before the loss (Algorithm 1), by ``code`` after it (the public code).
    Defaults that differ by mode: ``weight`` 1.75, or 1 without labels; ``local_crops`` 0, or 6 in ``self``;
    ``layers`` 2, ``batch_norm`` in ``compress``.

    The term ``entropy`` says how evenly the student's images choose their nearest prototype: near 0 all choose one.
    """

    name: ClassVar[str] = "protocpc"
    paper: ClassVar[str] = "Lee, Representation Distillation by Prototypical CPC, ICLR 2022"
    equation: ClassVar[str] = "-sum_k p_t z_s / T_s + logsumexp(z_s / T_s + log prior), p_t = SK(z_t / T_t)"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"loguniform": [0.5, 5.0]},
        "assignment": {"choice": ["sinkhorn", "softmax"]},
        "prior_momentum": {"choice": [0.0, 0.9, 0.99]},
    }
    search_source: ClassVar[str] = (
        "Table 7 for the prior's momentum, Table 8 for the assignment; around the published weights. No "
        "temperature is swept in the paper, and which of them counts depends on the mode."
    )

    mode: Literal["supervised", "compress", "self"] = "supervised"
    weight: Weight = 1.75
    temperature: Temperature = 4.0
    scale_by_temperature: bool = True
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = 0.04
    assignment: Literal["sinkhorn", "softmax"] = "sinkhorn"
    sinkhorn_iterations: Annotated[int, Field(ge=1)] = 3
    prior_momentum: Momentum = 0.9
    variant: Literal["paper", "code"] = "paper"
    teacher_prototypes: Literal["copied", "pretrained"] = "copied"
    prototypes_file: str | None = None
    prototypes_tensor: str | None = None
    centering: bool = False
    local_crops: Annotated[int, Field(ge=0)] = 0
    layers: Annotated[int, Field(ge=1)] = 2

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_mode(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {**DEFAULTS.get(str(values.get("mode")), {}), **values}

    @model_validator(mode="after")
    def _every_field_has_an_effect(self) -> ProtoCPC:
        fields = type(self).model_fields
        defaults = {name: field.default for name, field in fields.items()} | DEFAULTS[self.mode]
        for field, modes in ONLY_FOR.items():
            value = getattr(self, field)
            if self.mode not in modes and value != defaults[field]:
                wanted = " or ".join(modes)
                raise ValueError(f"{field} = {value}: has no effect with mode '{self.mode}', only with {wanted}")
        if self.teacher_prototypes == "pretrained" and not (self.prototypes_file and self.prototypes_tensor):
            raise ValueError("teacher_prototypes = pretrained: give prototypes_file and prototypes_tensor too")
        if self.teacher_prototypes == "copied" and (self.prototypes_file or self.prototypes_tensor):
            raise ValueError("prototypes_file, prototypes_tensor: are read with teacher_prototypes = pretrained only")
        if self.centering and self.assignment == "sinkhorn":
            raise ValueError("centering: has no effect with assignment 'sinkhorn'; use 'softmax' or leave it out")
        return self

    def needs(self) -> Needs:
        """What the mode compares: logits, embeddings, or embeddings of several crops."""
        return MODES[self.mode].needs(self)

    def needs_every_logit(self) -> str | None:
        """A softmax changes in its small probabilities only."""
        if self.assignment == "softmax":
            return None
        return "Sinkhorn-Knopp balances all classes over the batch, also those that are left out of an image's row"

    def check(self, setting: Setting) -> None:
        """Both sides must be comparable, and pretrained prototypes readable."""
        MODES[self.mode].check(self, setting)

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The prior, uniform at first, and what the mode trains and remembers."""
        from raydistill.methods.state import Value

        made = MODES[self.mode].parts(self, setting)
        count = MODES[self.mode].count(self, setting)
        return nn.ModuleDict(made | {"prior": Value(torch.ones(count))})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch; carries the prior of the next step."""
        mode = MODES[self.mode]
        scores = mode.scores(self, step, parts)
        student_temperature, teacher_temperature = mode.temperatures(self)
        everywhere = [self._assign(gather_rows(view), teacher_temperature) for view in scores.teacher]
        old = parts["prior"].value
        new = update_prior(old, torch.cat(everywhere), momentum=self.prior_momentum)
        total = mode.combine(
            self,
            partial(proto_cpc_loss, prior=new if self.variant == "paper" else old),
            [at_least_float32(crop) / student_temperature for crop in scores.student],
            [own_rows(probabilities) for probabilities in everywhere],
        )
        return Loss(total, terms=mode.terms(scores), carry={"prior": new, **scores.carry})

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Keep the prior, which every rank computed alike; then what the mode remembers."""
        parts["prior"].set(carry["prior"])
        MODES[self.mode].after_step(self, parts, student, carry)

    def _assign(self, scores: Tensor, temperature: float) -> Tensor:
        scaled = at_least_float32(scores) / temperature
        if self.assignment == "softmax":
            return F.softmax(scaled, dim=1)
        return sinkhorn_knopp(scaled, iterations=self.sinkhorn_iterations)
