"""CRD: contrastive representation distillation against two memory banks of the whole training set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raydistill.errors import ConfigError
from raydistill.lazy import Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Momentum, Needs, Setting, Step, Temperature, Weight
from raydistill.methods.collectives import gather_rows, mean_over_ranks
from raydistill.methods.contrast import unit
from raydistill.methods.precision import at_least_float32, no_autocast

_EPSILON = 1e-7
# Reading B x K scattered rows is slow, so scores with the whole bank pay up to this ratio of its size to K.
_WHOLE_BANK_RATIO = 32


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
        embedding, bank = at_least_float32(embedding), at_least_float32(bank)
        if len(bank) <= _WHOLE_BANK_RATIO * index.shape[1]:
            similarity = (embedding @ bank.T).gather(1, index)
        else:
            similarity = torch.einsum("bd,bkd->bk", embedding, bank[index])
        return (similarity / temperature).exp()


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
        rejected = (noise / (negatives + noise + _EPSILON)).log().sum(dim=1)
        return -(kept + rejected).mean()


class CRD(Method):
    """Student and teacher tell an image's pair of embeddings from pairs with other images, both ways.

    A bank for each side, M x ``dimension``, holds what was last seen of each sample (``momentum``); negatives
    come from the other side's bank. ``exclude: class`` draws no negatives of the sample's own class and needs
    labels, ``instance`` only leaves out the sample itself (Table 6).

    ``variant: code`` divides scores by a constant Z = M * mean score of the first batch, one for each side,
    as the public code does; ``paper`` is Eq. 19 as printed, h = e^{s/T} / (e^{s/T} + N/M). The paper never
    mentions Z, yet ``code`` is the default: without Z even unrelated pairs have h near 1 / (1 + N/M), so the
    sum over 16384 negatives outweighs the positive several thousand times, and the paper's numbers with
    weight 0.8 were made with Z. ``temperature`` is the paper's 0.1 for CIFAR-100; it uses 0.07 for ImageNet,
    the public script everywhere.

    A step's samples must be all different. Draws depend on (seed, epoch, sample) only, not on the batch.
    """

    name: ClassVar[str] = "crd"
    paper: ClassVar[str] = "Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699"
    equation: ClassVar[str] = "-log h(t_i, s_i) - sum_j log(1 - h(t_j, s_i)) + the same with s, t swapped"

    weight: Weight = 0.8
    temperature: Temperature = 0.1
    negatives: Annotated[int, Field(ge=1)] = 16384
    momentum: Momentum = 0.5
    dimension: Annotated[int, Field(ge=1)] = 128
    exclude: Literal["instance", "class"] = "class"
    variant: Literal["paper", "code"] = "code"

    def needs(self) -> Needs:
        """Embeddings on both sides and the samples' positions."""
        embedding = {0: frozenset({"embedding"})}
        return Needs(student=embedding, teacher=embedding, columns=frozenset({"index"}))

    def check(self, setting: Setting) -> None:
        """There must be enough samples to draw the negatives from."""
        if self.exclude == "class" and setting.labels is None:
            raise ConfigError(f"methods.{self.name}.exclude: 'class' needs labels; use 'instance'")
        groups = self._groups(setting)
        own = 1 if groups is None else int(torch.bincount(groups).max())
        most = setting.num_samples - own
        if self.negatives > most:
            raise ConfigError(
                f"methods.{self.name}.negatives: {self.negatives} is too many; with exclude"
                f" '{self.exclude}' the {setting.num_samples} samples allow at most {most}"
            )

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """Linear embeddings of both sides, both trained; the two banks, the two constants Z, the sampler."""
        from raydistill.methods.negatives import NegativeSampler
        from raydistill.methods.state import MemoryBank, Value, seeded

        size, seed = setting.num_samples, setting.seed
        with seeded(seed):
            student = nn.Linear(setting.student["embedding"][0], self.dimension)
            teacher = nn.Linear(setting.teacher["embedding"][0], self.dimension)
        return nn.ModuleDict(
            {
                "student": student,
                "teacher": teacher,
                "student_bank": MemoryBank(size, self.dimension, seed),
                "teacher_bank": MemoryBank(size, self.dimension, seed + 1),
                "normaliser": Value(torch.zeros(2)),
                "sampler": NegativeSampler(size, self._groups(setting), self.negatives, seed),
            }
        )

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum of both directions; carries the embeddings for the banks and Z."""
        index = step.columns["index"]
        student = unit(parts["student"](step.student[0]["embedding"]))
        teacher = unit(parts["teacher"](step.teacher[0]["embedding"]))
        chosen = torch.cat([index[:, None], parts["sampler"](index, step.epoch)], dim=1)
        size = len(parts["student_bank"].rows)
        scores = [
            crd_scores(student, parts["teacher_bank"].rows, chosen, temperature=self.temperature),
            crd_scores(teacher, parts["student_bank"].rows, chosen, temperature=self.temperature),
        ]
        normaliser = self._normaliser(scores, parts["normaliser"].value, size)
        sides = [
            crd_nce_loss(score / constant, bank_size=size) for score, constant in zip(scores, normaliser, strict=True)
        ]
        carry = {
            "index": index,
            "student": student.detach(),
            "teacher": teacher.detach(),
            "normaliser": normaliser,
        }
        return Loss(sides[0] + sides[1], terms={"student": sides[0], "teacher": sides[1]}, carry=carry)

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Move the banks' rows of the global batch; keep Z from the first batch on."""
        index = gather_rows(carry["index"])
        parts["student_bank"].update(index, gather_rows(carry["student"]), self.momentum)
        parts["teacher_bank"].update(index, gather_rows(carry["teacher"]), self.momentum)
        parts["normaliser"].set(carry["normaliser"])

    def _groups(self, setting: Setting) -> Tensor | None:
        return setting.labels if self.exclude == "class" else None

    def _normaliser(self, scores: list[Tensor], known: Tensor, size: int) -> Tensor:
        """Z of both sides [2]: the known one, or in the first step the mean over the global batch times M."""
        if self.variant == "paper":
            return torch.ones_like(known)
        here = torch.stack([score.detach().mean() for score in scores]) * size
        # Whether Z is known is not asked on the host, which would make every step wait for the accelerator.
        return torch.where(known > 0, known, mean_over_ranks(here).to(known))
