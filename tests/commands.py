"""Whole commands that are watched while they run, to be stopped in the middle."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from raydistill.config import Experiment

PATIENCE = 300.0


@dataclass
class Command:
    """One of the commands on an experiment; ``environment`` says which Ray it joins, or where it starts its own.

    ``prefix`` stands before it, as what takes it to another machine.
    """

    verb: ClassVar[str]

    experiment: Experiment
    environment: dict[str, str]
    prefix: tuple[str, ...] = ()
    process: subprocess.Popen[str] = field(init=False)

    def start(self, *options: str) -> None:
        """Begin, in a process group of its own."""
        config = self.experiment.folder.parent.parent / f"{self.experiment.name}.yaml"
        config.write_text(self.experiment.to_yaml())
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "raydistill.cli", *self.verb.split(), str(config), *options],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def until(self, met: Callable[[], Any]) -> Any:
        """Wait for something while the command runs."""
        deadline = time.monotonic() + PATIENCE
        while not (found := met()):
            assert self.process.poll() is None, f"{self.experiment.name} ended: {self.process.communicate()}"
            assert time.monotonic() < deadline, f"{self.experiment.name} hangs"
            time.sleep(0.005)
        return found
