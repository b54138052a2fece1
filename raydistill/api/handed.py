"""Networks that are handed over as objects: the names by which experiments speak of them, and who builds them.

An experiment names its networks, and a network of one's own is ``package.module:function``. One that was handed over
gets such a name in this module, as ``raydistill.api.handed:TinyNet_3f2a9c0d41b7``, so that everything which builds
networks by name builds it too: caches, training, sweeps, the report card. In the process that handed it over the name
stands for a copy of the object. Ray's workers ask an actor of that process, which tells them all but the weights. In
any other process nobody knows it.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from raydistill.api.identity import name_of
from raydistill.errors import ConfigError, first_line
from raydistill.models.weights import save_weights, weights_fingerprint

PREFIX = f"{__name__}:"
_NAMES = re.compile(r"\w+_[0-9a-f]{12}")
_SHOWN = 16

_ours: dict[str, nn.Module] = {}
"""What this process handed over, by the names that experiments use."""


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """Return what builds a network of such a name, whether it can be built or not."""
    if not _NAMES.fullmatch(name):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return partial(_built, PREFIX + name)


def hand_over(network: nn.Module, role: str) -> str:
    """Keep a copy of a network, on the CPU, and return the name that stands for it in experiments of this process.

    Raises:
        ConfigError: it cannot be copied, or its state is empty or holds more than tensors of known shapes; the line
            begins with ``role``.
    """
    kind = type(network).__name__
    if any(is_lazy(value) for value in network.parameters()):
        raise ConfigError(f"{role}: {kind} has lazy layers that saw no image yet; run one batch through it first")
    state = network.state_dict()
    if not state:
        raise ConfigError(f"{role}: {kind} has neither parameters nor buffers, and so no weights")
    if strange := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise ConfigError(f"{role}: the state of {kind} holds '{strange[0]}', which is no tensor")
    try:
        kept = copy.deepcopy(network).cpu()
    except Exception as error:  # whatever the network's own parts raise
        raise ConfigError(f"{role}: {kind} cannot be copied: {first_line(error)}") from error
    name = PREFIX + name_of(kept)
    _ours[name] = kept
    return name


def write_weights(name: str, network: nn.Module, folder: Path) -> Path:
    """Write the weights of a network that was handed over as ``name``, in a file of their own.

    Raises:
        RunError: the file cannot be written.
    """
    path = folder / f"{name.removeprefix(PREFIX)}-{weights_fingerprint(network)[:_SHOWN]}.safetensors"
    if not path.is_file():
        save_weights(network, path)
    return path


@contextmanager
def offered(roles: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Let workers of the running Ray build networks for as long as the context lasts.

    Args:
        roles: what errors call a network, and its name.

    Raises:
        ConfigError: a network cannot be pickled.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Beside this process, with which it is to live: a node that is lost takes no network along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    keepers = []
    try:
        for name, data in {name: _pickled(role, name) for role, name in roles}.items():
            options: dict[str, Any] = {"name": name, "num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
            keeper = ray.remote(_Keeper).options(get_if_exists=True, scheduling_strategy=here, **options)
            keepers.append(keeper.remote(data))
        yield
    finally:
        for keeper in keepers:
            ray.kill(keeper)


class _Keeper:
    """An actor that holds a pickled network; Ray makes it anew with the same bytes should its process be lost."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def data(self) -> bytes:
        return self._data


def _pickled(role: str, name: str) -> bytes:
    from raydistill.api.pickling import pickled

    network = _ours[name]
    try:
        return pickled(network)
    except Exception as error:  # whatever the network's own parts raise
        kind = type(network).__name__
        raise ConfigError(f"{role}: {kind} cannot be sent to Ray's workers: {first_line(error)}") from error


def _built(name: str) -> nn.Module:
    """Build a network anew."""
    if name in _ours:
        return copy.deepcopy(_ours[name])
    from raydistill.api.pickling import unpickled

    return unpickled(_asked(name))


@lru_cache(maxsize=8)
def _asked(name: str) -> bytes:
    """Ask the process that handed a network over. Raises ``ConfigError`` where there is none."""
    ray = sys.modules.get("ray")  # a worker has it
    try:
        if ray is not None and ray.is_initialized():
            return bytes(ray.get(ray.get_actor(name).data.remote()))
    except ValueError:  # no actor of that name
        pass
    raise ConfigError(
        f"model '{name}': a network that another process handed to raydistill.distill, where alone it is known; call "
        "distill there again with the same networks and resume=True, whose result has card() and student"
    )
