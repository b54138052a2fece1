"""CRD: contrastive representation distillation against two memory banks of the whole training set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.banks import BANK_SPACE, BankContrast, sampled_similarity
from raydistill.methods.base import Loss, Method, SearchSpace, Setting, Step, Weight
from raydistill.methods.collectives import gather_equal, global_rows
from raydistill.methods.precision import at_least_float32, no_autocast

_EPSILON = 1e-7


def crd_scores(embedding: Tensor, bank: Tensor, index: Tensor, *, temperature: float) -> Tensor:
    """exp(<embedding, bank[index]> / T), the scores of each sample with its own choice of rows.

    Tian et al. 2020, https://arxiv.org/abs/1910.10699, the numerator of Eq. 19.

    Args:
        embedding: unit rows [B, D].
        bank: [M, D].
        index: int64 [B, K + 1], the positive in column 0.
        temperature: T.

    Returns:
        [B, K + 1].
    """
    with no_autocast(embedding):
        return (sampled_similarity(embedding, bank, index) / temperature).exp()


def crd_nce_loss(scores: Tensor, *, bank_size: int) -> Tensor:
    """-(log h_0 + sum_j log(1 - h_j)), h = P / (P + K / M), summed over negatives, mean over the batch.

    Tian et al. 2020, Eq. 18 and 19; the 1e-7 inside both logarithms is the public code's.

    Args:
        scores: P, [B, K + 1], already divided by Z, the positive in column 0.
        bank_size: M.

    Returns:
        A scalar.
    """
    with no_autocast(scores):
        scores = at_least_float32(scores)
        noise = (scores.shape[1] - 1) / bank_size
        positive, negatives = scores[:, 0], scores[:, 1:]
        kept = (positive / (positive + noise + _EPSILON)).log()
        # log(noise / (P + noise)), of which float32 would keep little for the many P that are far below the noise.
        rejected = -((negatives + _EPSILON) / noise).log1p().sum(dim=1)
        return -(kept + rejected).mean()


class BankNCE(BankContrast):
    """``crd_nce_loss`` between each side and the other's bank, on logarithms. Inherit in front of ``Method``."""

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """Linear embeddings of both sides, both trained; the two banks, log Z of both sides, the sampler."""
        from raydistill.methods.state import Value

        parts = super().parts(setting)
        parts["log_normaliser"] = Value(torch.full((2,), -torch.inf))
        return parts

    def contrast(self, step: Step, parts: Any, *, normalised: bool) -> Loss:
        """Sum of both directions, of scores divided by Z where ``normalised``; carries embeddings and log Z."""
        compared = self.compare(step, parts)
        size = len(parts["student_bank"].rows)
        with no_autocast(compared.student):
            scores = [side / self.temperature for side in (compared.student, compared.teacher)]
            log_normaliser = parts["log_normaliser"].value
            log_normaliser = (
                _known_or_first(log_normaliser, scores, size) if normalised else torch.zeros_like(log_normaliser)
            )
            student, teacher = (
                _nce_of_logarithms(score, constant, size)
                for score, constant in zip(scores, log_normaliser, strict=True)
            )
        return Loss(
            student + teacher,
            terms={"student": student, "teacher": teacher},
            carry={**compared.carry, "log_normaliser": log_normaliser},
        )

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Move the banks' rows of the global batch; keep Z from the first batch on."""
        super().after_step(parts, student, carry)
        parts["log_normaliser"].set(carry["log_normaliser"])


def _known_or_first(known: Tensor, scores: list[Tensor], bank_size: int) -> Tensor:
    """Log Z of both sides [2]: the known one, or in the first step of M times the global batch's mean e^score."""
    sums = gather_equal(torch.stack([score.detach().logsumexp(dim=(0, 1)) for score in scores])[None])
    rows, each = scores[0].shape
    count = global_rows(rows) * each
    here = sums.logsumexp(dim=0) + math.log(bank_size / count)
    # Whether Z is known is not asked on the host, which would make every step wait for the accelerator.
    return torch.where(known.isfinite(), known, here.to(known))


def _nce_of_logarithms(log_scores: Tensor, log_normaliser: Tensor, bank_size: int) -> Tensor:
    """``crd_nce_loss`` of e^(log_scores - log_normaliser) [B, K + 1], which may be beyond any number.

    -log h and -log(1 - h) are softplus(-a) and softplus(a) of the log odds a, and softplus(-a) = softplus(a) - a: one
    sum over all columns, of which the positive's is corrected, takes fewer passes than treating them apart.
    """
    count = log_scores.shape[1] - 1
    noise = count / bank_size
    log_odds = log_scores - (log_normaliser + math.log(noise + _EPSILON))
    per_sample = F.softplus(log_odds).sum(dim=1) - log_odds[:, 0]
    return per_sample.mean() + count * math.log1p(_EPSILON / noise)


class CRD(BankNCE, Method):
    """Student and teacher tell an image's pair of embeddings from pairs with other images, both ways.

    A bank for each side, M x ``dimension``, holds what was last seen of each sample (``momentum``); negatives
    come from the other side's bank. ``exclude: class`` draws no negatives of the sample's own class and needs
    labels, ``instance`` only leaves out the sample itself (Table 6).

    ``variant: code`` divides scores by a constant Z = M * mean score of the first batch, one for each side,
    as the code that the paper names does; ``paper`` is Eq. 19 as printed, h = e^{s/T} / (e^{s/T} + N/M). The
    paper never mentions Z, yet ``code`` is the default, since only it fits what the paper reports: that weights
    of 0.5 to 1.5 work (section 6.4) and that 16384 negatives are better than fewer (Figure 5a). Without Z even
    unrelated pairs have h near 1 / (1 + N/M), so the sum over 16384 negatives outweighs the positive several
    thousand times, and at weight 0.8 a student loses what it knows. ``temperature`` is the paper's 0.1 for
    CIFAR-100; it uses 0.07 for ImageNet, the public script everywhere.

    A step's samples must be all different. Draws depend on (seed, epoch, sample) only, not on the batch.
    """

    name: ClassVar[str] = "crd"
    paper: ClassVar[str] = "Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699"
    equation: ClassVar[str] = "-log h(t_i, s_i) - sum_j log(1 - h(t_j, s_i)) + the same with s, t swapped"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"uniform": [0.5, 1.5]},
        **BANK_SPACE,
    }
    search_source: ClassVar[str] = (
        "Figure 5 for temperature and negatives, section 6.4 for the weight. Left out are 16384 negatives: they "
        "need 18205 images or more of ten classes, and are within 0.1 % of 4096."
    )

    weight: Weight = 0.8
    variant: Literal["paper", "code"] = "code"

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum of both directions; carries the embeddings for the banks and Z."""
        return self.contrast(step, parts, normalised=self.variant == "code")
