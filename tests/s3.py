"""An S3 server of this machine, for tests of what lies on storages."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

# Before any Ray is started, whose workers take them over; on loopback nobody else looks at them.
os.environ.update(AWS_ACCESS_KEY_ID="tester", AWS_SECRET_ACCESS_KEY="secret", AWS_EC2_METADATA_DISABLED="true")


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(bucket: str) -> Iterator[str]:
    """Run a server on a free port of loopback, with one bucket: its URL."""
    port = free_port()
    program = Path(sys.executable).with_name("moto_server")
    process = subprocess.Popen(
        [str(program), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(port, process)
        request(f"{url}/{bucket}", "PUT")
        yield url
    finally:
        process.kill()  # it answers a gentler signal by an exception, which may get lost where it strikes
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.05)
    raise AssertionError("the server does not come up")


def request(url: str, method: str, body: bytes = b"") -> None:
    """Ask the server for something without signing it."""
    urllib.request.urlopen(
        urllib.request.Request(url, method=method, data=body, headers={"Content-Type": "text/plain"}), timeout=10
    ).close()
