"""SwAV: crops of an image predict the balanced assignment of its large crops to prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step, Temperature
from raydistill.methods.collectives import gather_rows, own_rows
from raydistill.methods.contrast import unit
from raydistill.methods.crops import GLOBAL_CROPS, AreaRange, MultiCrop, over_other_views, soft_cross_entropy
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.prototypes import assignment_entropy, sinkhorn_knopp

Width = Annotated[int, Field(ge=1)]


def swav_loss(scores: Tensor, codes: Tensor, *, temperature: float, crops: int) -> Tensor:
    """-sum_k q_k log softmax(z / T)_k, mean over the batch and all pairs of two crops.

    Caron et al. 2020, https://arxiv.org/abs/2006.09882, Eq. 2, with multi-crop as in their section 3.3.

    Args:
        scores: z, cosines of crops and prototypes, [crops * B, K], crop by crop, those that have codes first.
        codes: q, [views * B, K], rows sum to 1; usually of the two large crops.
        temperature: T.
        crops: number of crops.

    Returns:
        A scalar.
    """
    with no_autocast(scores):
        scaled = at_least_float32(scores) / temperature
        return over_other_views(soft_cross_entropy, scaled, at_least_float32(codes).detach(), crops=crops)


class SwAV(MultiCrop, Method):
    """Self-supervised: the code of one large crop is predicted from all other crops of the image.

    Codes are Sinkhorn-Knopp of scores / ``epsilon`` over the global batch, for each large crop by itself. With
    small batches a ``queue`` of earlier embeddings, one for each large crop, balances with them from epoch
    ``queue_from`` on (counted from 0); it is filled before. The prototypes are brought back to length 1 after each
    step, and do not move in the first ``freeze_prototypes`` epochs, 313 iterations in the public code.

    The term ``entropy`` says how evenly images choose their nearest prototype: near 0 they all choose one.
    """

    name: ClassVar[str] = "swav"
    paper: ClassVar[str] = "Caron et al., NeurIPS 2020, https://arxiv.org/abs/2006.09882"
    equation: ClassVar[str] = "-sum_k q_k log softmax(z / T)_k, q = SK(z / epsilon), over pairs of two crops"
    search_space: ClassVar[SearchSpace] = {
        "temperature": {"loguniform": [0.05, 0.3]},
        "epsilon": {"loguniform": [0.02, 0.1]},
        "prototypes": {"choice": [300, 1000, 3000, 10000]},
    }
    search_source: ClassVar[str] = "Around the published values, down to as many prototypes as smaller sets can fill."

    global_scale: AreaRange = (0.14, 1.0)
    local_scale: AreaRange = (0.05, 0.14)
    prototypes: Annotated[int, Field(ge=2)] = 3000
    hidden: Width = 2048
    dimension: Width = 128
    temperature: Temperature = 0.1
    epsilon: Temperature = 0.05
    sinkhorn_iterations: Width = 3
    freeze_prototypes: Annotated[int, Field(ge=0)] = 1
    queue: Annotated[int, Field(ge=0)] = 0
    queue_from: Annotated[int, Field(ge=0)] = 15

    def needs(self) -> Needs:
        """The student's embedding of all crops."""
        return Needs(
            student={view: frozenset({"embedding"}) for view in range(self.crops)},
            draws=self.global_draws() | self.local_draws(),
        )

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """Head and prototypes, both trained; a queue for each large crop."""
        from raydistill.methods.heads import Prototypes, mlp
        from raydistill.methods.state import KeyQueue, seeded

        with seeded(setting.seed):
            head = mlp(setting.student["embedding"][0], self.hidden, self.dimension, layers=2, batch_norm=True)
            prototypes = Prototypes(self.dimension, self.prototypes)
        queues = [KeyQueue(self.queue, self.dimension, setting.seed + view) for view in range(GLOBAL_CROPS)]
        return nn.ModuleDict(
            {"head": head, "prototypes": prototypes, "queues": nn.ModuleList(queues if self.queue else [])}
        )

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch and the pairs of crops; carries the embeddings of the large crops."""
        rows = unit(parts["head"](torch.cat([step.student[view]["embedding"] for view in range(self.crops)])))
        scores = parts["prototypes"](rows, trained=step.epoch >= self.freeze_prototypes)
        by_crop = scores.detach().chunk(self.crops)
        queued = self._queued_scores(step, parts)
        codes = torch.cat([self._codes(by_crop[view], queued[view]) for view in range(GLOBAL_CROPS)])
        total = swav_loss(scores, codes, temperature=self.temperature, crops=self.crops)
        return Loss(
            total,
            terms={"entropy": assignment_entropy(by_crop[0])},
            carry={"rows": torch.stack(rows.detach().chunk(self.crops)[:GLOBAL_CROPS])},
        )

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Normalise the prototypes; enqueue the global batch's embeddings."""
        parts["prototypes"].normalise()
        for queue, rows in zip(parts["queues"], carry["rows"], strict=False):
            queue.enqueue(gather_rows(rows))

    def _queued_scores(self, step: Step, parts: Any) -> list[Tensor]:
        """Scores of the queue of each large crop [queue, K], none where it is not used."""
        weight = parts["prototypes"].weight.detach()
        if not self.queue or step.epoch < self.queue_from:
            return [weight.new_empty(0, len(weight))] * GLOBAL_CROPS
        return [parts["prototypes"](queue.keys).detach() for queue in parts["queues"]]

    def _codes(self, scores: Tensor, queued: Tensor) -> Tensor:
        """Codes [B, K] of this rank's images, balanced with those of all ranks and the queue."""
        everywhere = gather_rows(scores)
        balanced = sinkhorn_knopp(torch.cat([everywhere, queued]) / self.epsilon, iterations=self.sinkhorn_iterations)
        return own_rows(balanced[: len(everywhere)])
