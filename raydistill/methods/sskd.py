"""SSKD: beside its logits, the teacher passes on how it matches turned images with the upright ones."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Draw, Loss, Method, Needs, SearchSpace, Setting, Stage, Step, Temperature, Weight
from raydistill.methods.collectives import gather_rows, gather_with_grad
from raydistill.methods.contrast import unit
from raydistill.methods.kd import kd_loss
from raydistill.methods.logits import check_equal_classes, logits_of_student, logits_of_teachers
from raydistill.methods.precision import at_least_float32, no_autocast

Share = Annotated[float, Field(ge=0.0, le=1.0)]
UPRIGHT, TURNED = 0, (1, 2, 3)


def selective_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float, keep: float
) -> Tensor:
    """T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), mean over the rows in which the teacher can be trusted.

    Xu et al. 2020, https://arxiv.org/abs/2006.07114, section 3.3: all rows that the teacher gets right, and of the
    others the share ``keep`` in which the right answer ranks highest, rounded down; of equal ranks the first rows.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        labels: int64 [B], the right answers.
        temperature: T.
        keep: 0 to 1.

    Returns:
        A scalar; 0 where no row is left.
    """
    with no_autocast(student_logits):
        student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits)
        log_student, log_teacher = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
        kept = _kept(teacher, labels, keep).to(divergence)
        return temperature**2 * (divergence * kept).sum() / kept.sum().clamp_min(1.0)


def _kept(scores: Tensor, labels: Tensor, keep: float) -> Tensor:
    """Which rows of [B, C] are right or among the least wrong: bool [B]."""
    rank = (scores > scores.gather(1, labels[:, None])).sum(dim=1)
    wrong = (rank > 0).sum()
    # A mask, not a slice: to learn how many rows are left would make every step wait for the accelerator.
    count = len(rank) - wrong + (wrong * keep).long()
    order = rank.argsort(stable=True)
    return torch.empty_like(rank).scatter_(0, order, torch.arange(len(rank), device=rank.device)) < count


def turned_similarities(heads: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of every turned image with every upright one, and which upright one is the right one.

    Args:
        heads: what the head makes of views 0 to 3, [B, 4, D].

    Returns:
        [3 B, B], all turns of an image in a row; int64 [3 B].
    """
    with no_autocast(heads):
        rows = unit(heads)
        similarities = rows[:, 1:].flatten(0, 1) @ rows[:, 0].T
        return similarities, torch.arange(len(rows), device=rows.device).repeat_interleave(len(TURNED))


