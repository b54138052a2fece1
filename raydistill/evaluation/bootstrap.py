"""How far a difference between two classifiers may be owed to the choice of test images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DRAWS = 10_000


def paired_interval(differences: ArrayLike, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean difference over images drawn with replacement.

    Efron and Tibshirani 1993, chapter 13. Both sides see the same images in each draw, so what is hard for both leaves
    their difference alone. An image counts by its difference alone, and of these there are few: how often each of them
    is drawn is multinomial, which needs no image to be drawn.

    Args:
        differences: [N], of each image, such as that of the shares of seeds which classify it rightly.
        level: share of the draws within the interval.
        seed: of the draws.

    Returns:
        Low and high end, in the unit of the values.

    Raises:
        ValueError: where there is no image, or ``level`` is no share.
    """
    import numpy as np

    given = np.asarray(differences, dtype=np.float64)
    if given.ndim != 1 or not given.size:
        raise ValueError(f"differences [N] expected, got {list(given.shape)}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    values, counts = np.unique(given, return_counts=True)
    drawn: Any = np.random.default_rng(seed).multinomial(given.size, counts / given.size, size=DRAWS)
    low, high = np.quantile(drawn @ values / given.size, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
