"""ONE: a student with several ends, whose gated ensemble teaches each of them."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.errors import ConfigError
from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step, Temperature, Weight
from raydistill.methods.kd import kd_loss
from raydistill.methods.precision import at_least_float32, no_autocast


def gated_logits(branch_logits: Tensor, gate: Tensor) -> Tensor:
    """Sum_i g_i z_i, the branches' logits weighed by the gate for each sample.

    Lan et al. 2018, https://arxiv.org/abs/1806.04606, section 3.

    Args:
        branch_logits: [M, B, C].
        gate: [B, M], rows sum to 1.

    Returns:
        [B, C].
    """
    return torch.einsum("mbc,bm->bc", branch_logits, gate)


def one_loss(branch_logits: Tensor, gate: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Sum_i CE(z_i) + CE(z_e) + T^2 sum_i KL(softmax(z_e / T) || softmax(z_i / T)), means over the batch.

    Lan et al. 2018, https://arxiv.org/abs/1806.04606. The ensemble z_e is a constant in the last term, as in the
    public code, so that it is taught by the labels alone.

    Args:
        branch_logits: z, [M, B, C].
        gate: [B, M], rows sum to 1.
        labels: int64 [B].
        temperature: T.

    Returns:
        A scalar.
    """
    branches, ensemble, divergence = _terms(branch_logits, gate, labels, temperature)
    return branches + ensemble + divergence


def _terms(branch_logits: Tensor, gate: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of the loss: all branches' cross entropy, the ensemble's, the divergence."""
    with no_autocast(branch_logits):
        branch_logits, gate = at_least_float32(branch_logits), at_least_float32(gate)
        ensemble = gated_logits(branch_logits, gate)
        branches = torch.stack([F.cross_entropy(logits, labels) for logits in branch_logits]).sum()
        taught = [kd_loss(logits, ensemble.detach(), temperature=temperature) for logits in branch_logits]
        return branches, F.cross_entropy(ensemble, labels), torch.stack(taught).sum()


class ONE(Method):
    """The student's stages from ``stage`` on and its classifier exist ``branches`` times; their ensemble teaches.

    Branch 0 is the student itself, which alone is kept after training; the others start with weights of their own.
    The stages below are shared. A gate weighs the branches for each image: average pool of the shared maps, linear,
    batch-norm, ReLU, softmax, as in the paper. There is no other teacher, and the loss contains the cross-entropy of
    the student (the term ``branches`` is the sum over all), so ``ce`` is not to be added.

    ``stage: 3`` is the last stage of ResNets, WRNs and ShuffleNets, as in the paper on CIFAR; of VGG and MobileNetV2 it
    is the last but one, take 4 for the last. Batch-norms of the gate and of branches 1, 2, ... use batch statistics
    only, since they are never used outside training. The public code lets the divergence grow with
    exp(-5 (1 - epoch / 80)^2) over the first 80 of 300 epochs: ``rampup: 80``; the paper's loss has no such factor.
    """

    name: ClassVar[str] = "one"
    paper: ClassVar[str] = "Lan et al., NeurIPS 2018, https://arxiv.org/abs/1806.04606"
    equation: ClassVar[str] = "sum_i CE(z_i) + CE(z_e) + T^2 sum_i KL(z_e / T || z_i / T), z_e = sum_i g_i z_i"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"loguniform": [0.3, 3.0]},
        "temperature": {"loguniform": [1.0, 10.0]},
        "branches": {"choice": [2, 3, 4, 5]},
    }
    search_source: ClassVar[str] = "Around the published values."

    weight: Weight = 1.0
    temperature: Temperature = 3.0
    branches: Annotated[int, Field(ge=2)] = 3
    stage: Annotated[int, Field(ge=1)] = 3
    rampup: Annotated[int, Field(ge=0)] = 0

    @property
    def _shared(self) -> str:
        """Name of the maps that all branches start from."""
        return f"features/{self.stage - 1}"

    def needs(self) -> Needs:
        """The student's logits, the maps below its last stage, and labels."""
        return Needs(student={0: frozenset({"logits", self._shared})}, columns=frozenset({"label"}))

    def check(self, setting: Setting) -> None:
        """The student must be made of stages, and ``stage`` be one of them."""
        if not hasattr(type(setting.student_network), "tail"):
            raise ConfigError(
                f"methods.{self.name}: the student is a network of another library, which cannot be split into"
                " shared stages and branches; take a student without 'torchvision/' or 'timm/'"
            )
        last = sum(name.startswith("features/") for name in setting.student) - 1
        if self.stage > last:
            raise ConfigError(
                f"methods.{self.name}.stage: {self.stage} is too high; the student's last stage is {last}"
            )

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """All branches but the student's own, and the gate."""
        from raydistill.methods.state import seeded, without_running_statistics

        network: Any = setting.student_network
        shape = setting.student[self._shared]
        with seeded(setting.seed):
            others = nn.ModuleList(network.tail(self.stage, shape) for _ in range(self.branches - 1))
            gate = nn.Sequential(nn.Linear(shape[0], self.branches), nn.BatchNorm1d(self.branches), nn.ReLU())
        parts = nn.ModuleDict({"branches": others, "gate": gate})
        without_running_statistics(parts)
        return parts

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum of the three terms."""
        shared, own = step.student[0][self._shared], step.student[0]["logits"]
        logits = torch.stack([at_least_float32(z) for z in (own, *(branch(shared) for branch in parts["branches"]))])
        scores = parts["gate"](shared.mean(dim=(2, 3)))
        with no_autocast(scores):
            gate = at_least_float32(scores).softmax(dim=1)
        branches, ensemble, divergence = _terms(logits, gate, step.columns["label"], self.temperature)
        total = branches + ensemble + self._share(step.epoch) * divergence
        return Loss(total, terms={"branches": branches, "ensemble": ensemble, "divergence": divergence})

    def _share(self, epoch: int) -> float:
        """Factor on the divergence."""
        missing = max(0.0, 1.0 - epoch / self.rampup) if self.rampup else 0.0
        return math.exp(-5.0 * missing**2)
