"""How many actors build a cache, and what each of them gets, from what Ray has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raydistill.errors import RunError

if TYPE_CHECKING:
    from raydistill.cache_config import CacheConfig
    from raydistill.config import Experiment

_CPUS_PER_ACTOR = 4
Nodes = Sequence[Mapping[str, float]]
"""Resources of each node that is alive, such as ``{"CPU": 4.0, "GPU": 1.0}``."""


@dataclass(frozen=True)
class Pool:
    """Between ``least`` and ``most`` actors with ``cpus`` and ``gpus`` each."""

    least: int
    most: int
    cpus: int
    gpus: float


def choose_pool(experiment: Experiment, shards: int, nodes: Nodes) -> Pool:
    """Choose the pool for so many shards; what the configuration leaves open follows from the nodes.

    One actor with several threads comes up faster and holds one copy of the teacher; beyond a few threads small
    networks gain nothing, so more CPUs mean more actors.

    Raises:
        RunError: if Ray has not what is asked for.
    """
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
    config = experiment.cache
    gpus = _gpus_per_actor(experiment, nodes)
    cpus = config.cpus_per_actor or _cpus_per_actor(config, shards, nodes, gpus)
    room = sum(_room(node, cpus, gpus) for node in nodes)
    least, most = _bounds(config)
    if least is None or most is None:
        least = most = room
    if not room or least > room:
        each = f"{cpus} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        asked = f"cache.actors = {least}" if least > room else "building"
        raise RunError(f"{asked}: Ray has room for {room} actors of {each} each; it has {_listed(nodes)}")
    return Pool(min(least, shards), min(most, shards), cpus, gpus)


def least_pool(experiment: Experiment, most: Mapping[str, float]) -> tuple[dict[str, float], int]:
    """Return what an actor takes at least, and how many there have to be, of a cluster that has at ``most`` so much."""
    config, use_gpu = experiment.cache, experiment.scale.use_gpu
    gpu = use_gpu is True or (use_gpu == "auto" and most.get("GPU", 0.0) > 0)
    least, _ = _bounds(config)
    return {"CPU": config.cpus_per_actor or 1, "GPU": (config.gpus_per_actor or 1) if gpu else 0}, least or 1


def _gpus_per_actor(experiment: Experiment, nodes: Nodes) -> float:
    wanted, use_gpu = experiment.cache.gpus_per_actor, experiment.scale.use_gpu
    there = any(node.get("GPU", 0) for node in nodes)
    if use_gpu is True and not there:
        raise RunError("scale.use_gpu: true, but Ray has no GPU; set it to auto")
    if wanted and (use_gpu is False or not there):
        reason = "scale.use_gpu is false" if use_gpu is False else "Ray has no GPU"
        raise RunError(f"cache.gpus_per_actor = {wanted:g}, but {reason}; leave it out")
    return (wanted or 1.0) if there and use_gpu is not False else 0.0


def _cpus_per_actor(config: CacheConfig, shards: int, nodes: Nodes, gpus: float) -> int:
    smallest, total = (pick(int(node["CPU"]) for node in nodes) for pick in (min, sum))
    _, most = _bounds(config)
    if gpus:
        on_a_node = [(int(node["CPU"]), _room(node, 0, gpus)) for node in nodes]
        return max(1, min(_CPUS_PER_ACTOR, *(cpus // actors for cpus, actors in on_a_node if actors)))
    if most is not None:
        return max(1, min(smallest, total // most))
    return min(smallest, max(_CPUS_PER_ACTOR, total // shards))


def _room(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    """Number of actors that a node can hold."""
    by_gpu = node.get("GPU", 0.0)
    found = [int(node["CPU"]) // cpus] if cpus else []
    if 0.0 < gpus < 1.0:
        found.append(int(by_gpu) * int(1.0 / gpus + 1e-6))  # an actor's share lies on one GPU
    elif gpus:
        found.append(int(by_gpu // gpus))
    return min(found)


def _bounds(config: CacheConfig) -> tuple[int | None, int | None]:
    actors = config.actors
    return actors if isinstance(actors, tuple) else (actors, actors)


def _listed(nodes: Nodes) -> str:
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    return f"{cpus} CPUs and {gpus} GPUs on {len(nodes)} node{'s' if len(nodes) != 1 else ''}"