class SSKD(Method):
    """Distillation of logits on upright and on turned images, and of a self-supervised head's similarities.

    View 0 is as the experiment draws it; views 1, 2 and 3 are the same pixels turned by 90, 180 and 270 degrees, so
    the teacher must be live. A head on each side (Linear-ReLU-Linear, as wide as the embedding) compares turned
    images with the upright ones of the global batch. The teacher's is trained before distillation, on finding the
    upright image of each turned one among the batch (softmax over cosines, temperature 1, the teacher itself
    frozen), for ``pretrain_epochs`` epochs; the student's is trained in distillation.

    ``keep_turned`` and ``keep_similarities``: of the rows that the teacher gets wrong, the share that is distilled
    all the same (see ``selective_kd_loss``). All values are those of the authors' code. Cross-entropy, to which it
    gives the weight 0.1, is a method of its own. Two departures: the head's learning rate stays constant, where the
    authors' falls twice, and the student sees each view as a batch of its own, where they join all four, which
    matters to batch-norm statistics only.
    """

    name: ClassVar[str] = "sskd"
    paper: ClassVar[str] = "Xu et al., ECCV 2020, https://arxiv.org/abs/2006.07114"
    equation: ClassVar[str] = "w_kd KD(x) + w_t KD(turned x) + w_ss t^2 KL(softmax(A_t / t) || softmax(A_s / t))"
    search_space: ClassVar[SearchSpace] = {
        "turned_weight": {"loguniform": [1.0, 8.0]},
        "similarity_weight": {"loguniform": [3.0, 30.0]},
        "temperature": {"loguniform": [1.0, 10.0]},
        "similarity_temperature": {"loguniform": [0.15, 1.5]},
    }
    search_source: ClassVar[str] = "Around the published values."

    kd_weight: Weight = 0.9
    turned_weight: Weight = 2.7
    similarity_weight: Weight = 10.0
    temperature: Temperature = 4.0
    similarity_temperature: Temperature = 0.5
    keep_turned: Share = 1.0
    keep_similarities: Share = 0.75
    standardise: bool = False
    pretrain_epochs: Annotated[int, Field(ge=1)] = 60
    pretrain_lr: Annotated[float, Field(gt=0.0)] | None = 0.05

    def needs(self) -> Needs:
        """Logits and embeddings of the four views on both sides, and labels."""
        outputs = dict.fromkeys((UPRIGHT, *TURNED), frozenset({"logits", "embedding"}))
        return Needs(student=outputs, teacher=outputs, columns=frozenset({"label"}), draws=_turns())

    def check(self, setting: Setting) -> None:
        """Both sides must have the same classes."""
        check_equal_classes(self.name, setting)

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """A head for each side; the teacher's takes no gradients in distillation."""
        from raydistill.methods.state import seeded

        with seeded(setting.seed):
            student, teacher = (_head(shapes["embedding"][0]) for shapes in (setting.student, setting.teacher))
        return nn.ModuleDict({"student": student, "teacher": teacher.requires_grad_(False)})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Weighted sum of the three; those on turned images see the global batch, from which they select."""
        student, teacher = self._logits(step, UPRIGHT)
        upright = kd_loss(student, teacher, temperature=self.temperature)
        turned = [self._logits(step, view) for view in TURNED]
        labels = gather_rows(step.columns["label"]).repeat_interleave(len(TURNED))
        transformed = selective_kd_loss(
            gather_with_grad(torch.stack([student for student, _ in turned], dim=1)).flatten(0, 1),
            gather_rows(torch.stack([teacher for _, teacher in turned], dim=1)).flatten(0, 1),
            labels,
            temperature=self.temperature,
            keep=self.keep_turned,
        )
        wanted, right = turned_similarities(gather_rows(_heads(parts["teacher"], step.teacher)))
        similarity = selective_kd_loss(
            turned_similarities(gather_with_grad(_heads(parts["student"], step.student)))[0],
            wanted,
            right,
            temperature=self.similarity_temperature,
            keep=self.keep_similarities,
        )
        total = self.kd_weight * upright + self.turned_weight * transformed + self.similarity_weight * similarity
        return Loss(total, terms={"kd": upright, "turned": transformed, "similarity": similarity})

    def pretraining(self, parts: Any, student: nn.Module) -> Stage:
        """Train the teacher's head to find the upright image of each turned one."""

        def loss(step: Step) -> Loss:
            heads = _heads(parts["teacher"], step.teacher)
            similarities, right = turned_similarities(gather_with_grad(heads))
            with no_autocast(similarities):
                return Loss(F.cross_entropy(similarities, right))

        embeddings = dict.fromkeys((UPRIGHT, *TURNED), frozenset({"embedding"}))
        return Stage(
            epochs=self.pretrain_epochs,
            trains=(parts["teacher"],),
            loss=loss,
            needs=Needs(teacher=embeddings, draws=_turns()),
            lr=self.pretrain_lr,
        )

    def _logits(self, step: Step, view: int) -> tuple[Tensor, Tensor]:
        student = logits_of_student(step, standardise=self.standardise, view=view)
        return student, logits_of_teachers(step, standardise=self.standardise, view=view)[0]


def _turns() -> dict[int, Draw]:
    return {turns: Draw(of=UPRIGHT, turns=turns) for turns in TURNED}


def _heads(head: nn.Module, outputs: Any) -> Tensor:
    """What a head makes of the embeddings of the four views: [B, 4, D]."""
    return torch.stack([head(outputs[view]["embedding"]) for view in (UPRIGHT, *TURNED)], dim=1)


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
