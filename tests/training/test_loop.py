"""The loop in this process, without Ray."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.errors import RunError
from raydistill.evaluation.features import spread
from raydistill.models.taps import Tapped
from raydistill.train_config import ScheduleConfig
from raydistill.training.checkpoint import load_checkpoint
from raydistill.training.loop import fit
from raydistill.training.material import from_arrays, prepare, to_arrays
from raydistill.training.optimisation import learning_rate_factor
from raydistill.training.session import Session
from tests.conftest import digits, teaching
from tests.training.sessions import assert_equal_states, save_checkpoint, session_of, trained

KD = {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}}


def test_a_student_learns_digits(tmp_path: Path) -> None:
    data = {"name": "digits", "validation": 0.2, "augment": {"crop": 1}}
    session = trained(digits(tmp_path, data=data, train={"epochs": 6, "batch_size": 32}))
    assert [record["epoch"] for record in session.history] == [1, 2, 3, 4, 5, 6]
    assert session.history[-1]["val/top1"] > 80.0
    assert session.history[-1]["train/loss"] < session.history[0]["train/loss"]
    assert session.history[-1]["train/loss"] == pytest.approx(session.history[-1]["train/ce"])


def test_a_run_is_a_function_of_its_experiment(tmp_path: Path) -> None:
    first, second = trained(digits(tmp_path)), trained(digits(tmp_path))
    assert_equal_states(first, second)
    other = trained(digits(tmp_path, seed=1))
    assert first.history[-1]["train/loss"] != other.history[-1]["train/loss"]


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = digits(
        tmp_path,
        teacher=teaching(teacher_weights) | {"source": "live"},
        methods=KD,
        train={"epochs": 3, "batch_size": 48},
    )
    whole = trained(experiment)

    interrupted = session_of(experiment)

    def stop_after_first(metrics: dict[str, float], session: Session) -> None:
        session.history.append(metrics)
        save_checkpoint(session, tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, stop_after_first)
    resumed = session_of(experiment)
    load_checkpoint(resumed, tmp_path)
    assert resumed.epoch == 1
    fit(resumed, lambda metrics, session: session.history.append(metrics))
    assert_equal_states(whole, resumed)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    session = session_of(digits(tmp_path))
    save_checkpoint(session, tmp_path)
    file = tmp_path / "state.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RunError, match=str(tmp_path)):
        load_checkpoint(session, tmp_path)


def test_a_term_that_is_not_finite_stops_the_run_and_is_named(tmp_path: Path) -> None:
    experiment = digits(tmp_path, train={"epochs": 2, "batch_size": 48, "optimizer": {"lr": 1e30}})
    with pytest.raises(RunError, match="epoch 1, step 2 of 4: ce became NaN or infinite"):
        trained(experiment)


@pytest.mark.parametrize("source", ["live", "cache"])
def test_training_from_the_cache_never_runs_the_teacher(
    tmp_path: Path, teacher_weights: Path, ray_session: None, source: str
) -> None:
    from raydistill.teachers.cache.build import build_cache

    experiment = digits(tmp_path, teacher=teaching(teacher_weights) | {"source": source}, methods=KD)
    build_cache(experiment)
    session = session_of(experiment)
    seen: set[int] = set()

    def note(module: Any, given: Any, outputs: Any) -> None:
        if isinstance(module, Tapped):
            seen.add(id(module))

    with torch.nn.modules.module.register_module_forward_hook(note):
        fit(session, lambda metrics, session: None)
    ran_others = seen - {id(session.distiller.student)}
    computed = {"teacher_forwards": 0, "teacher_forwards_saved": 0}
    key = {"cache": "teacher_forwards_saved", "live": "teacher_forwards"}[source]
    assert session.teacher_work == {**computed, key: 384}
    assert len(ran_others) == (source == "live")


def test_replayed_views_give_the_same_training_live_and_cached(
    tmp_path: Path, teacher_weights: Path, ray_session: None
) -> None:
    from raydistill.teachers.cache.build import build_cache

    cache = {"root": str(tmp_path / "cache"), "views": 2, "dtype": "float32"}
    experiment = digits(tmp_path, teacher=teaching(teacher_weights), methods=KD, cache=cache)
    build_cache(experiment)
    session = session_of(experiment)
    network = session_of(
        experiment.model_copy(update={"teacher": experiment.teacher.model_copy(update={"source": "live"})})  # type: ignore[union-attr]
    ).teachers[0]
    positions = torch.arange(32)
    for epoch in range(3):
        step = session.draw(positions, epoch)
        live = network.outputs(positions, {}, step.views)
        torch.testing.assert_close(step.teacher[0]["logits"], live[0]["logits"], rtol=1e-5, atol=1e-5)


def test_material_survives_the_object_store(tmp_path: Path) -> None:
    material = prepare(digits(tmp_path))
    back = from_arrays(to_arrays(material))
    assert torch.equal(back.train.images, material.train.images)
    assert back.train.images.data_ptr() == material.train.images.data_ptr()
    assert torch.equal(back.validation.ids, material.validation.ids)


def test_the_bank_of_neighbours_is_spread_over_sorted_classes() -> None:
    assert spread(7, 10).tolist() == [0, 1, 2, 3, 4, 5, 6]
    classes = torch.arange(1000).repeat_interleave(1281)
    assert classes[spread(len(classes), 5000)].bincount(minlength=1000).tolist() == [5] * 1000


def test_schedules() -> None:
    cosine = learning_rate_factor(ScheduleConfig(warmup=1), epochs=5, steps_per_epoch=10)
    assert [cosine(0), cosine(9), cosine(10), cosine(50)] == pytest.approx([0.1, 1.0, 1.0, 0.0])
    assert cosine(30) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    steps = learning_rate_factor(
        ScheduleConfig(name="multistep", milestones=(2, 3), gamma=0.1), epochs=5, steps_per_epoch=10
    )
    assert [steps(19), steps(20), steps(30)] == pytest.approx([1.0, 0.1, 0.01])
