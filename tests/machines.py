"""Several machines on this one: Ray nodes in network namespaces, each with an address of its own and a cable to pull.

Nothing of it can be reached from outside: the bridge between the namespaces has no address. Needs root and ``ip``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.commands import PATIENCE
from tests.nodes import SOON_MISSED, environment_of

NETWORK = "10.213.7"
PORT = 6379
HEAD = 1
STARTED = "Ray runtime started"
STARTS = 3
RAY = str(Path(sys.executable).parent / "ray")


def possible() -> bool:
    """Whether this machine lets us make namespaces."""
    name = f"rdtry{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
    if made:
        _ip("netns", "del", name)
    return made


@dataclass
class Machines:
    """A Ray with tokens whose head, machine 1, only drivers use; the others have a CPU each.

    Attributes:
        environment: of commands that join it; they run on the head by ``prefix``.
    """

    tag: str
    log_folder: Path
    environment: dict[str, str]
    alive: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before a command that shall run on the head."""
        return ("ip", "netns", "exec", self._name(HEAD))

    def address(self, number: int) -> str:
        """Of a machine."""
        return f"{NETWORK}.{number}"

    def plug(self, number: int) -> None:
        """Connect a new machine, on which nothing runs yet."""
        name = self._name(number)
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", name, "master", self.tag)
        self.join(number)
        for command in (("link", "set", "lo", "up"), ("link", "set", "eth0", "up")):
            _ip("-n", name, *command)
        _ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")

    def start(self, number: int, *, hides: Path | None = None) -> None:
        """Start a Ray node there and wait until it is up; ``hides`` is a folder that it cannot see.

        Ray gives a node half a minute to come up, of which a busy machine may need more than one.
        """
        log = self.log_folder / f"machine{number}.log"
        for _ in range(STARTS):
            self.alive[number] = self._launched(number, hides, log)
            until(
                lambda: STARTED in log.read_text() or self.alive[number].poll() is not None, f"machine {number} hangs"
            )
            if self.alive[number].poll() is None:
                return
            self.kill(number)
        raise AssertionError(log.read_text())

    def _launched(self, number: int, hides: Path | None, log: Path) -> subprocess.Popen[bytes]:
        role = (
            ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
            if number == HEAD
            else [f"--address={self.address(HEAD)}:{PORT}", "--num-cpus=1"]
        )
        ray = [RAY, "start", "--block", f"--node-ip-address={self.address(number)}", *role]
        ray += [f"--object-store-memory={200 * 2**20}"]
        hiding = [] if hides is None else ["mount", "-t", "tmpfs", "none", str(hides), "&&"]
        inside = ["sh", "-c", " ".join([*hiding, "exec", *ray])]  # `ip netns exec` gives it mounts of its own
        with log.open("wb") as said:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._name(number), *inside],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def restart(self, number: int) -> None:
        """Start a node again that the Ray has given up, once it has noticed that."""
        until(lambda: self.alive[number].poll() is not None, f"machine {number} lives on")
        self.kill(number)
        self.start(number)

    def machine_of(self, pid: int) -> int | None:
        """Where a process runs; None of one that is gone."""
        told = subprocess.run(["ip", "netns", "identify", str(pid)], capture_output=True, text=True, check=False)
        name = told.stdout.strip()
        return int(name.removeprefix(self.tag)) if name else None

    def kill(self, number: int) -> None:
        """End all that runs on a machine, at once."""
        told = subprocess.run(["ip", "netns", "pids", self._name(number)], capture_output=True, text=True, check=True)
        for pid in told.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if node := self.alive.pop(number, None):
            node.wait()

    def cut(self, number: int) -> None:
        """Pull a machine's cable."""
        _ip("link", "set", self._name(number), "down")

    def join(self, number: int) -> None:
        """Put the cable back."""
        _ip("link", "set", self._name(number), "up")

    def remove(self) -> None:
        """Leave nothing."""
        names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
        for name in names:
            if name.startswith(self.tag):
                self.kill(int(name.removeprefix(self.tag)))
                _ip("netns", "del", name)
        _ip("link", "del", self.tag)

    def _name(self, number: int) -> str:
        return f"{self.tag}{number}"


@contextlib.contextmanager
def running_machines(count: int, log_folder: Path, **more: str) -> Iterator[Machines]:
    """Start a head and so many machines for the time being; their environment has ``more``."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
        token = Path(short) / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        environment = environment_of(short) | SOON_MISSED | more
        del environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]  # that switch belongs to a Ray on loopback
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": f"{NETWORK}.{HEAD}:{PORT}",
        }
        machines = Machines(f"rd{secrets.token_hex(2)}n", log_folder, environment)
        _ip("link", "add", machines.tag, "type", "bridge")
        _ip("link", "set", machines.tag, "up")
        try:
            for number in range(HEAD, HEAD + 1 + count):
                machines.plug(number)
                machines.start(number)
            yield machines
        finally:
            machines.remove()


def until(met: Callable[[], object], complaint: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.1)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
