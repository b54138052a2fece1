"""Runs at Weights & Biases."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import wandb

from raydistill.track_config import WandbConfig
from raydistill.training.trackers import About, Status


def tracker_of(config: WandbConfig) -> WandbTracker:
    """Return the tracker of an experiment's section."""
    return WandbTracker(config)


class WandbTracker:
    """See ``trackers.Tracker``; the trials of a sweep are a group."""

    follows_sweeps = False

    def __init__(self, config: WandbConfig) -> None:
        """Nothing is begun yet."""
        self._config = config

    def begin(self, about: About, known: str | None, keep: Callable[[str], None]) -> WandbRun:
        """See ``trackers.Tracker``; ids are ours, so that one is kept before anything can go wrong."""
        name = known or secrets.token_hex(4)
        keep(name)
        run = wandb.init(
            id=name,
            resume="allow",
            reinit="create_new",
            name=about.name,
            project=self._config.project,
            entity=self._config.entity,
            group=self._config.group or about.sweep,
            job_type=about.kind,
            tags=self._config.tags,
            config=dict(about.values),
            mode=self._config.mode,
            dir=about.folder / "logs",
            settings=wandb.Settings(console="off", silent=True),
        )
        return WandbRun(run)


class WandbRun:
    """See ``trackers.TrackedRun``."""

    def __init__(self, run: wandb.Run) -> None:
        """Epochs are the horizontal axis; those of a stage before distillation its own."""
        self._run = run
        self._axes: set[str] = set()

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """See ``trackers.TrackedRun``."""
        first, *rest = next(iter(metrics), "").split("/")
        prefix = f"{first}/{rest[0]}/" if first == "stage" else ""
        if prefix not in self._axes:
            self._axes.add(prefix)
            self._run.define_metric(f"{prefix}epoch", hidden=True)
            self._run.define_metric(f"{prefix}*", step_metric=f"{prefix}epoch")
        self._run.log({f"{prefix}epoch": epoch, **metrics})

    def end(self, status: Status, summary: Mapping[str, Any], files: list[Path]) -> None:
        """See ``trackers.TrackedRun``."""
        self._run.summary.update({**summary, "status": status})
        for file in files:
            copy = shutil.copy(file, self._run.dir)
            self._run.save(copy, base_path=self._run.dir, policy="now")
        self._run.finish(exit_code=1 if status == "failed" else 0)
