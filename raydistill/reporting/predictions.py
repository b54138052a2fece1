"""What the networks of runs said of single test images, and what follows for a difference between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from raydistill.errors import DataError
from raydistill.evaluation.bootstrap import paired_interval
from raydistill.evaluation.card_files import PREDICTIONS


def rightness(path: Path, role: str = "student") -> pd.Series | None:
    """Return whether a run's network classified each test image rightly: id -> 0.0 or 1.0.

    None where ``raydistill eval`` has not left the predictions of that network.

    Raises:
        DataError: where the file is damaged.
    """
    file = path / PREDICTIONS
    if not file.is_file():
        return None
    try:
        frame = pd.read_parquet(file).set_index("id")
        return (frame[role] == frame["label"]).astype(float) if role in frame else None
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: the run is damaged: {PREDICTIONS} cannot be read: {reason}") from None


def mean_rightness(of_runs: Sequence[pd.Series | None]) -> pd.Series | None:
    """Return the share of runs that classified each image rightly: id -> 0 to 1; None unless all know the same."""
    known = [run for run in of_runs if run is not None]
    if not known or len(known) < len(of_runs) or any(not run.index.equals(known[0].index) for run in known):
        return None
    total: pd.Series = sum(known[1:], known[0])
    return total / len(known)


def gained(one: pd.Series | None, other: pd.Series | None) -> pd.Series | None:
    """Return ``one - other``, id -> -1 to 1; None where one is missing or they are of different images."""
    if one is None or other is None or not one.index.equals(other.index):
        return None
    return one - other


def interval(gain: pd.Series | None) -> tuple[float, float] | None:
    """Return in points between what ends the test images let the difference of two accuracies lie."""
    if gain is None:
        return None
    low, high = paired_interval(gain.to_numpy())
    return 100.0 * low, 100.0 * high
