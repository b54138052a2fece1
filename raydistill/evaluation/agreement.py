"""How far a student sees images as its teacher does: what can be measured where there are no labels."""

from __future__ import annotations

from collections.abc import Iterable

from raydistill.evaluation.classification import predictions
from raydistill.evaluation.similarity import linear_cka, neighbour_overlap
from raydistill.lazy import Tensor, torch
from raydistill.measures import VALIDATION, neighbours_of


def agreement(student: Tensor, teacher: Tensor, measures: Iterable[str]) -> dict[str, float]:
    """Compare two networks' embeddings of the same images.

    ``neighbours@K`` is the percentage of an image's K nearest among the others by the student's cosine that are among
    its K nearest by the teacher's, averaged over the images; chance is K / (N - 1). ``cka`` is linear centred kernel
    alignment, from 0 to 1 (Kornblith et al. 2019, https://arxiv.org/abs/1905.00414). Embeddings that are not finite
    agree with nothing, and by CKA neither do those that are the same for all images: 0.

    Args:
        student: [N, D].
        teacher: [N, E], of the same images.
        measures: names such as ``neighbours@10`` and ``cka``.

    Returns:
        ``val/<measure>`` -> value; higher is better.

    Raises:
        ConfigError: for an unknown name.
        ValueError: where sizes do not fit, or a K is not from 1 to N - 1.
    """
    return {f"{VALIDATION}{measure}": _measured(student, teacher, neighbours_of(measure)) for measure in measures}


def prediction_agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Return the percentage of images of which both networks' highest score is that of the same class.

    An image on which either side has a NaN is one on which they do not agree.

    Args:
        student_logits: [N, C].
        teacher_logits: [N, C], of the same images.

    Raises:
        ValueError: where sizes differ or there is no image.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape or not len(student_logits):
        shapes = f"{list(student_logits.shape)} and {list(teacher_logits.shape)}"
        raise ValueError(f"logits [N, C] of both networks for the same images expected, got {shapes}")
    sides = student_logits.cpu(), teacher_logits.cpu()
    same = predictions(sides[0]) == predictions(sides[1])
    for side in sides:
        same &= ~side.isnan().any(dim=1)
    return 100.0 * int(same.sum()) / len(same)


def _measured(student: Tensor, teacher: Tensor, k: int | None) -> float:
    if not (student.isfinite().all() and teacher.isfinite().all()):
        return 0.0
    if k is not None:
        return 100.0 * neighbour_overlap(student, teacher, k=k, queries=len(student))
    if any(_is_constant(side) for side in (student, teacher)):
        return 0.0
    return linear_cka(student, teacher)


def _is_constant(side: Tensor) -> bool:
    return torch.equal(side, side[:1].expand_as(side))
