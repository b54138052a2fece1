"""What the three uses of ProtoCPC do not share: whose scores are compared, and which crops with which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.errors import ConfigError
from raydistill.lazy import Tensor, nn, torch
from raydistill.methods.base import Needs, Setting, Step
from raydistill.methods.contrast import unit
from raydistill.methods.crops import GLOBAL_CROPS, over_other_views
from raydistill.methods.logits import check_equal_classes
from raydistill.methods.prototypes import assignment_entropy
from raydistill.methods.self_distillation import move_center

if TYPE_CHECKING:
    from raydistill.methods.protocpc import ProtoCPC

_CENTER_MOMENTUM = 0.9

CropLoss = Callable[[Tensor, Tensor], Tensor]
"""Scaled scores [B, K] and teacher probabilities [B, K] -> a scalar."""


@dataclass(frozen=True)
class Scores:
    """Scores [B, K] of each crop of the student and each view of the teacher, not yet divided by temperatures."""

    student: Sequence[Tensor]
    teacher: Sequence[Tensor]
    carry: Mapping[str, Any] = field(default_factory=dict)


class Mode:
    """One use of ProtoCPC; holds nothing, the hyper-parameters are the method's."""

    def needs(self, method: ProtoCPC) -> Needs:
        """What is compared."""
        raise NotImplementedError

    def check(self, method: ProtoCPC, setting: Setting) -> None:
        """Raise ``ConfigError`` where the sides cannot be compared."""

    def parts(self, method: ProtoCPC, setting: Setting) -> dict[str, nn.Module]:
        """What is trained or remembered beside the prior."""
        return {}

    def count(self, method: ProtoCPC, setting: Setting) -> int:
        """Number of prototypes."""
        return method.prototypes

    def scores(self, method: ProtoCPC, step: Step, parts: Any) -> Scores:
        """The scores that are compared."""
        raise NotImplementedError

    def temperatures(self, method: ProtoCPC) -> tuple[float, float]:
        """The student's and the teacher's."""
        return method.student_temperature, method.teacher_temperature

    def combine(self, method: ProtoCPC, loss: CropLoss, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Losses of the crops put together."""
        raise NotImplementedError

    def terms(self, scores: Scores) -> dict[str, Tensor]:
        """What is reported."""
        return {"entropy": assignment_entropy(scores.student[0])}

    def after_step(self, method: ProtoCPC, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Update what is remembered beside the prior."""


class Supervised(Mode):
    """Compression of a classifier (Eq. 14)."""

    def needs(self, method: ProtoCPC) -> Needs:
        """Logits on both sides."""
        return Needs.of_both_sides("logits")

    def check(self, method: ProtoCPC, setting: Setting) -> None:
        """Both sides must score the same prototypes."""
        check_equal_classes(method.name, setting)

    def count(self, method: ProtoCPC, setting: Setting) -> int:
        """Number of classes."""
        return setting.student["logits"][0]

    def scores(self, method: ProtoCPC, step: Step, parts: Any) -> Scores:
        """The logits."""
        return Scores([step.student[0]["logits"]], [step.teacher[0]["logits"]])

    def temperatures(self, method: ProtoCPC) -> tuple[float, float]:
        """One for both."""
        return method.temperature, method.temperature

    def combine(self, method: ProtoCPC, loss: CropLoss, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss of the one view, times the squared temperature."""
        return loss(student[0], teacher[0]) * (method.temperature**2 if method.scale_by_temperature else 1.0)

    def terms(self, scores: Scores) -> dict[str, Tensor]:
        """Nothing: labels keep classes apart."""
        return {}


class Compress(Mode):
    """Compression of a teacher without labels (Eq. 15, 16)."""

    def needs(self, method: ProtoCPC) -> Needs:
        """Embeddings on both sides, the student's also of small crops."""
        embedding = frozenset({"embedding"})
        draws = method.local_draws(first=1)
        return Needs(student=dict.fromkeys((0, *draws), embedding), teacher={0: embedding}, draws=draws)

    def check(self, method: ProtoCPC, setting: Setting) -> None:
        """Pretrained prototypes must fit the teacher."""
        if method.teacher_prototypes == "pretrained":
            _pretrained(method, setting.teacher["embedding"][0])

    def parts(self, method: ProtoCPC, setting: Setting) -> dict[str, nn.Module]:
        """The student's head and prototypes, both trained; pretrained prototypes of the teacher."""
        from raydistill.methods.heads import Prototypes, mlp
        from raydistill.methods.state import Value, seeded

        student, teacher = setting.student["embedding"][0], setting.teacher["embedding"][0]
        with seeded(setting.seed):
            head = mlp(student, method.hidden, teacher, layers=method.layers, batch_norm=method.batch_norm)
            prototypes = Prototypes(teacher, method.prototypes)
        parts: dict[str, nn.Module] = {"head": head, "prototypes": prototypes}
        if method.teacher_prototypes == "pretrained":
            parts["teacher_prototypes"] = Value(_pretrained(method, teacher))
        return parts

    def scores(self, method: ProtoCPC, step: Step, parts: Any) -> Scores:
        """Cosines with the prototypes."""
        crops = range(1 + method.local_crops)
        rows = parts["head"](torch.cat([step.student[view]["embedding"] for view in crops]))
        pretrained = method.teacher_prototypes == "pretrained"
        weight = parts["teacher_prototypes"].value if pretrained else parts["prototypes"].weight.detach()
        teacher = unit(step.teacher[0]["embedding"])
        with torch.autocast(teacher.device.type, enabled=False):
            scores = teacher @ weight.T
        return Scores(parts["prototypes"](rows).chunk(len(crops)), [scores])

    def combine(self, method: ProtoCPC, loss: CropLoss, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Sum over the crops, as Eq. 16 is printed."""
        return torch.stack([loss(crop, teacher[0]) for crop in student]).sum()

    def after_step(self, method: ProtoCPC, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Normalise the prototypes."""
        parts["prototypes"].normalise()


class Self(Mode):
    """Self-distillation (Eq. 17)."""

    def needs(self, method: ProtoCPC) -> Needs:
        """The student's embedding of all crops, the images of the large ones."""
        return method.self_needs()

    def parts(self, method: ProtoCPC, setting: Setting) -> dict[str, nn.Module]:
        """The student's head, which is trained; the averaged teacher, with ``centering`` its centre."""
        from raydistill.methods.state import Value

        center = {"center": Value(torch.zeros(method.prototypes))} if method.centering else {}
        return method.self_parts(setting) | center

    def scores(self, method: ProtoCPC, step: Step, parts: Any) -> Scores:
        """Scores of all crops, and the teacher's of the large ones."""
        teacher = method.teacher_scores(step, parts)
        carry = {"mean": teacher.mean(dim=0), "momentum": method.momentum_at(step.progress)}
        centred = teacher - parts["center"].value if method.centering else teacher
        student = method.student_scores(step, parts)
        return Scores(student.chunk(method.crops), centred.chunk(GLOBAL_CROPS), carry)

    def combine(self, method: ProtoCPC, loss: CropLoss, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean over all pairs of a crop and another large one."""
        return over_other_views(loss, torch.cat([*student]), torch.cat([*teacher]), crops=len(student))

    def after_step(self, method: ProtoCPC, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Move the centre by the global batch, then the teacher."""
        if method.centering:
            move_center(parts["center"], carry["mean"], _CENTER_MOMENTUM)
        parts["teacher"].follow(student, parts["head"], carry["momentum"])


MODES: dict[str, Mode] = {"supervised": Supervised(), "compress": Compress(), "self": Self()}

DEFAULTS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "compress": {"weight": 1.0, "batch_norm": True},
    "self": {"weight": 1.0, "local_crops": 6},
}
"""Defaults by mode, where the class has others."""

_UNLABELLED = ("compress", "self")
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "temperature": ("supervised",),
    "scale_by_temperature": ("supervised",),
    "student_temperature": _UNLABELLED,
    "teacher_temperature": _UNLABELLED,
    "prototypes": _UNLABELLED,
    "hidden": _UNLABELLED,
    "layers": _UNLABELLED,
    "batch_norm": _UNLABELLED,
    "local_crops": _UNLABELLED,
    "local_scale": _UNLABELLED,
    "local_size": _UNLABELLED,
    "teacher_prototypes": ("compress",),
    "prototypes_file": ("compress",),
    "prototypes_tensor": ("compress",),
    "global_scale": ("self",),
    "bottleneck": ("self",),
    "norm_last_layer": ("self",),
    "freeze_last_layer": ("self",),
    "momentum": ("self",),
    "centering": ("self",),
}
"""Fields that mean something to some modes only; elsewhere another value than the default is a mistake to be told."""


def _pretrained(method: ProtoCPC, width: int) -> Tensor:
    """Read the teacher's prototypes, unit rows [K, width] in float32."""
    from safetensors import SafetensorError, safe_open

    path, name = Path(str(method.prototypes_file)), str(method.prototypes_tensor)
    where = f"methods.{method.name}.prototypes_file"
    try:
        with safe_open(path, framework="pt") as file:
            if name not in file.keys():  # noqa: SIM118  the file cannot be iterated over
                known = ", ".join(sorted(file.keys())[:8])
                raise ConfigError(f"methods.{method.name}.prototypes_tensor: {path} holds no '{name}' but {known}")
            weight: Tensor = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{where}: {path} cannot be read: {str(error).splitlines()[0]}") from None
    if weight.shape != (method.prototypes, width):
        raise ConfigError(
            f"{where}: '{name}' of {path} has the shape {list(weight.shape)}; with methods.{method.name}.prototypes ="
            f" {method.prototypes} and this teacher it must be [{method.prototypes}, {width}]"
        )
    if not torch.isfinite(weight).all():
        raise ConfigError(f"{where}: '{name}' of {path} holds values that are not finite")
    return unit(weight.float())
