"""Who may come in at a Ray, and which Rays are refused."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest

from raydistill import access
from raydistill.access import Door
from raydistill.errors import ConfigError
from tests.commands import PATIENCE
from tests.nodes import running_ray
from tests.s3 import free_port

TOKEN = "a" * 64


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", access.ALLOW_OPEN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("address", "is_so"),
    [
        ("127.0.0.1:6379", True),
        ("127.0.0.2", True),
        ("localhost:6379", True),
        ("[::1]:6379", True),
        ("ray://127.0.0.1:10001", True),
        ("http://127.0.0.1:8265", True),
        ("10.0.0.5:6379", False),
        ("0.0.0.0:8265", False),
        ("ray://head:10001", False),
        ("127.0.0.1.example.org:6379", False),
        ("localhost.example.org:6379", False),
        ("auto", False),
    ],
)
def test_loopback_is_told_by_the_whole_host(address: str, is_so: bool) -> None:
    assert access.is_loopback(address) is is_so


class Head(grpc.GenericRpcHandler):
    """Answers as a Ray's head, with or without asking for a token."""

    def __init__(self, asks: bool) -> None:
        self.asks = asks

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/ray.rpc.NodeInfoGcsService/CheckAlive":
            return None
        known = ("authorization", f"Bearer {TOKEN}") in details.invocation_metadata

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self.asks and not known:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@contextlib.contextmanager
def head(*, asks: bool) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Head(asks)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_head_that_asks_nobody_is_refused_in_one_line_that_says_what_to_do() -> None:
    with head(asks=False) as address, pytest.raises(ConfigError) as caught:
        access.prepare_to_join(address)
    said = str(caught.value)
    assert "\n" not in said
    for needed in (address, "without a token", "runs any code", "RAY_AUTH_MODE=token", f"{access.ALLOW_OPEN}=1"):
        assert needed in said
    assert caught.value.exit_code == 2


def test_it_is_joined_where_that_is_allowed_in_so_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with head(asks=False) as address:
        for not_enough in ("", "0", "true", "yes"):
            monkeypatch.setenv(access.ALLOW_OPEN, not_enough)
            with pytest.raises(ConfigError):
                access.prepare_to_join(address)
        monkeypatch.setenv(access.ALLOW_OPEN, "1")
        access.prepare_to_join(address)


def test_a_head_that_asks_is_shown_the_users_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that what is set now is undone
    with head(asks=True) as address:
        with pytest.raises(ConfigError, match=r"asks for a token, and there is none in .*auth_token"):
            access.prepare_to_join(address)
        (tmp_path / "token").write_text(f"{'b' * 64}\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        with pytest.raises(ConfigError, match="does not take the token"):
            access.prepare_to_join(address)
        assert os.environ["RAY_AUTH_MODE"] == ""
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        access.prepare_to_join(address)
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_nobody_at_home_is_left_to_ray_to_tell() -> None:
    assert access.knock("127.0.0.1:1") is Door.SILENT
    access.prepare_to_join("127.0.0.1:1")


@pytest.mark.parametrize(("status", "door"), [(200, Door.OPEN), (401, Door.LOCKED), (403, Door.LOCKED)])
def test_a_dashboard_is_open_where_it_lists_jobs_for_anybody(status: int, door: Door) -> None:
    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        assert access.knock_at_dashboard(f"127.0.0.1:{server.server_port}") is door
        thread.join()
    assert access.knock_at_dashboard("127.0.0.1:1") is Door.SILENT


def test_the_token_of_a_ray_of_our_own_is_made_for_this_user_alone(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        access.keep_token_private()
    finally:
        os.umask(before)
    file = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert len(bytes.fromhex(access.token())) == 32
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]


def test_one_that_ray_left_readable_is_closed_and_stays_the_same(tmp_path: Path) -> None:
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(TOKEN)
    file.chmod(0o644)
    assert not access.is_private(file)
    access.keep_token_private()
    assert access.is_private(file)
    assert access.token() == TOKEN


def test_one_that_the_user_named_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    access.keep_token_private()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert not (tmp_path / ".ray").exists()


ONE_NODE = """
import os, sys
from ray.cluster_utils import Cluster

cluster = Cluster()
cluster.add_node(
    num_cpus=1, node_ip_address="127.0.0.1", include_dashboard=False, object_store_memory=100 * 2**20,
    ray_client_server_port=int(os.environ["CLIENT_PORT"]),
)
print("RAY", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

JOINING = """
from raydistill import access
access.is_loopback = lambda address: {close}  # where False, this machine's loopback stands for another machine
if {tunnel}:
    access.prepare_to_join = lambda address: None  # as for an address on loopback, whose nodes are elsewhere
from raydistill.cluster import ensure_ray, security
from raydistill.errors import ConfigError
try:
    ensure_ray()
    print("joined;", *security())
except ConfigError as error:
    print("refused:", error, *security())
"""


def await_door(address: str, door: Door) -> None:
    """Its server starts beside the Ray that says it is there."""
    deadline = time.monotonic() + PATIENCE
    while (found := access.knock(address)) is Door.SILENT and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found is door


def joining(environment: dict[str, str], *, close: bool = False, tunnel: bool = False) -> str:
    command = [sys.executable, "-c", JOINING.format(close=close, tunnel=tunnel)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_a_real_ray_without_tokens_beyond_loopback_is_refused(tmp_path: Path) -> None:
    port = str(free_port())
    with running_ray(ONE_NODE, tmp_path, RAY_AUTH_MODE="disabled", CLIENT_PORT=port) as (_, environment):
        await_door(f"ray://127.0.0.1:{port}", Door.OPEN)
        refused = joining(environment)
        assert refused.startswith(f"refused: RAY_ADDRESS = {environment['RAY_ADDRESS']}: this Ray lets in anybody")
        assert f"False the Ray at {environment['RAY_ADDRESS']} lets in anybody" in refused
        assert joining(environment, tunnel=True).startswith("refused: the Ray at 127.0.0.1:")
        allowed = joining(environment | {access.ALLOW_OPEN: "1"})
        assert allowed.startswith("joined; True")
        assert f"which {access.ALLOW_OPEN} allows" in allowed
        assert joining(environment, close=True).startswith("joined; True the Ray at 127.0.0.1:")


@pytest.mark.slow
def test_a_real_ray_with_tokens_is_joined_with_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    port = str(free_port())
    there = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "CLIENT_PORT": port}
    with running_ray(ONE_NODE, tmp_path, **there) as (_, environment):
        await_door(f"ray://127.0.0.1:{port}", Door.LOCKED)
        plain = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH")}
        assert "asks for a token, and there is none" in joining(plain)
        joined = joining(plain | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
        assert joined.startswith("joined; True")
        assert "asks for a token; token file" in joined
