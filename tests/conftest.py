"""One Ray for the whole test run, and experiments small enough for seconds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import Experiment, parse_experiment
from tests.nodes import Nodes, running_nodes

# A Ray that runs on the machine for other purposes must not be joined by tests.
os.environ.pop("RAY_ADDRESS", None)

# Trackers must not call home from tests.
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline"}


TESTS = Path(__file__).parent
WHOLE_COMMANDS = {"test_cli.py", "test_demo.py", "test_sweep.py", "test_trainer.py"}
"""Files whose tests start commands, and so Rays, of their own."""
LONG = {"test_kills.py", "test_machines.py", "test_restart.py"}
"""Files with tests of many minutes: begun last, they would be waited for by one test process alone."""
SHARED_RAY = re.compile(r"\bray_session\b|: Built\b")
"""The fixtures that need it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that need Ray, then those that take longest; the others fill what is left of the time."""
    items.sort(key=lambda item: (not _needs_ray(item.path), item.path.name not in LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep all that needs Ray in one of the test processes: one shared Ray, and not two sets of workers at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class RayTogether(LoadScopeScheduling):
        """Every test goes where there is room, but those that need Ray stay together."""

        def _split_scope(self, nodeid: str) -> str:
            return "ray" if _needs_ray(config.rootpath / nodeid.partition("::")[0]) else nodeid

    return RayTogether(config, log)


@cache
def _needs_ray(file: Path) -> bool:
    return file.name in WHOLE_COMMANDS or SHARED_RAY.search(file.read_text("utf-8")) is not None


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray with two CPUs, started at the first test that needs it."""
    import ray

    from raydistill.cluster import ensure_ray

    ensure_ray(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """A Ray of three nodes, for commands that join it."""
    with running_nodes(tmp_path) as nodes:
        yield nodes


def digits(folder: Path, **sections: Any) -> Experiment:
    """A student of resnet8 on 240 digits, trained for two epochs; ``sections`` replace whole sections."""
    values: dict[str, Any] = {
        "name": "digits",
        "output": str(folder / "runs"),
        "data": {"name": "digits", "subset": 240, "validation": 0.2, "augment": {"crop": 1}},
        "student": {"model": "resnet8"},
        "methods": {"ce": {}},
        "train": {"epochs": 2, "batch_size": 48},
        "cache": {"root": str(folder / "cache")},
    }
    return parse_experiment(values | sections)


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a resnet14 that has not learnt anything, which is enough to be a teacher in tests."""
    import torch

    from raydistill.models.weights import save_weights
    from raydistill.models.zoo import build_model

    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "model.safetensors"
    save_weights(build_model("resnet14", 10, in_channels=1), path)
    return path


def teaching(weights: Path) -> dict[str, Any]:
    """The section of the experiment that names the untrained teacher."""
    return {"model": "resnet14", "weights": str(weights)}
