"""Finds out, before a run does anything, whether every node sees the files that it needs.

Nodes that join later are not asked: an autoscaler starts them as the others were started.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.errors import ConfigError
from raydistill.files import write_atomically

if TYPE_CHECKING:
    from raydistill.config import Experiment

Sights = Mapping[str, str]
"""Path -> what is there, in words; paths where nothing is are left out."""
ANSWER_S = 120.0
"""A node may first have to start a process."""
LEFT_S = 3600.0
"""A mark so old belongs to a command that was killed."""
_MARK = ".seen-"


def read_by(experiment: Experiment) -> dict[str, str]:
    """Return key -> path of all that an experiment reads from a file system, as it was given."""
    found: dict[str, str | None] = {"data.root": experiment.data.root, "data.spool": experiment.data.spool}
    if experiment.data.modalities is not None:
        found["data.modalities.teacher_root"] = experiment.data.modalities.teacher_root
    found |= {f"{key}.weights": network.weights for key, network in _networks(experiment).items()}
    if experiment.reads_cache:
        found["cache.root"] = experiment.cache.root
    return {key: path for key, path in found.items() if path is not None and "://" not in path}


def _networks(experiment: Experiment) -> dict[str, Any]:
    networks: dict[str, Any] = {"student": experiment.student}
    if experiment.teacher is not None:
        networks["teacher"] = experiment.teacher
    for key, several in (("ensemble", experiment.ensemble), ("peers", experiment.peers)):
        networks |= {f"{key}.{number}": network for number, network in enumerate(several)}
    return networks


def require_reachable(experiment: Experiment, written: Mapping[str, str]) -> None:
    """Ask every node that can get work for what the experiment reads, and for a file put where it writes.

    Nothing is asked where there is one node. ``written`` maps keys to folders, which are there already.

    Raises:
        ConfigError: with the first node that lacks something, and its path.
        RunError: where nothing can be written.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    wanted = read_by(experiment)
    with _marked({key: path for key, path in written.items() if "://" not in path}) as marks:
        wanted |= {key: str(mark) for key, mark in marks.items()}
        if "cache.root" not in marks and (cached := _one_cache(wanted.get("cache.root"))):
            wanted["cache.root"] = cached
        answers = _answers([node for node in nodes if _works(node)], [*wanted.values()])
        if problem := first_problem(wanted, look([*wanted.values()]), answers, marks.keys()):
            raise ConfigError(problem)


def look(paths: Sequence[str]) -> Sights:
    """Say what this machine sees at each path."""
    found = {}
    for path in paths:
        with suppress(OSError):
            about = Path(path).stat()
            found[path] = "a folder" if Path(path).is_dir() else f"a file of {about.st_size} bytes"
    return found


def first_problem(
    wanted: Mapping[str, str], here: Sights, answers: Mapping[str, Sights], written: Collection[str] = ()
) -> str | None:
    """Compare what nodes see with what is ``here``; return one line about the first that sees something else.

    Args:
        wanted: key of the experiment -> path.
        here: what the driver sees; what it does not see itself is left to whoever reads it.
        answers: name of a node -> what it sees.
        written: keys whose path is a file that was just written for the purpose.
    """
    lacking = {
        name: [key for key, path in wanted.items() if path in here and seen.get(path) != here[path]]
        for name, seen in answers.items()
    }
    lacking = {name: keys for name, keys in lacking.items() if keys}
    if not lacking:
        return None
    name, (key, *_) = next(iter(lacking.items()))
    path, others = wanted[key], len(lacking) - 1
    shown = str(Path(path).parent) if key in written else path
    if key in written:
        reason = "what is written there by this machine does not appear on that node; use storage that all nodes share"
    elif path in answers[name]:
        reason = f"is {answers[name][path]} there, but {here[path]} here; use the same on all nodes"
    else:
        absolute = "" if Path(path).is_absolute() else ", and an absolute path"
        reason = f"is not there; use storage that all nodes share{absolute}, or put a copy there"
    more = f" (and so do {others} more)" if others else ""
    return f"node {name} cannot get work{more}: {key} = {shown}: {reason}"


@contextmanager
def _marked(folders: Mapping[str, str]) -> Iterator[dict[str, Path]]:
    """Put a file into each folder for the time being, of a name that no node can remember as absent.

    Those of commands that were killed meanwhile are removed.
    """
    marks = {key: Path(folder).resolve() / f"{_MARK}{secrets.token_hex(8)}" for key, folder in folders.items()}
    for mark in marks.values():
        for left in mark.parent.glob(f"{_MARK}*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > LEFT_S:
                    left.unlink()
    try:
        for mark in marks.values():
            write_atomically(mark, b"")
        yield marks
    finally:
        for mark in marks.values():
            mark.unlink(missing_ok=True)


def _one_cache(root: str | None) -> str | None:
    """Return the manifest of one of the caches, which another folder of the same name would not have."""
    return next((str(path) for path in sorted(Path(root).glob("*/manifest.json"))), None) if root else None


def _works(node: Mapping[str, Any]) -> bool:
    return any(node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU"))


def _answers(nodes: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> dict[str, Sights]:
    """Let every node look; its name is host, address and the beginning of Ray's id."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for node in nodes:
        # It takes no CPU, so that a node which is at work answers as well.
        there = ray.remote(look).options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        )
        asked.append((node, there.remote(paths)))
    answers: dict[str, Sights] = {}
    for node, answer in asked:
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
        try:
            answers[name] = ray.get(answer, timeout=ANSWER_S)
        except ray.exceptions.RayError as error:
            if not _alive(node["NodeID"]):
                continue  # a node that was lost meanwhile gets no work
            reason = str(error).strip().splitlines()[-1][:300]
            raise ConfigError(
                f"node {name} cannot get work: it does not run this package's code ({reason}); install the same "
                "version on every node, or start the run with raydistill submit"
            ) from None
    return answers


def _alive(node_id: str) -> bool:
    import ray

    return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id)
