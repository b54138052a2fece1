"""How classes go together in a network's scores, and whether they do so in another's."""

from __future__ import annotations

from raydistill.lazy import Tensor, torch


def correlation(logits: Tensor) -> Tensor:
    """Return Pearson's correlation of each two classes' scores over the images.

    A class whose score is the same for all images goes together with no other: 0, and 1 with itself.

    Args:
        logits: [N, C] with N of at least 2.

    Returns:
        Float64 [C, C] on the logits' device; symmetric, from -1 to 1, the diagonal 1.

    Raises:
        ValueError: where there are not two images or a score is not finite.
    """
    if logits.ndim != 2 or len(logits) < 2:
        raise ValueError(f"logits [N, C] of at least two images expected, got {list(logits.shape)}")
    if not logits.isfinite().all():
        raise ValueError("logits must be finite: the network that made them has diverged")
    scores = logits.double()
    centred = scores - scores.mean(dim=0)
    # The mean of equal numbers may be off by rounding, which a division by their spread would turn into noise.
    centred[:, scores.amin(dim=0) == scores.amax(dim=0)] = 0.0
    directions = centred / torch.linalg.vector_norm(centred, dim=0).clamp(min=1e-300)
    found = torch.clamp(directions.T @ directions, -1.0, 1.0)
    found.fill_diagonal_(1.0)
    return found


def correlation_discrepancy(student_logits: Tensor, teacher_logits: Tensor) -> tuple[float, Tensor]:
    """Compare how classes go together in both networks' logits.

    CRD (Tian et al. 2020, https://arxiv.org/abs/1910.10699), Figures 2 and 6: the difference of the correlation
    matrices of student and teacher.

    Args:
        student_logits: [N, C].
        teacher_logits: [N, C], of the same images.

    Returns:
        The mean of the absolute difference over all C x C entries, from 0 to 2, and the map [C, C], student minus
        teacher, in float64 on the CPU.

    Raises:
        ValueError: where sizes differ, there are not two images or a score is not finite.
    """
    if student_logits.shape != teacher_logits.shape:
        shapes = f"{list(student_logits.shape)} and {list(teacher_logits.shape)}"
        raise ValueError(f"logits [N, C] of both networks for the same images expected, got {shapes}")
    difference = correlation(student_logits).cpu() - correlation(teacher_logits).cpu()
    return float(difference.abs().mean()), difference
