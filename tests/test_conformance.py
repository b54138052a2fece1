"""What every method must keep, run over the registry by itself."""

from __future__ import annotations

import ast
import importlib
import io
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing

from raydistill import methods
from raydistill.methods.base import Loss, Method, Outputs, Step
from raydistill.methods.objective import Objective
from raydistill.methods.registry import METHODS, method_class
from tests.methods.cases import build_cases, setting_of
from tests.methods.ranks import freeze_statistics, run_rank, train_cases
from tests.methods.support import TinyNetwork, make_step, tiny_student

CASES = build_cases()
FOLDER = Path(methods.__file__).parent
each_case = pytest.mark.parametrize("method", CASES.values(), ids=CASES.keys())


def build(method: Method) -> Objective:
    return Objective({"case": method}, setting_of(method)).double()


def step_of(objective: Objective, number: int, *, size: int = 8, student: TinyNetwork | None = None) -> Step:
    setting = setting_of(objective.methods["case"])
    return make_step(objective.needs, number, slice(size), setting=setting, student=student)


def advance(objective: Objective, number: int) -> Loss:
    """One step without an optimiser, so that the state has left its start."""
    student = tiny_student().double()
    loss: Loss = objective(step_of(objective, number, student=student))
    objective.after_step(student, loss.carry)
    return loss


def snapshot(objective: Objective) -> dict[str, torch.Tensor]:
    # Batch-norm counts and negatives' tables too, also what is not in the checkpoint.
    named = [*objective.named_parameters(), *objective.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


@each_case
@pytest.mark.parametrize("size", [8, 2])
def test_reads_what_it_declared_and_is_finite(method: Method, size: int) -> None:
    objective = build(method)
    for number in range(2):
        loss = objective(step_of(objective, number, size=size))
        assert loss.total.shape == ()
        assert torch.isfinite(loss.total)
        assert all(torch.isfinite(value).all() for value in loss.terms.values())
        objective.after_step(tiny_student(), loss.carry)


@each_case
def test_loss_is_pure(method: Method) -> None:
    objective = build(method)
    advance(objective, 0)
    step = step_of(objective, 1)
    before = snapshot(objective)
    first, second = objective(step).total, objective(step).total
    assert torch.equal(first, second)
    after = snapshot(objective)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@each_case
def test_gradient_reaches_everything_trained(method: Method) -> None:
    objective = Objective({"case": method}, setting_of(method))
    # In front of a batch-norm that uses batch statistics a bias has no effect and hence no gradient.
    freeze_statistics(objective)
    objective.double()
    step = step_of(objective, 0)
    objective(step).total.backward()
    outputs = {f"{view} {name}": value for view, kept in step.student.items() for name, value in kept.items()}
    trained = {name: value for name, value in objective.named_parameters() if value.requires_grad}
    for name, value in {**outputs, **trained}.items():
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name
        assert value.grad.abs().sum() > 0, name


@each_case
def test_carry_holds_no_graph(method: Method) -> None:
    objective = build(method)
    carry = objective(step_of(objective, 0)).carry["case"]
    assert not any(value.requires_grad for value in carry.values() if isinstance(value, torch.Tensor))


@each_case
def test_state_survives_saving(method: Method) -> None:
    objective, other = build(method), build(method)
    for number in range(2):
        advance(objective, number)
    buffer = io.BytesIO()
    torch.save(objective.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for number in (2, 3):
        assert torch.equal(advance(objective, number).total, advance(other, number).total)


@each_case
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_gives_finite_single_precision(method: Method, half: torch.dtype) -> None:
    objective = Objective({"case": method}, setting_of(method))
    step = step_of(objective, 0, student=tiny_student().double())

    def halve(outputs: Mapping[int, Outputs]) -> dict[int, dict[str, torch.Tensor]]:
        return {v: {name: value.detach().to(half) for name, value in o.items()} for v, o in outputs.items()}

    images = {view: value.float() for view, value in step.views.items()}
    mixed = Step(images, halve(step.student), (halve(step.teacher),), step.columns)
    with torch.autocast("cpu", dtype=half):
        loss = objective(mixed)
    assert loss.total.dtype == torch.float32
    assert torch.isfinite(loss.total)
    objective.after_step(tiny_student(), loss.carry)
    assert all(torch.isfinite(value).all() for value in snapshot(objective).values())


@pytest.mark.parametrize("name", METHODS)
def test_describes_itself(name: str) -> None:
    found = method_class(name)
    assert found.name == name
    assert found.paper
    assert found.equation
    assert found.__doc__
    assert found().needs().views


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)], ids=["equal", "unequal"])
def test_two_ranks_agree_with_one(tmp_path: Path, ranks: int) -> None:
    multiprocessing.spawn(run_rank, args=(ranks, str(tmp_path)), nprocs=ranks)
    alone = train_cases()
    for number in range(ranks):
        shared: Any = torch.load(tmp_path / f"rank{number}.pt", weights_only=True)
        for label, values in alone.items():
            assert values.keys() == shared[label].keys()
            for name, value in values.items():
                where = f"rank {number}, {label}, {name}"
                np.testing.assert_allclose(shared[label][name], value, rtol=1e-9, atol=1e-11, err_msg=where)


def test_every_method_is_registered() -> None:
    """A file that defines a method is named like it and listed."""
    found = {
        (path.stem, node.name)
        for path in FOLDER.glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "Method" for base in node.bases)
    }
    assert found == set(METHODS.items())


def test_pure_functions_are_public() -> None:
    """Every loss of a method's file is reachable as ``raydistill.functional``."""
    functional = importlib.import_module("raydistill.functional")
    for path in FOLDER.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_loss"):
                assert node.name in functional.__all__


def test_methods_import_without_torch() -> None:
    imports = "; ".join(f"import raydistill.methods.{name}" for name in METHODS)
    code = f"import sys, raydistill.functional; {imports}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
