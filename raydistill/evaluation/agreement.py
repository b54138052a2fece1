"""How far a student sees images as its teacher does: what can be measured where there are no labels."""

from __future__ import annotations

from collections.abc import Iterable

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
