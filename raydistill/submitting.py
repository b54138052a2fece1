"""Runs a command on a cluster through Ray Jobs: this package's code and the experiment travel, the log comes back."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from raydistill.access import CLIENT
from raydistill.config import Experiment, load_experiment
from raydistill.errors import ConfigError, RunError, did_you_mean, last_line
from raydistill.ray_client import ClientJobs
from raydistill.reachable import read_by


class Command(NamedTuple):
    """A command that can be submitted: the key that says where it writes, and its options."""

    writes: str
    options: tuple[str, ...]


COMMANDS = {
    "teacher": Command("output", ("--resume",)),
    "train": Command("output", ("--resume", "--profile")),
    "tune": Command("output", ("--resume",)),
    "cache build": Command("cache.root", ()),
}
_HOW_TO_ANSWER = ("--json", "--quiet")
"""Options of every command, which `submit` keeps to itself."""
MAY_BE_REMOTE = ("cache.root", "backup")
"""Keys of folders that may be URLs."""
EXPERIMENT = "experiment.yaml"
LOG_TRIES = 5
"""So often a log that breaks off is taken up again without a line of it having come."""
LOOK_EVERY_S = 1.0
HEAD_START_S = 120.0
NO_AGENT = "No available agent"
"""Of Ray's answer while the process that starts jobs is not there yet."""
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class Job:
    """A command with its experiment, resolved and checked here; ``options`` are those of the command."""

    command: str
    experiment: Experiment
    options: tuple[str, ...]

    def entrypoint(self, python: str) -> str:
        """Return the line that the cluster's head runs in the folder that has travelled."""
        words = [python, "-m", "raydistill.cli", *self.command.split(), EXPERIMENT, *self.options]
        return shlex.join(words)


def parse_job(words: Sequence[str]) -> Job:
    """Read ``[COMMAND] CONFIG [key.path=value]... [--option]...``; a file alone means ``train``.

    Raises:
        ConfigError: where it cannot be submitted, or writes to or reads from the head's own folders.
    """
    options = tuple(word for word in words if word.startswith("-"))
    others = [word for word in words if not word.startswith("-")]
    length = next((n for n in (2, 1) if " ".join(others[:n]) in COMMANDS), 0)
    command = " ".join(others[:length]) or "train"
    if not others[length:]:
        raise ConfigError(f"submit: name the experiment's file after the command ({', '.join(COMMANDS)})")
    config, *overrides = others[length:]
    if not length and "=" not in config and not Path(config).suffix:
        raise ConfigError(
            f"cannot submit '{config}'{did_you_mean(config, COMMANDS)} (allowed: {', '.join(COMMANDS)}; what it leaves "
            "on shared storage is looked at from there)"
        )
    for option in options:
        if option not in (*(allowed := COMMANDS[command].options), *_HOW_TO_ANSWER):
            raise ConfigError(f"submit {command}: no option '{option}' (allowed: {', '.join(allowed) or 'none'})")
    experiment = load_experiment(config, overrides)
    if problems := _of_this_machine(command, experiment):
        raise ConfigError("\n".join(f"{config}: {problem}" for problem in problems))
    return Job(command, experiment, options)


def _of_this_machine(command: str, experiment: Experiment) -> list[str]:
    """Say which paths mean another place where the job runs, whose folder is a temporary one of the head."""
    written = {"output": experiment.output, "cache.root": experiment.cache.root}
    paths = {**read_by(experiment), COMMANDS[command].writes: written[COMMANDS[command].writes]}
    if experiment.backup is not None and COMMANDS[command].writes == "output":
        paths["backup"] = experiment.backup
    return [
        f"{key} = {path}: no absolute path, so it would lie in a temporary folder of the cluster's head; name one on "
        f"storage that all nodes share, such as {key}=/shared/{Path(path).name}"
        for key, path in paths.items()
        if not Path(path).is_absolute() and not (key in MAY_BE_REMOTE and "://" in path)
    ]


