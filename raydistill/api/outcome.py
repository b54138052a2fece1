"""What a distillation gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from raydistill.training.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from raydistill.teachers.cache.build import BuildReport


@dataclass(frozen=True, repr=False)
class Distilled:
    """A finished distillation.

    Attributes:
        student: the trained network, of the class that was given, on the CPU and in evaluation mode.
        run: its run folder; of a sweep that of the winning trial.
        values: what stands in ``result.json``, of a sweep in the sweep's.
        sweep: folder of the sweep, if there was one.
        cache: what building the teacher's cache did; None where nothing was read from one.
    """

    student: nn.Module
    run: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    sweep: Path | None = None
    cache: BuildReport | None = None

    @property
    def top1(self) -> float | None:
        """Percent of the test images that the student classifies; None without ``test``."""
        value = self.values.get("top1")
        return None if value is None else float(value)

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch, as ``metrics.jsonl`` has it: ``epoch``, ``train/loss``, ``val/...``, ``seconds``, ..."""
        import pandas as pd

        return pd.DataFrame(RunFolder(self.run).history())

    @property
    def trials(self) -> pd.DataFrame | None:
        """One row a trial of the sweep, as ``trials.csv`` has it; None where there was no sweep."""
        import pandas as pd

        return None if self.sweep is None else pd.read_csv(self.sweep / "trials.csv", dtype={"trial": str})

    def card(self, protocols: Iterable[str] = ()) -> pd.DataFrame:
        """Measure student and teacher on the test images.

        Args:
            protocols: names of ``raydistill list protocols``; those of ``evaluate.protocols`` where none are given.

        Returns:
            A row for each role, ``student`` first, and a column for each value; units as ``raydistill eval`` has them.

        Raises:
            DataError: there are no test images, or they have no labels.
            ConfigError: a protocol is unknown.
        """
        import pandas as pd

        from raydistill.evaluation.card import evaluate_run

        return pd.DataFrame.from_dict(evaluate_run(self.run, protocols), orient="index")

    def plot(self) -> Figure:
        """Draw losses and a validation curve over the epochs; a notebook shows the figure that is returned."""
        import matplotlib.pyplot  # noqa: F401  by importing it notebooks learn to show figures

        from raydistill.reporting.plots import training_course
        from raydistill.reporting.runs import load_run

        return training_course(load_run(self.run))

    def report(self, path: str | Path) -> Path:
        """Write a page about the run, or the sweep, as ``raydistill report`` does, and return its path.

        Raises:
            DataError: ``path`` is a folder.
            RunError: it cannot be written.
        """
        from raydistill.reporting.page import write_report

        return write_report([self.sweep or self.run], path)

    def __repr__(self) -> str:
        name = type(self.student).__name__
        measures = {"top1": self.top1, "val_top1": self.values.get("val_top1")}
        metric = self.values.get("metric")
        if metric is not None:
            measures[metric] = self.values.get("best_metric")
        found = [f"{key}={value:.4g}" for key, value in measures.items() if value is not None]
        tried = [f"{self.values['trials']} trials"] if self.sweep is not None else []
        return f"Distilled({', '.join([name, *found, *tried, str(self.run)])})"
