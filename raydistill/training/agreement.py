"""Validation without labels: the student's embeddings of held-out images beside the first teacher's."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor, nn

from raydistill.config import Experiment
from raydistill.data.shared import tensor_of
from raydistill.errors import ConfigError
from raydistill.evaluation.agreement import agreement
from raydistill.evaluation.features import extract, spread
from raydistill.measures import VALIDATION, neighbours_of
from raydistill.models.taps import EMBEDDING
from raydistill.training.meter import Metrics

if TYPE_CHECKING:
    from raydistill.data.image_set import ImageSet
    from raydistill.data.resident import ResidentSet
    from raydistill.teachers.cache.codec import Array
    from raydistill.teachers.cache.read import TeacherCache
    from raydistill.teachers.source import LiveTeacher

MOST_IMAGES = 2000
"""Held-out images that are compared, so that a validation costs seconds at most, whatever the size of the split."""


class Agreement:
    """Compares the student with the first teacher on the evaluation views of at most 2000 held-out images.

    Attributes:
        teacher: what computes the teacher's side at the first validation; None where it came from the cache.
    """

    def __init__(
        self,
        measures: tuple[str, ...],
        images: ResidentSet,
        *,
        rows: Array | None = None,
        teacher: LiveTeacher | None = None,
        teacher_images: ResidentSet | None = None,
    ) -> None:
        """Give the teacher's side as cached ``rows``, or as the ``teacher`` itself.

        Args:
            measures: names such as ``neighbours@10``.
            images: the whole validation split as the student sees it.
            rows: the teacher's embeddings [N, D] of ``compared(images)``.
            teacher: runs once for them.
            teacher_images: the N images as the teacher sees them, where that is not what the student sees.
        """
        self.teacher = teacher
        self._measures, self._images = measures, images
        self._positions = compared(len(images)).to(images.device)
        self._rows, self._teacher_images = rows, teacher_images

    def measure(self, student: nn.Module) -> Metrics:
        """Return ``val/<measure>`` of the student as it is now."""
        embeddings = extract(student, self._images, EMBEDDING, self._positions).float()
        return agreement(embeddings, self._reference, self._measures)

    @cached_property
    def _reference(self) -> Tensor:
        """The teacher's side, float32 [N, D] on the device."""
        if self.teacher is None:
            assert self._rows is not None
            return tensor_of(self._rows).to(self._images.device).float()
        self.teacher.forwards += len(self._positions)
        if self._teacher_images is not None:
            return extract(self.teacher.network, self._teacher_images, EMBEDDING).float()
        return extract(self.teacher.network, self._images, EMBEDDING, self._positions).float()


def compared(held_out: int) -> Tensor:
    """Positions of the images that are compared among so many held-out ones, int64 [N]."""
    return spread(held_out, MOST_IMAGES)


def check_agreement(experiment: Experiment, held_out: int) -> None:
    """Raise ``ConfigError`` where a measure asks for more neighbours than there are held-out images."""
    count = len(compared(held_out))
    for measure in experiment.agreement:
        least = (neighbours_of(measure) or 1) + 1
        if count < least:
            raise ConfigError(
                f"{VALIDATION}{measure} needs {least} held-out images or more, but {count} of {held_out} are compared; "
                "raise data.validation, or ask for fewer neighbours"
            )


def cached_rows(cache: TeacherCache, held_out: ImageSet) -> Array:
    """Read the teacher's embeddings [N, D] of the evaluation views of the compared images, and of no others.

    Raises:
        CacheError: where a shard is damaged.
    """
    return cache.rows(held_out.ids[compared(len(held_out))], 0, [EMBEDDING])[EMBEDDING]