class Submitted:
    """A job at the server that was asked to run it."""

    def __init__(self, job: Job, address: str, *, python: str | None = None) -> None:
        """Send the code and the experiment, and ask for the job.

        Args:
            job: what to run.
            address: of the head's dashboard (``http://HOST:PORT``), or of its Ray Client (``ray://HOST:PORT``).
            python: the cluster's interpreter; by default ``python``, by Ray Client that of the head.

        Raises:
            ConfigError: where no server of jobs answers at the address, or it does not let us in.
            RunError: where it refuses the job.
        """
        if not address.startswith(("http://", "https://", CLIENT)):
            raise ConfigError(
                f"--address = {address}: must be where the head's dashboard is, http://HOST:PORT, or where it serves "
                "Ray Client, ray://HOST:PORT"
            )
        self.address, self._told = address, 0
        if address.startswith(CLIENT):
            self._client: Any = ClientJobs(address)
            python = python or self._client.python
        else:
            self._client = self._connected()
        with tempfile.TemporaryDirectory(prefix="raydistill-job-") as folder:
            pack(job, Path(folder))
            self.id = self._asked(job, folder, python or "python")

    def _asked(self, job: Job, folder: str, python: str) -> str:
        """Ask for the job and return its id; a head that has just begun takes none for some seconds."""
        patience = time.monotonic() + HEAD_START_S
        while True:
            try:
                accepted: str = self._client.submit_job(
                    entrypoint=job.entrypoint(python),
                    runtime_env={"working_dir": folder, "env_vars": {"PYTHONUNBUFFERED": "1"}},
                    metadata={"experiment": job.experiment.name},
                )
                return accepted
            except (RuntimeError, ValueError, OSError) as error:
                reason = last_line(error)
                if NO_AGENT not in reason or time.monotonic() > patience:
                    raise RunError(f"{self.address}: refused the job: {reason}") from None
            time.sleep(LOOK_EVERY_S)

    def _connected(self) -> Any:
        if find_spec("aiohttp") is None:  # Ray would say so only when the log is to be read
            raise ConfigError("submit: needs aiohttp; pip install 'raydistill[cluster]'")
        # Ray lets it, or RAY_ADDRESS, win over what it is called with.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for handler in logging.getLogger("ray").handlers:  # it would tell of each file that it sends
            handler.setLevel(logging.WARNING)
        try:
            return JobSubmissionClient(self.address)
        except AuthenticationError as error:
            raise ConfigError(
                f"{self.address}: the cluster wants its token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to "
                f"the file that holds it ({str(error).strip().splitlines()[0]})"
            ) from None
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"{self.address}: no server of jobs answers there ({last_line(error)}); open a way to the head's "
                "dashboard first, such as `ray dashboard cluster.yaml` or `ssh -L 8265:127.0.0.1:8265 HEAD`"
            ) from None

    @property
    def advice(self) -> str:
        """How to look at the job and to stop it."""
        if self.address.startswith(CLIENT):
            return f"on the head, look: ray job logs --follow {self.id}; stop: ray job stop {self.id}"
        where = f"--address {self.address} {self.id}"
        return f"look: ray job logs --follow {where}; stop: ray job stop {where}"

    def follow(self, say: Callable[[str], None]) -> int:
        """Hand on the log as it comes until the job ends; return its exit code, 1 where it has none.

        Raises:
            RunError: where the server is lost, though the job may go on, or the job did not even begin.
        """
        tries = 0
        while True:
            before = self._told
            try:
                asyncio.run(self._tail(say))
                about = self._client.get_job_info(self.id)
            except (RuntimeError, OSError) as error:
                tries = 1 if self._told > before else tries + 1
                if tries == LOG_TRIES:
                    reason = f"{self.address}: lost ({last_line(error)})"
                    raise RunError(f"{reason}; {self.id} may go on. {self.advice}") from None
                time.sleep(tries * LOOK_EVERY_S)
                continue
            if about.status in ENDED:
                break
            time.sleep(LOOK_EVERY_S)
        if about.status == "SUCCEEDED":
            return 0
        if about.driver_exit_code is None:
            raise RunError(f"{self.id}: {about.status}: {last_line(about.message or 'without a reason')}")
        return int(about.driver_exit_code) or 1

    async def _tail(self, say: Callable[[str], None]) -> None:
        """Hand on what comes of the log beyond what has been told; it comes from its beginning each time."""
        seen = 0
        async for text in self._client.tail_job_logs(self.id):
            seen += len(text)
            if (new := seen - self._told) > 0:
                say(text[-new:])
                self._told = seen


def pack(job: Job, folder: Path) -> None:
    """Lay out what travels: the package's own files, not what is beside it, and the resolved experiment."""
    package = Path(__file__).parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / EXPERIMENT).write_text(job.experiment.to_yaml(), encoding="utf-8")
