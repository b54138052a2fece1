"""The tables below experiments/papers/ at their small scale: all experiments train, all cells are measured.

Real images, networks and methods, in this process and without Ray; teachers are untrained and run live.
"""

from __future__ import annotations

import math
from collections import defaultdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.config import Experiment
from raydistill.data import idx
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train, split_train
from raydistill.data.resident import ResidentSet
from raydistill.evaluation.images import Images, transfer_images
from raydistill.evaluation.protocols import PROTOCOLS
from raydistill.evaluation.subject import Subject
from raydistill.models.loading import build_described
from raydistill.models.weights import save_weights
from raydistill.training.assembly import assemble
from raydistill.training.loop import fit
from raydistill.training.material import Material, prepare
from raydistill.training.stages import run_stages
from tests.test_papers import asked, expanded, garments, memory, plans, script

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
MINIS = plans.table_names()
SETTINGS = sorted({part.settings for name in MINIS for part in plans.load_plan(name).scales["mini"]})
CPU = torch.device("cpu")
TEST_IMAGES = 300
FROM_ELSEWHERE = {memory.MEMORY, memory.SHARE}
"""Measures of no protocol: those that are counted."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Fashion-MNIST is not on this machine"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("minis")


@pytest.fixture(autouse=True, scope="module")
def _files_are_unpacked_once() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idx, "read_idx", cache(idx.read_idx))
        yield


def ready(experiment: Experiment, files: Path) -> Experiment:
    """Return the experiment with an untrained teacher, which runs live as there is no cache of it."""
    if experiment.teacher is None:
        return experiment
    model = experiment.teacher.model
    path = files / f"{model}.safetensors"
    if not path.is_file():
        shape, classes = experiment.data.known.shape, experiment.data.known.num_classes
        assert shape is not None and classes is not None
        plain = experiment.teacher.model_copy(update={"weights": None, "layout": None})
        save_weights(build_described(plain, classes, shape[0]), path)
    weights = {"teacher.weights": str(path), "teacher.source": "live"}
    if getattr(experiment.methods.get("protocpc"), "prototypes_file", None):
        weights["methods.protocpc.prototypes_file"] = str(path)
    return experiment.override(weights)


def step_through(experiment: Experiment, material: Material) -> dict[str, float]:
    """Train one step of each epoch of the stages before distillation and of the last epoch; return its metrics.

    Stages that only look on, to cluster what they saw, see all images.
    """
    session = assemble(experiment, material, device=CPU)
    whole = session.steps

    def first(epoch: int, needs: Any = None, *, start: int = 0) -> Any:
        looks_on = any(stage.needs is needs and not stage.trains for stage in session.stages.values())
        return islice(whole(epoch, needs, start=start), None if looks_on else 1)

    session.steps = first  # type: ignore[method-assign]
    run_stages(session, lambda record, session: None)
    session.epoch = experiment.train.epochs - 1
    told: list[dict[str, Any]] = []
    fit(session, lambda metrics, session: told.append(dict(metrics)))
    (metrics,) = told
    return metrics


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_experiment_takes_a_step(settings: str, files: Path) -> None:
    found: dict[str, Experiment] = {}
    for name in MINIS:
        plan = plans.load_plan(name)
        if settings in [part.settings for part in plan.scales["mini"]] and not plan.counted:
            several = [*plans.teachers(plan, "mini"), *expanded(name, "mini", seeds=1)]
            found |= {each.name: each for each in several if each.name.startswith(settings)}
    assert found
    failed = {}
    for name, planned in found.items():
        experiment = ready(planned, files)
        try:
            metrics = step_through(experiment, prepare(experiment))
        except Exception as error:  # all of them are told at once
            failed[name] = repr(error)
            continue
        told = {f"train/{label}" for label, weight in experiment.weights.items() if weight}
        if not told <= metrics.keys() or not all(map(math.isfinite, metrics.values())):
            failed[name] = repr(metrics)
    assert not failed


@cache
def _own_images(described: str) -> Images:
    data = DataConfig.model_validate_json(described)
    train, test = split_train(load_train(data), data).train, load_test(data)
    return Images(ResidentSet(train, CPU), ResidentSet(test.take(torch.arange(TEST_IMAGES)), CPU))


def measured(subject: Subject, names: set[str]) -> set[str]:
    """Return the names of all that the protocols of some measures give."""
    values: dict[str, float] = {}
    for name in script.protocols_of(names):
        protocol = PROTOCOLS[name]
        if protocol.applies(subject):
            subject.see(protocol.needs)
            values |= protocol.measure(subject)
    return {*values}


@pytest.mark.parametrize("name", MINIS)
def test_every_cell_is_measured(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garments, "PICTURES", {"trainval": 80, "test": 40})
    plan = plans.load_plan(name)
    experiment = expanded(name, "mini", seeds=1)[0]
    own, transfer = _own_images(experiment.data.model_dump_json()), plans.transfer(plan, "mini")
    network = build_described(experiment.student, own.bank.num_classes, own.bank.shape[0]).eval()
    wanted: dict[str, set[str]] = defaultdict(set)
    for metric in asked(plans.shown(plan, "mini")):
        label, _, measure = metric.rpartition("/")
        wanted[label].add(measure)
    for label in wanted.keys() & {"", *transfer}:
        images = own
        if label:
            data = transfer[label]
            if label in script.DRAWN:
                data = data.model_copy(update={"root": str(files / label)})
                script.DRAWN[label](files / label, experiment.data)
            images = transfer_images(data, own.test, CPU)
        subject = Subject(network, images.bank, images.test, not label, experiment.evaluate, experiment.seed)
        assert wanted[label] - FROM_ELSEWHERE <= measured(subject, wanted[label])
