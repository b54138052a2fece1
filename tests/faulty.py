"""What a network and a busy server do to requests: a proxy before an S3 server that can be told to misbehave.

Faults are asked for one by one (``proxy.expect``) and used up by the requests that they are meant for, in order.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

PIECE = 1 << 14
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code><Message>Please reduce your request rate.'
    b"</Message><Resource>/</Resource><RequestId>1</RequestId></Error>"
)


@dataclass
class Fault:
    """What happens to some of the requests of a method whose path, query included, matches."""

    kind: Callable[[Handler], None]
    method: str
    path: re.Pattern[str]
    times: float
    after: int
    least: int


@dataclass
class Proxy:
    """A door to a server: ``url`` stands for the server's own."""

    port: int
    server: tuple[str, int]
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Method and path of every request that came."""
    struck: int = 0
    """How many requests met a fault."""
    passed_on: int = 0
    """Bytes of bodies that the server was given."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def expect(
        self,
        kind: Callable[[Handler], None],
        method: str = "",
        path: str = "",
        *,
        times: float = 1,
        after: int = 0,
        least: int = 0,
    ) -> None:
        """Let a fault happen to requests to come, of any method and path where none is given.

        Args:
            kind: one of the faults below.
            method: such as ``PUT``.
            path: a regular expression, searched for.
            times: how many requests it happens to.
            after: how many it lets through before.
            least: bytes that a request's body must have for it.
        """
        self.faults.append(Fault(kind, method, re.compile(path), times, after, least))

    def heal(self) -> None:
        """Let nothing happen any more."""
        self.faults.clear()

    def fault_for(self, method: str, path: str, length: int) -> Callable[[Handler], None] | None:
        with self._lock:
            self.asked.append(f"{method} {path}")
            for fault in self.faults:
                fits = fault.method in ("", method) and fault.path.search(path) and length >= fault.least
                if fits and fault.after > 0:
                    fault.after -= 1
                elif fits and fault.times > 0:
                    fault.times -= 1
                    self.struck += 1
                    return fault.kind
        return None


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_any(self) -> None:
        length = int(self.headers.get("X-Amz-Decoded-Content-Length") or self.headers.get("Content-Length", 0))
        fault = self.proxy.fault_for(self.command, self.path, length)
        if fault is None:
            self.pass_on()
        else:
            fault(self)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def pass_on(
        self, *, upload: float = float("inf"), answer: float = float("inf"), pause: float = 0.0, silence: float = 0.0
    ) -> None:
        """Hand the request on and the answer back, either up to a number of bytes, waiting before each piece of both.

        ``silence`` is how long nothing of the answer comes.
        """
        upstream = http.client.HTTPConnection(*self.proxy.server, timeout=60)
        with contextlib.closing(upstream):
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.putheader("Connection", "close")
            upstream.endheaders()
            for piece in self._body():
                time.sleep(pause)
                part = piece[: int(min(upload, len(piece)))]
                upstream.send(part)
                self.proxy.passed_on += len(part)
                upload -= len(part)
                if upload <= 0:
                    abort(upstream.sock)
                    self.break_off()
                    return
            response = upstream.getresponse()
            time.sleep(silence)
            self._answer(response, answer, pause)

    def read_body(self) -> None:
        """Take the request and forget it."""
        for _ in self._body():
            pass

    def break_off(self) -> None:
        """End the connection as a cut cable or a dead server would: without a goodbye."""
        abort(self.connection)
        self.close_connection = True

    def _body(self) -> Iterator[bytes]:
        """The body as it came: chunks keep their frames."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int((line := self.rfile.readline()).split(b";")[0], 16):
                yield line + self.rfile.read(size + 2)
            yield line + self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(left, PIECE))
            if not piece:
                return
            left -= len(piece)
            yield piece

    def _answer(self, response: http.client.HTTPResponse, most: float, pause: float) -> None:
        data = response.read()
        head = [f"HTTP/1.1 {response.status} {response.reason}\r\n"]
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                head.append(f"{name}: {value}\r\n")
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        head.append(f"Content-Length: {length or 0}\r\n\r\n")
        self.wfile.write("".join(head).encode("latin-1"))
        for first in range(0, len(data), PIECE):
            time.sleep(pause)
            piece = data[first : first + PIECE][: int(min(most, PIECE))]
            self.wfile.write(piece)
            most -= len(piece)
            if most <= 0:
                self.break_off()
                return

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # of a client that was killed
            super().handle_one_request()
            return
        self.close_connection = True

    def log_message(self, format: str, *values: Any) -> None:
        del format, values


def cut_upload(after: int) -> Callable[[Handler], None]:
    """The connection breaks after so many bytes of the request's body, on both sides."""
    return lambda handler: handler.pass_on(upload=after)


def cut_answer(after: int) -> Callable[[Handler], None]:
    """The server did what it was asked for, but the connection breaks after so many bytes of its answer's body."""
    return lambda handler: handler.pass_on(answer=after)


def slow(pause: float) -> Callable[[Handler], None]:
    """Each 16 KiB, in either direction, take so many seconds."""
    return lambda handler: handler.pass_on(pause=pause)


def silent(seconds: float) -> Callable[[Handler], None]:
    """Nothing of the answer comes for so long."""
    return lambda handler: handler.pass_on(silence=seconds)


def busy(handler: Handler) -> None:
    """503, Slow Down: what S3 says to those that ask too often."""
    handler.read_body()
    handler.send_response(503, "Slow Down")
    handler.send_header("Content-Type", "application/xml")
    handler.send_header("Content-Length", str(len(SLOW_DOWN)))
    handler.send_header("Connection", "close")
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(SLOW_DOWN)


def dropped(handler: Handler) -> None:
    """The request never gets there, and no answer comes: the connection breaks."""
    handler.break_off()


def lost_answer(handler: Handler) -> None:
    """The server did what it was asked for, but nobody is told."""
    upstream = http.client.HTTPConnection(*handler.proxy.server, timeout=60)
    with contextlib.closing(upstream):
        names = {name: value for name, value in handler.headers.items() if name.lower() not in ("connection", "expect")}
        upstream.request(handler.command, handler.path, b"".join(handler._body()), names)
        upstream.getresponse().read()
    handler.break_off()


def abort(connection: socket.socket) -> None:
    """Close with a reset, whatever is on its way."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go whenever they want."""


@contextlib.contextmanager
def faulty(server: str) -> Iterator[Proxy]:
    """Put a proxy before the server of a URL for the time being."""
    parts = urlsplit(server)
    assert parts.hostname and parts.port
    handler = type("Bound", (Handler,), {})
    door = _Server(("127.0.0.1", 0), handler)
    proxy = Proxy(door.server_address[1], (parts.hostname, parts.port))
    handler.proxy = proxy  # type: ignore[attr-defined]
    thread = threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        door.shutdown()
        door.server_close()
        thread.join()
