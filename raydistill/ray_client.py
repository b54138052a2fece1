"""Ray Jobs by way of Ray Client, for a head whose dashboard nobody but the head itself can reach.

Ray's own client of jobs asks the dashboard by HTTP, even when it is given an address of Ray Client.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from raydistill import access
from raydistill.access import Door
from raydistill.errors import ConfigError, last_line

_HEAD = {"node:__internal_head__": 0.001}
"""What Ray calls the head's own resource; an actor that asks for some of it runs there."""
FORKS = "GRPC_ENABLE_FORK_SUPPORT"
"""Set to 0 where a head is started, it keeps gRPC from ending the process that Ray forks there for a client.

Where it is not set, some connections fail after half a minute, with an error that begins with ``_FAILED``.
"""
_FAILED = "Starting Ray client server failed"
_TRIES = 4
_LOOK_EVERY_S = 1.0


class Clerk:
    """An actor on the head that asks its server of jobs. It travels by value: the head need not know this package."""

    def __init__(self, dashboard: str) -> None:
        """Connect to the server at ``HOST:PORT``, as the head itself sees it."""
        from ray.job_submission import JobSubmissionClient

        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://{dashboard}"  # Ray lets it, or RAY_ADDRESS, win
        self.jobs = JobSubmissionClient()

    def python(self) -> str:
        """Return the interpreter of the head's workers."""
        return sys.executable

    def submit(self, packed: bytes, asked: Mapping[str, Any], environment: Mapping[str, str]) -> str:
        """Unpack what has travelled and ask for the job; return its id."""
        with tempfile.TemporaryDirectory(prefix="raydistill-job-") as folder:
            archive = Path(folder) / "job.zip"
            archive.write_bytes(packed)
            shutil.unpack_archive(archive, Path(folder) / "job")
            runtime = {"working_dir": f"{folder}/job", "env_vars": dict(environment)}
            return str(self.jobs.submit_job(**asked, runtime_env=runtime))

    def about(self, job: str) -> Any:
        """Return what the server knows of a job."""
        return self.jobs.get_job_info(job)

    def log(self, job: str, begin: int) -> str:
        """Return a job's log from a character on."""
        return str(self.jobs.get_job_logs(job))[begin:]


class ClientJobs:
    """Does what is needed of ``ray.job_submission.JobSubmissionClient`` at an address ``ray://HOST:PORT``.

    Attributes:
        python: the interpreter of the head's workers.
    """

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            ConfigError: where no Ray Client is served there, it does not let us in or lets in anybody, or the head has
                no server of jobs.
        """
        door = access.knock(address)
        if door is Door.SILENT:
            raise ConfigError(f"{address}: no Ray Client answers there; a head serves it on its port 10001")
        if door is Door.LOCKED or not access.is_loopback(address):
            access.prepare_to_join(address)
        import ray
        from ray import cloudpickle

        ray._raylet.Config.initialize("")  # Ray read RAY_AUTH_MODE as it was imported
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        for handler in logging.getLogger("ray").handlers:  # it would tell how it connects
            handler.setLevel(logging.ERROR)
        try:
            dashboard = _connect(address)
            if not dashboard:
                raise ConnectionError("the head runs no dashboard, which serves jobs; start it with `ray[default]`")
            self._clerk = ray.remote(num_cpus=0, resources=_HEAD)(Clerk).remote(dashboard)
            self.python = self._ask("python")
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            advice = "the head needs the same Ray and Python as this machine"
            if _FAILED in str(error):
                advice = f"set {FORKS}=0 where the head is started"
            raise ConfigError(
                f"{address}: no jobs are taken there by Ray Client ({last_line(error)}); {advice}"
            ) from None

    def submit_job(self, *, runtime_env: Mapping[str, Any], **asked: Any) -> str:
        """Send the folder ``working_dir`` and ask for the job; return its id."""
        with tempfile.TemporaryDirectory(prefix="raydistill-job-") as folder:
            packed = shutil.make_archive(f"{folder}/job", "zip", runtime_env["working_dir"])
            return str(self._ask("submit", Path(packed).read_bytes(), asked, runtime_env["env_vars"]))

    def get_job_info(self, job: str) -> Any:
        """Return what the server knows of a job."""
        return self._ask("about", job)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        """Yield a job's log from its beginning on, until the job ends."""
        told = 0
        while True:
            ended = self.get_job_info(job).status.is_terminal()  # before its log, lest its last lines are missed
            if text := self._ask("log", job, told):
                told += len(text)
                yield text
            if ended:
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    def _ask(self, question: str, *given: Any) -> Any:
        import ray

        return ray.get(getattr(self._clerk, question).remote(*given))


def _connect(address: str) -> str:
    """Connect by Ray Client; return the head's dashboard as ``HOST:PORT``, empty where none runs."""
    import ray

    tried = 1
    while True:
        try:
            return str(ray.init(address, log_to_driver=False).dashboard_url or "")
        except (ConnectionError, RuntimeError) as error:
            if tried == _TRIES or _FAILED not in str(error):
                raise
        ray.shutdown()
        tried += 1
