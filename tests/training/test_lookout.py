"""A run says early, and by name, what makes the rest of it worthless."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from raydistill.config import Experiment
from raydistill.errors import DivergedError
from raydistill.evaluation.proportion import history_warnings, proportion_warnings
from raydistill.training.assembly import assemble
from raydistill.training.due import Due
from raydistill.training.keeping import CheckpointKeeper
from raydistill.training.loop import fit
from raydistill.training.material import prepare
from raydistill.training.session import Session
from raydistill.training.shelf import Shelf
from tests.conftest import digits, teaching

SPOILT = 7
"""Place in the training set of a sample for which the teacher answers NaN."""


def experiment_of(folder: Path, teacher: Path, **train: Any) -> Experiment:
    return digits(
        folder,
        data={"name": "digits", "subset": 120, "validation": 0.2},
        teacher=teaching(teacher) | {"source": "live"},
        methods={"ce": {}, "kd": {}},
        train={"epochs": 2, "batch_size": 16} | train,
    )


def spoilt(session: Session) -> Session:
    """The session, whose teacher answers NaN for one sample."""
    (teacher,) = session.teachers
    answer = teacher.outputs

    def outputs(positions: Tensor, *others: Any) -> dict[int, dict[str, Tensor]]:
        found = answer(positions, *others)
        found[0]["logits"][positions == SPOILT] = math.nan
        return found

    teacher.outputs = outputs  # type: ignore[method-assign]
    return session


def session_of(experiment: Experiment, rank: int = 0, ranks: int = 1) -> Session:
    return assemble(experiment, prepare(experiment), device=torch.device("cpu"), rank=rank, world_size=ranks)


def stopped(session: Session, **arguments: Any) -> DivergedError:
    with pytest.raises(DivergedError) as caught:
        fit(session, lambda metrics, session: session.history.append(metrics), **arguments)
    return caught.value


def step_of(session: Session, position: int) -> int:
    """Number of the step of the first epoch, from 1, that shows a sample."""
    return next(number for number, batch in enumerate(session.batches(0), 1) if position in batch)


def test_what_is_not_finite_is_named_with_step_batch_and_cause(tmp_path: Path, teacher_weights: Path) -> None:
    session = spoilt(session_of(experiment_of(tmp_path, teacher_weights)))
    step, (spoilt_id,) = step_of(session, SPOILT), session.ids_of(torch.tensor([SPOILT]))
    error = stopped(session)
    batch = session.ids_of(list(session.batches(0))[step - 1])
    assert error.found == {
        "epoch": 1,
        "step": step,
        "terms": ["kd"],
        "ids": batch,
        "teacher": {"the logits of teacher 0": [spoilt_id]},
    }
    assert f"epoch 1, step {step} of 6: kd became NaN or infinite, with the batch of ids {batch[0]}, " in str(error)
    assert f"the logits of teacher 0 is not finite for the ids {spoilt_id}: look at it" in str(error)


def test_a_broken_gradient_is_found_at_the_next_step_and_its_weights_are_not_kept(
    tmp_path: Path, teacher_weights: Path
) -> None:
    experiment = experiment_of(tmp_path, teacher_weights, checkpoint={"steps": 1, "keep": 9})
    session = session_of(experiment)
    seen: list[int] = []

    def break_third(gradient: Tensor) -> Tensor:
        seen.append(len(seen) + 1)
        return gradient * math.nan if len(seen) == 3 else gradient

    next(session.distiller.student.parameters()).register_hook(break_third)
    shelf, config = Shelf(tmp_path / "checkpoints"), experiment.train.checkpoint
    with CheckpointKeeper(shelf, config, Due(config, session.device)) as keeper:
        error = stopped(session, keeper=keeper)
    assert error.found["step"] == 4
    assert {"ce", "kd"} <= {*error.found["terms"]}
    assert "Lower train.optimizer.lr" in str(error)
    assert [name[-1] for name in shelf.names()] == ["1", "2"]


def diverge_on_a_rank(rank: int, ranks: int, folder: str, teacher: str) -> None:
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=rank, world_size=ranks)
    session = session_of(experiment_of(path, Path(teacher)), rank, ranks)
    try:
        fit(spoilt(session), lambda metrics, session: None)
    except DivergedError as error:
        torch.save({"text": str(error), **error.found}, path / f"{rank}.pt")
    dist.destroy_process_group()


def test_all_ranks_stop_together_with_the_same_words(tmp_path: Path, teacher_weights: Path) -> None:
    """The ranks' losses are averaged only here, so that one of them goes on being finite."""
    multiprocessing.spawn(diverge_on_a_rank, args=(2, str(tmp_path), str(teacher_weights)), nprocs=2)
    left, right = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert left == right
    assert left["terms"] == ["kd"]
    assert len(left["ids"]) == 8  # of the rank that had the sample


def test_a_term_that_drowns_is_told_once(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = experiment_of(tmp_path, teacher_weights).override({"methods.kd.weight": 1e-6})
    said: list[str] = []
    session = session_of(experiment)
    fit(session, lambda metrics, session: session.history.append(metrics), say=said.append)
    assert [line.partition(":")[0] for line in said] == ["epoch 1", "epoch 2"]
    assert "ce is more than 1000 times kd in the loss" in said[0]
    assert history_warnings(session.history, {"ce": 1.0, "kd": 1e-6}) == said[:1]
    assert history_warnings(session.history, {"ce": 1.0, "kd": 1.0}) == []


def test_proportions() -> None:
    assert proportion_warnings({}) == []
    assert proportion_warnings({"a": 0.0, "b": 0.0}) == []
    assert proportion_warnings({"a": 1000.0, "b": 1.0, "c": 0.0}) == []
    (warning,) = proportion_warnings({"a": -1001.0, "b": 1.0, "c": 500.0})
    assert warning.startswith("a is more than 1000 times b")
