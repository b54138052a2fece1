"""Runs stages of a benchmark in processes of their own, each with a Ray of its own, on two cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SLOTS = 2
"""Cores of a stage, and trials at a time."""
_FLAG = "--stage"


def stage(name: str, **given: Any) -> Any:
    """Run a stage of the script that was started; what it returns has to go through JSON.

    Ray's workers find the networks in that script.
    """
    script = Path(sys.argv[0]).resolve()
    paths = os.pathsep.join(filter(None, [str(script.parent), os.environ.get("PYTHONPATH")]))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:SLOTS])  # children inherit it
    process = subprocess.run(
        [sys.executable, script, _FLAG, name, json.dumps(given)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(process.stdout.splitlines()[-1])


def obey(stages: Mapping[str, Callable[..., Any]]) -> None:
    """Where this process is to run a stage, run it and end; scripts call this first."""
    if sys.argv[1:2] == [_FLAG]:
        name, given = sys.argv[2:]
        print(json.dumps(stages[name](**json.loads(given))), flush=True)
        os._exit(0)  # a sweep that is left in its middle must not look for another Ray


def history_of(trial: Path) -> list[dict[str, Any]]:
    """Epochs of a trial."""
    path = trial / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
