"""CoCoRD: contrast with a queue of teacher keys and consistency with a slow-moving student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Momentum, Needs, SearchSpace, Setting, Step, Temperature, Weight
from raydistill.methods.collectives import gather_rows
from raydistill.methods.contrast import info_nce_loss, unit
from raydistill.methods.precision import no_autocast

Width = Annotated[int, Field(ge=1)]
STUDENT_VIEW, SLOW_VIEW, TEACHER_VIEW = 0, 1, 2


def prediction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos(prediction, target), the squared distance of unit vectors, mean over the batch.

    CoCoRD, Eq. 6; Grill et al. 2020, https://arxiv.org/abs/2006.07733, Eq. 2.

    Args:
        prediction: [B, D].
        target: [B, D].

    Returns:
        A scalar.
    """
    with no_autocast(prediction):
        return (2.0 - 2.0 * (unit(prediction) * unit(target)).sum(dim=1)).mean()


class CoCoRD(Method):
    """Contrast of the student with teacher keys plus prediction of a slow-moving copy of the student.

    Views, independent crops of one image: 0 the student's query, 1 the slow student's, 2 the teacher's; with
    ``symmetric`` views 0 and 1 also exchange roles in the prediction (the paper does so but on ImageNet). The
    teacher's projector starts as the student's and follows it with ``momentum_contrast`` where the embeddings
    are equally wide; otherwise it is random and stays so. Architecture and order follow the authors' code, as
    the paper leaves them open: projectors and predictor are Linear-BatchNorm-ReLU-Linear, queries and keys
    are L2-normalised.

    Copies follow after a step, which is the authors' "before each forward". Batch-norms of the heads use
    batch statistics only: a head is never used outside training, and so the loss changes no state.
    Cross-entropy, which the paper adds with weight 1, is a method of its own.
    """

    name: ClassVar[str] = "cocord"
    paper: ClassVar[str] = "Contrastive Consistent Representation Distillation, github.com/ShipengFu/CoCoRD"
    equation: ClassVar[str] = "w_c InfoNCE(f_s(x0), f_t(x2); queue) + w_p (|h(f_s(x0)) - f_r(x1)|^2 + swapped)"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"loguniform": [0.3, 3.0]},
        "predict_weight": {"loguniform": [1.0, 12.0]},
        "temperature": {"uniform": [0.07, 0.11]},
        "queue": {"choice": [128, 512, 2048, 8192, 32768]},
        "momentum_contrast": {"choice": [0.0, 0.9, 0.99, 0.999, 0.9999, 1.0]},
        "momentum_slow": {"choice": [0.0, 0.9, 0.99, 0.999, 0.9999, 1.0]},
    }
    search_source: ClassVar[str] = (
        "Figure 3a for the temperature, Table 6 for the momenta, both whole. Of Figure 3b the text gives 2048 "
        "keys, and that both few and very many are worse. Weights around those of Table 7."
    )

    weight: Weight = 1.0
    temperature: Temperature = 0.1
    contrast_weight: Weight = 1.0
    predict_weight: Weight = 4.0
    queue: Width = 2048
    hidden: Width = 2048
    dimension: Width = 2048
    predictor_hidden: Width = 512
    momentum_contrast: Momentum = 0.999
    momentum_slow: Momentum = 0.9
    symmetric: bool = True

    def needs(self) -> Needs:
        """Student embeddings of views 0 and 1, their images for the slow student, the teacher's view 2."""
        views = (STUDENT_VIEW, SLOW_VIEW) if self.symmetric else (STUDENT_VIEW,)
        embedding = frozenset({"embedding"})
        return Needs(
            student=dict.fromkeys(views, embedding),
            teacher={TEACHER_VIEW: embedding},
            images=frozenset({STUDENT_VIEW, SLOW_VIEW} if self.symmetric else {SLOW_VIEW}),
        )

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """Student projector and predictor, both trained; the copies and the queue."""
        from raydistill.methods.state import KeyQueue, frozen_copy, seeded, without_running_statistics

        student, teacher = setting.student["embedding"][0], setting.teacher["embedding"][0]
        with seeded(setting.seed):
            projector = mlp(student, self.hidden, self.dimension)
            predictor = mlp(self.dimension, self.predictor_hidden, self.dimension)
            other = mlp(teacher, self.hidden, self.dimension)
        for head in (projector, predictor):
            without_running_statistics(head)
        return nn.ModuleDict(
            {
                "projector": projector,
                "predictor": predictor,
                "slow_network": frozen_copy(setting.student_network),
                "slow_projector": frozen_copy(projector),
                "teacher_projector": frozen_copy(projector if student == teacher else other),
                "queue": KeyQueue(self.queue, self.dimension, setting.seed),
            }
        )

    def loss(self, step: Step, parts: Any) -> Loss:
        """Weighted sum of contrast and prediction; carries the teacher's keys."""
        trained = (STUDENT_VIEW, SLOW_VIEW) if self.symmetric else (STUDENT_VIEW,)
        queries = through(parts["projector"], [step.student[view]["embedding"] for view in trained])
        with torch.no_grad():
            key = unit(parts["teacher_projector"](step.teacher[TEACHER_VIEW]["embedding"]))
        keys = parts["queue"].keys
        contrast = info_nce_loss(queries[0], key, keys, temperature=self.temperature, unit_negatives=True)
        targets = self._slow(step, parts, (SLOW_VIEW, STUDENT_VIEW)[: len(trained)])
        predictions = through(parts["predictor"], queries)
        predict = sum(map(prediction_loss, predictions, targets), start=torch.zeros((), device=key.device))
        return Loss(
            self.contrast_weight * contrast + self.predict_weight * predict,
            terms={"contrast": contrast, "predict": predict},
            carry={"key": key},
        )

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Enqueue the global batch's keys and move the copies."""
        from raydistill.methods.state import move_average

        parts["queue"].enqueue(gather_rows(carry["key"]))
        move_average(parts["slow_network"], student, self.momentum_slow)
        move_average(parts["slow_projector"], parts["projector"], self.momentum_slow)
        if parts["teacher_projector"][0].in_features == parts["projector"][0].in_features:
            move_average(parts["teacher_projector"], parts["projector"], self.momentum_contrast)

    def _slow(self, step: Step, parts: Any, views: Sequence[int]) -> Sequence[Tensor]:
        """What the slow student makes of each view: [B, dimension] without a gradient."""
        with torch.no_grad():
            network = parts["slow_network"]
            embeddings = [network(step.views[view], outputs=("embedding",))["embedding"] for view in views]
            return through(parts["slow_projector"], embeddings)


def through(head: Iterable[nn.Module], views: Sequence[Tensor]) -> Sequence[Tensor]:
    """Apply a head to each view, [B, D] -> [B, outputs]: batch-norms to each alone, other layers to all rows at once.

    Heads are wide and batches are not, so that reading a layer's weights takes longer than what is done with them.
    """
    rows = torch.cat([*views])
    for layer in head:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            rows = torch.cat([layer(view) for view in rows.chunk(len(views))])
        else:
            rows = layer(rows)
    return rows.chunk(len(views))


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear-BatchNorm-ReLU-Linear."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )
