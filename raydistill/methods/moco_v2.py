"""MoCo v2: contrast of two views of an image with a queue of keys from an averaged copy of the student."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import Tensor, nn
from raydistill.methods.base import Draw, Loss, Method, Momentum, Needs, SearchSpace, Setting, Step, Temperature
from raydistill.methods.collectives import gather_rows
from raydistill.methods.contrast import info_nce_loss, unit
from raydistill.methods.crops import AreaRange

Width = Annotated[int, Field(ge=1)]
QUERY_VIEW, KEY_VIEW = 0, 1


class MoCoV2(Method):
    """Self-supervised: view 0 gives the query, view 1 its key, the queue the keys of earlier batches.

    The copy follows after a step, the public code's "before each forward"; keys enter the queue after the loss.
    So that batch statistics do not tell which key belongs to a query, keys are computed in groups of about
    ``key_group`` images that lie apart in the batch; the paper's shuffling between GPUs, 32 images on each, does
    the same. ``hidden`` is the width of ResNet-50's embedding, which the public code takes from the network.
    """

    name: ClassVar[str] = "moco_v2"
    paper: ClassVar[str] = "He et al., CVPR 2020; Chen et al., 2020, https://arxiv.org/abs/2003.04297"
    equation: ClassVar[str] = "-log(e^{q.k/T} / (e^{q.k/T} + sum_j e^{q.n_j/T}))"
    search_space: ClassVar[SearchSpace] = {
        "temperature": {"loguniform": [0.07, 0.5]},
        "momentum": {"choice": [0.9, 0.99, 0.999, 0.9999]},
        "queue": {"choice": [256, 1024, 4096, 16384, 65536]},
    }
    search_source: ClassVar[str] = "Around the published values, down to queues for smaller sets."

    temperature: Temperature = 0.2
    queue: Width = 65536
    momentum: Momentum = 0.999
    hidden: Width = 2048
    dimension: Width = 128
    key_group: Annotated[int, Field(ge=2)] = 32
    scale: AreaRange = (0.2, 1.0)

    def needs(self) -> Needs:
        """The student's embedding of view 0, the images of view 1."""
        return Needs(
            student={QUERY_VIEW: frozenset({"embedding"})},
            images=frozenset({KEY_VIEW}),
            draws={view: Draw(scale=self.scale) for view in (QUERY_VIEW, KEY_VIEW)},
        )

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The head, which is trained; the averaged encoder of keys and the queue."""
        from raydistill.methods.averaged import AveragedEncoder
        from raydistill.methods.heads import mlp
        from raydistill.methods.state import KeyQueue, seeded

        with seeded(setting.seed):
            head = mlp(setting.student["embedding"][0], self.hidden, self.dimension, layers=2, batch_norm=False)
        return nn.ModuleDict(
            {
                "head": head,
                "key_encoder": AveragedEncoder(setting.student_network, head),
                "queue": KeyQueue(self.queue, self.dimension, setting.seed),
            }
        )

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch; carries the keys."""
        query = parts["head"](step.student[QUERY_VIEW]["embedding"])
        key = self._keys(step.views[KEY_VIEW], parts)
        total = info_nce_loss(query, key, parts["queue"].keys, temperature=self.temperature)
        return Loss(total, carry={"key": key})

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Enqueue the global batch's keys and move the copy."""
        parts["queue"].enqueue(gather_rows(carry["key"]))
        parts["key_encoder"].follow(student, parts["head"], self.momentum)

    def _keys(self, images: Tensor, parts: Any) -> Tensor:
        """Unit rows [B, dimension] without a gradient."""
        groups = math.ceil(len(images) / self.key_group)
        encoded = [unit(parts["key_encoder"]([images[first::groups]])) for first in range(groups)]
        keys = encoded[0].new_empty(len(images), self.dimension)
        for first, rows in enumerate(encoded):
            keys[first::groups] = rows
        return keys
