"""Fields and look-ups of methods that compare maps at the ends of stages, each with one of the teacher's.

Inherit from ``OneStage`` or ``SeveralStages`` in front of ``Method``; ``output`` says which maps are meant.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from raydistill.errors import ConfigError
from raydistill.lazy import Tensor
from raydistill.methods.base import Needs, Setting, Shapes, Step

StageNumber = Annotated[int, Field(ge=0)]
StageNumbers = Annotated[tuple[StageNumber, ...], Field(min_length=1)]
MapShape = tuple[int, int, int]
"""(C, H, W)."""


class _Maps(BaseModel):
    """What both have in common, on view 0."""

    name: ClassVar[str]
    output: ClassVar[Literal["features", "preact"]] = "features"
    stage_fields: ClassVar[tuple[str, str]]
    """The fields that hold the student's and the teacher's stages."""

    def stage_pairs(self) -> list[tuple[int, int]]:
        """Stages to compare: the student's and the teacher's."""
        raise NotImplementedError

    def student_names(self) -> list[str]:
        """Names of the student's maps, in the order of the fields."""
        return [f"{self.output}/{stage}" for stage, _ in self.stage_pairs()]

    def teacher_names(self) -> list[str]:
        """Names of the teacher's maps, in the order of the fields."""
        return [f"{self.output}/{stage}" for _, stage in self.stage_pairs()]

    def needs(self) -> Needs:
        """Maps on both sides."""
        return Needs(student={0: frozenset(self.student_names())}, teacher={0: frozenset(self.teacher_names())})

    def check(self, setting: Setting) -> None:
        """Both networks must have these stages."""
        self.student_shapes(setting)
        self.teacher_shapes(setting)

    def student_maps(self, step: Step) -> list[Tensor]:
        """The student's maps [B, C, H, W], in the order of the fields."""
        return [step.student[0][name] for name in self.student_names()]

    def teacher_maps(self, step: Step) -> list[Tensor]:
        """The teacher's maps [B, C, H, W], in the order of the fields."""
        return [step.teacher[0][name] for name in self.teacher_names()]

    def student_shapes(self, setting: Setting) -> list[MapShape]:
        """Shapes of the student's maps; raises ``ConfigError`` where it has no such map."""
        return _map_shapes(
            setting.student, self.student_names(), f"methods.{self.name}.{self.stage_fields[0]}", "student"
        )

    def teacher_shapes(self, setting: Setting) -> list[MapShape]:
        """Shapes of the teacher's maps; raises ``ConfigError`` where it has no such map."""
        return _map_shapes(
            setting.teacher, self.teacher_names(), f"methods.{self.name}.{self.stage_fields[1]}", "teacher"
        )


class OneStage(_Maps):
    """One map; ``teacher_stage: null`` is the same number. A subclass gives ``stage`` its default."""

    stage_fields: ClassVar[tuple[str, str]] = ("stage", "teacher_stage")

    stage: StageNumber
    teacher_stage: StageNumber | None = None

    def stage_pairs(self) -> list[tuple[int, int]]:
        """The one pair."""
        return [(self.stage, self.stage if self.teacher_stage is None else self.teacher_stage)]


class SeveralStages(_Maps):
    """Several maps, compared pairwise; ``teacher_stages: null`` are the same numbers."""

    stage_fields: ClassVar[tuple[str, str]] = ("stages", "teacher_stages")

    stages: StageNumbers = (1, 2, 3)
    teacher_stages: StageNumbers | None = None

    @field_validator("teacher_stages")
    @classmethod
    def _one_for_each(cls, value: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        expected = info.data.get("stages")
        if value is not None and expected is not None and len(value) != len(expected):
            raise ValueError(f"must be as long as 'stages', which has {len(expected)} entries")
        return value

    def stage_pairs(self) -> list[tuple[int, int]]:
        """The stages of both sides, in the order of the fields."""
        return list(zip(self.stages, self.teacher_stages or self.stages, strict=True))


def _map_shapes(shapes: Shapes, names: list[str], where: str, side: str) -> list[MapShape]:
    found: list[MapShape] = []
    for name in names:
        if name not in shapes:
            # Of the teacher only the outputs that somebody needs are known here.
            known = ", ".join(sorted(key for key in shapes if key.startswith(f"{name.partition('/')[0]}/"))) or "none"
            raise ConfigError(f"{where}: the {side} has no map '{name}' (it has: {known})")
        channels, height, width = shapes[name]
        found.append((channels, height, width))
    return found
