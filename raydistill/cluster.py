"""Starts Ray, or joins the one that runs."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydistill import access
from raydistill.access import Door
from raydistill.errors import ConfigError, RunError, last_line
from raydistill.patience import patient_start
from raydistill.raylet import stand_by_raylet

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

LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_prestart_worker_first_driver": "0",
    "MALLOC_ARENA_MAX": "2",
}
"""Switches of a Ray on loopback. Without the first one Ray turns 127.0.0.1 back into the machine's own address: one
that is started listens to everybody, and who joins another waits for ever. Without the second it starts processes that
no actor takes over, while a run waits. The third one is glibc's: it gives each thread a heap of its own, and those that
read ahead begin anew with every epoch, so that more and more heaps would keep what none of them uses."""

_OWN = ("", "local")
"""Values of RAY_ADDRESS with which a command starts a Ray of its own."""
_SILENT = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
NODES_S = 1800.0
"""A cloud takes minutes to start a machine, fetch an image and install what is missing."""
NOT_HERE = {
    "ray://": "Ray Client cannot carry what a run keeps beside its workers",
    "http": "that is where jobs are submitted to",
}
"""Kinds of addresses that no process can join, and why."""


def join(address: str) -> None:
    """Let this process, and whatever it starts, join the Ray at ``auto`` or ``host:port``.

    Raises:
        ConfigError: where no process can join such an address.
    """
    _require_joinable(address, "--address")
    os.environ["RAY_ADDRESS"] = address


def _require_joinable(address: str, given: str) -> None:
    for beginning, reason in NOT_HERE.items():
        if address.startswith(beginning):
            raise ConfigError(
                f"{given} = {address}: {reason}; run this on a node of the cluster with auto or host:port, or send it "
                "there: raydistill submit --address http://127.0.0.1:8265 ..."
            )
    if address != "auto" and not re.fullmatch(r"(\[[^]]+\]|[^:]+):\d+", address):
        raise ConfigError(f"{given} = {address}: must be auto or host:port, such as 10.0.0.5:6379")


def ensure_ray(**options: Any) -> None:
    """Join the Ray that RAY_ADDRESS names, or start one that is bound to loopback and writes to files.

    Raises:
        ConfigError: where there is none at that address, it does not let this process in, or it lets in anybody.
        RunError: where one that is started does not come up.
    """
    address = _address_to_join()
    on_loopback = not address or access.is_loopback(address)
    for name, value in {**QUIET, **LOCAL}.items() if on_loopback else QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        worker = getattr(ray.get_runtime_context(), "worker", None)
        if worker is not None and worker.mode == ray.SCRIPT_MODE:  # in workers the driver has done so
            _refuse_open_head()
        return
    if on_loopback:
        # Ray reads that switch as it is imported, which somebody else may have done before.
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    if address:
        _join(address, options)
    else:
        access.keep_token_private()
        # Not the one that `ray start` noted down last, which may be gone, or somebody else's.
        own = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            with patient_start():
                ray.init(**{**_SILENT, **own, **options})
        except Exception as error:  # Ray raises many kinds; each means that one of its processes could not go on
            raise RunError(
                f"Ray could not be started: {' '.join(str(error).split())[:300]} Its logs lie in "
                f"{os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs; on a busy machine, try again"
            ) from error
        stand_by_raylet()


def _join(address: str, options: Mapping[str, Any]) -> None:
    import ray

    if not access.is_loopback(address):
        access.prepare_to_join(address)
        ray._raylet.Config.initialize("")  # Ray read RAY_AUTH_MODE as it was imported
    try:
        ray.init(**{**_SILENT, **options})
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise ConfigError(
            f"RAY_ADDRESS = {address}: no Ray can be joined there ({last_line(error.__cause__ or error)}); start one, "
            "unset it to let this command start its own, or, where this machine is none of its nodes, use raydistill "
            "submit"
        ) from None
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

    head = ray.get_runtime_context().gcs_address
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


def _address_to_join() -> str:
    """Return RAY_ADDRESS, of ``auto`` the address that `ray start` noted down on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in _OWN:
        return ""
    _require_joinable(address, "RAY_ADDRESS")
    if address == "auto":
        noted = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        if not noted.is_file():
            raise ConfigError("RAY_ADDRESS = auto: no Ray runs on this machine; `ray start` one, or name its host:port")
        address = os.environ["RAY_ADDRESS"] = noted.read_text().strip()
    return address


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


def object_store_bytes() -> int:
    """Return the bytes that the smallest object store of the running Ray's nodes holds."""
    import ray

    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    return int(min(size for size in stores if size))


def await_room(each: Mapping[str, float], count: int) -> None:
    """Let a cluster that grows with its work bring nodes for ``count`` processes of ``each``, and wait for them.

    Nothing is awaited where there is room, or where the cluster cannot grow so far; who needs it says so then.

    Args:
        each: of one process, such as ``{"CPU": 4, "GPU": 1}``.
        count: of processes.

    Raises:
        RunError: where the nodes do not come within half an hour.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    each = {kind: float(amount) for kind, amount in each.items() if amount}
    there = sum(_room(node["Resources"], each) for node in ray.nodes() if node["Alive"])
    most = most_resources()
    if there >= count or any(most.get(kind, 0.0) < count * amount for kind, amount in each.items()):
        return
    # It is this process's, so that nodes go again should it die, as they would not with a request to the autoscaler.
    asked = placement_group([each] * count, strategy="PACK")
    try:
        if not asked.wait(NODES_S):
            raise RunError(
                f"{count} x {each} were asked of the cluster, which has room for {there}, but no nodes came within "
                f"{NODES_S / 60:.0f} minutes; `ray status` says what is missing"
            )
    finally:
        remove_placement_group(asked)


def most_resources() -> Mapping[str, float]:
    """Return what the running Ray has once all nodes are up that it may start; nothing where it starts none."""
    import ray

    return ray._private.state.state.get_max_resources_from_cluster_config() or {}


def _room(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    return min(int(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in each.items())


def quiet_data() -> None:
    """Leave Ray Data's messages to its log files."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if not hasattr(handler, "baseFilename") and "File" not in type(handler).__name__:
            handler.setLevel(logging.CRITICAL)


def quiet_tune() -> None:
    """Leave out what Ray Tune says, with tracebacks, of trials that it begins again; we tell of them in a line."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
