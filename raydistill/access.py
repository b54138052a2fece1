"""Who may come in at a Ray: its doors are tried as a stranger would try them, and as the user with a token.

Whoever may talk to a Ray runs any code on its machines. Ray asks for a token only where it was started so
(``RAY_AUTH_MODE=token``), and its head listens on all interfaces of its machine unless it was bound to loopback.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import stat
import urllib.error
import urllib.request
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

from raydistill.errors import ConfigError

ALLOW_OPEN = "RAYDISTILL_ALLOW_OPEN_RAY"
"""The environment variable that, set to 1, lets a command join a Ray which lets in anybody."""
TOKEN_FILE = "RAY_AUTH_TOKEN_PATH"
MODE = "RAY_AUTH_MODE"
_PATIENCE_S = 5.0
CLIENT = "ray://"
"""How an address of Ray Client begins."""
_LEAST_QUESTIONS = {
    CLIENT: ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06"),  # its type is PING
    "": ("/ray.rpc.NodeInfoGcsService/CheckAlive", b""),
}
"""What each kind of address answers to anybody who may come in, and the message that asks for it."""
_FORBIDDEN = (401, 403)


class Door(Enum):
    """What happens to who knocks."""

    OPEN = "lets in anybody who reaches it, without a token"
    LOCKED = "asks for a token"
    SILENT = "does not answer"


def is_loopback(address: str) -> bool:
    """Whether an address, with or without scheme and port, is one that only this machine can reach."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def knock(address: str, token: str = "") -> Door:
    """Ask the head at ``HOST:PORT`` or ``ray://HOST:PORT`` whether it is there, with or without a token."""
    import grpc

    scheme = CLIENT if address.startswith(CLIENT) else ""
    method, message = _LEAST_QUESTIONS[scheme]
    said = (("authorization", f"Bearer {token}"),) if token else ()
    # A proxy of the environment is not the way that others would take.
    with grpc.insecure_channel(address.removeprefix(scheme), options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(method)(message, timeout=_PATIENCE_S, metadata=said)
        except grpc.RpcError as error:
            locked = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return Door.LOCKED if locked else Door.SILENT
    return Door.OPEN


def knock_at_dashboard(address: str) -> Door:
    """Ask the dashboard at ``HOST:PORT`` for its jobs, which whoever may list may also add to."""
    url = address if "://" in address else f"http://{address}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/api/jobs/", timeout=_PATIENCE_S):
            return Door.OPEN
    except urllib.error.HTTPError as error:
        return Door.LOCKED if error.code in _FORBIDDEN else Door.OPEN
    except (OSError, ValueError):
        return Door.SILENT


def refuse_open(what: str, door: Door) -> None:
    """Raise ``ConfigError`` for a door that is open to anybody, unless the user said that it may be."""
    if door is Door.OPEN and not open_is_allowed():
        raise ConfigError(
            f"{what} {door.value}, and whoever is in runs any code on its machines; start it with {MODE}=token (the "
            "token of `ray get-auth-token --generate` belongs on every node and on this machine, readable by you "
            f"alone), or set {ALLOW_OPEN}=1 to join it all the same"
        )


def open_is_allowed() -> bool:
    """Whether the user said so."""
    return os.environ.get(ALLOW_OPEN) == "1"


def prepare_to_join(address: str) -> None:
    """Try a head beyond loopback before Ray does, and have Ray show the user's token where one is asked for.

    Ray itself would show a token only where ``RAY_AUTH_MODE`` says so, and without one try for half a minute.

    Raises:
        ConfigError: where it lets in anybody, or does not take the user's token.
    """
    door = knock(address)
    refuse_open(f"RAY_ADDRESS = {address}: this Ray", door)
    if door is not Door.LOCKED:
        return
    mine = token()
    if not mine:
        raise ConfigError(
            f"RAY_ADDRESS = {address}: this Ray asks for a token, and there is none in {token_file()}; copy the one "
            f"of its head there, or name its file in {TOKEN_FILE}"
        )
    if knock(address, mine) is Door.LOCKED:
        raise ConfigError(
            f"RAY_ADDRESS = {address}: this Ray does not take the token of {token_file() or 'RAY_AUTH_TOKEN'}; copy "
            "that of its head"
        )
    os.environ[MODE] = "token"


def token_file() -> Path | None:
    """Where Ray looks for the token; None where it stands in the environment itself."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return None
    given = os.environ.get(TOKEN_FILE)
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def token() -> str:
    """Return the user's token, or an empty text."""
    file = token_file()
    if file is None:
        return os.environ["RAY_AUTH_TOKEN"].strip()
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def is_private(file: Path) -> bool:
    """Whether only its owner can read or write a file; one that is not there is."""
    try:
        return not stat.S_IMODE(file.stat().st_mode) & 0o077
    except OSError:
        return True


def keep_token_private() -> None:
    """See to it that the token of a Ray of our own can be read by this user alone; make one where there is none.

    Ray makes one by itself, but other users of the machine, who can reach its loopback too, may then read it. A file
    that the user named is left as it is, for ``raydistill doctor`` to judge.
    """
    file = token_file()
    if file is None or os.environ.get(TOKEN_FILE) or os.environ.get(MODE, "token").lower() != "token":
        return
    with contextlib.suppress(OSError):  # Ray says what is wrong with the folder
        if file.exists():
            if not is_private(file) and file.stat().st_uid == os.getuid():
                file.chmod(0o600)
            return
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as whole:
                whole.write(secrets.token_hex(32))
            os.link(draft, file)  # another process may have been quicker
        finally:
            draft.unlink(missing_ok=True)
