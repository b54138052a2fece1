"""Starts Ray, or joins the one that runs."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from raydistill import access
from raydistill.access import Door
from raydistill.errors import ConfigError

QUIET = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
"""Ray's switches: fewer processes beside a run on one machine, no output but ours, paths as the user gave them, and no
thread that is left over from a run which connects to somebody else's Ray."""

LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_prestart_worker_first_driver": "0"}
"""Switches of a Ray on loopback. Without the first one Ray turns 127.0.0.1 back into the machine's own address: one
that is started listens to everybody, and who joins another waits for ever. Without the second it starts processes that
no actor takes over, while a run waits."""


_OWN = ("", "local")
"""Values of RAY_ADDRESS with which a command starts a Ray of its own."""


def ensure_ray(**options: Any) -> None:
    """Join the Ray that RAY_ADDRESS names, or start one that is bound to loopback and writes to files.

    Raises:
        ConfigError: where there is none at that address, it does not let this process in, or it lets in anybody.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    joins = address not in _OWN
    on_loopback = not joins or access.is_loopback(address)
    for name, value in {**QUIET, **LOCAL}.items() if on_loopback else QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        worker = getattr(ray.get_runtime_context(), "worker", None)
        if worker is not None and worker.mode == ray.SCRIPT_MODE:  # in workers the driver has done so
            _refuse_open_head()
        return
    if not joins:
        access.keep_token_private()
    elif not on_loopback and address != "auto":
        access.prepare_to_join(address)
        ray._raylet.Config.initialize("")  # Ray read RAY_AUTH_MODE as it was imported
    if on_loopback:
        # Ray reads that switch as it is imported, which somebody else may have done before.
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    # Not the one that `ray start` noted down last, which may be gone, or somebody else's.
    own = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
            **{**({} if joins else own), **options},
        )
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise ConfigError(
            f"RAY_ADDRESS = {address}: no Ray can be joined there ({_last_words(error)}); start one, or unset it to "
            "let this command start its own"
        ) from None
    if joins:
        try:
            _refuse_open_head()
        except ConfigError:
            ray.shutdown()
            raise


def security() -> tuple[bool, str]:
    """Say whether strangers can come in: at the head, at the dashboard, or with a token that they can read.

    Returns:
        Whether all is as it should be, and what was found.
    """
    ray = sys.modules.get("ray")
    doors = _doors() if ray is not None and ray.is_initialized() else _door_outside()
    said = [f"{what} {door.value if door else 'is on loopback'}" for what, door in doors.items()]
    is_open = Door.OPEN in doors.values()
    if is_open and access.open_is_allowed():
        said.append(f"which {access.ALLOW_OPEN} allows")
    file = access.token_file()
    private = file is None or access.is_private(file)
    if file is not None and file.is_file():
        said.append(f"token file {file} " + ("is private" if private else f"can be read by others; chmod 600 {file}"))
    return private and (not is_open or access.open_is_allowed()), "; ".join(said)


def _refuse_open_head() -> None:
    """Raise ``ConfigError`` where head or dashboard of the joined Ray let in anybody."""
    for what, door in _doors().items():
        if door is not None:
            access.refuse_open(what, door)


def _doors() -> dict[str, Door | None]:
    """What the joined Ray's head and dashboard do with strangers; None where only this machine reaches them."""
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    head = address if address.startswith("ray://") else ray.get_runtime_context().gcs_address
    # A head that is reached through a tunnel, or by its own machine, has an address on loopback as well.
    places = [head, *(node["NodeManagerAddress"] for node in ray.nodes())]
    beyond = any(not access.is_loopback(place) for place in places)
    doors = {f"the Ray at {head}": access.knock(head) if beyond else None}
    dashboard = dashboard_address()
    if dashboard:
        reachable = not access.is_loopback(dashboard)
        doors[f"its dashboard at {dashboard}"] = access.knock_at_dashboard(dashboard) if reachable else None
    return doors


def _door_outside() -> dict[str, Door | None]:
    """What the Ray that RAY_ADDRESS names does with strangers, where it was not joined."""
    address = os.environ.get("RAY_ADDRESS", "")
    return {f"the Ray at {address}": access.knock(address)} if address not in {*_OWN, "auto"} else {}


def joins_another() -> bool:
    """Whether this process is, or will be, in a Ray that it does not start."""
    ray = sys.modules.get("ray")  # not imported here: it reads our switches as it is
    return os.environ.get("RAY_ADDRESS", "") not in _OWN or (ray is not None and ray.is_initialized())


def has_dashboard() -> bool:
    """Whether the running Ray has one, which answers questions about actors too; unknown counts as yes."""
    return dashboard_address() != ""


def dashboard_address() -> str | None:
    """Return host and port of the running Ray's dashboard: empty where it has none, None where that is unknown."""
    try:
        from ray._private.ray_constants import KV_NAMESPACE_DASHBOARD
        from ray.experimental.internal_kv import _internal_kv_get
    except ImportError:
        return None
    # What workers are told of it by other ways is where it would be.
    url: bytes | None = _internal_kv_get("webui:url", namespace=KV_NAMESPACE_DASHBOARD)
    return None if url is None else url.decode()


def _last_words(error: BaseException) -> str:
    """Return the last line of what caused an error, where Ray says what went wrong."""
    cause = error.__cause__ or error
    return str(cause).strip().splitlines()[-1][:300]


def object_store_bytes() -> int:
    """Return the bytes that the smallest object store of the running Ray's nodes holds."""
    import ray

    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    return int(min(size for size in stores if size))


def quiet_data() -> None:
    """Leave Ray Data's messages to its log files."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if not hasattr(handler, "baseFilename") and "File" not in type(handler).__name__:
            handler.setLevel(logging.CRITICAL)
