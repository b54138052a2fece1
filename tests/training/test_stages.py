"""Stages before distillation, in this process and on two ranks, without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from raydistill import display
from raydistill.config import Experiment
from raydistill.errors import CacheError, ConfigError, RunError
from raydistill.methods.base import Loss, Needs, Stage, Step
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.training.assembly import assemble
from raydistill.training.checkpoint import load_checkpoint, state_of
from raydistill.training.loop import fit
from raydistill.training.material import prepare
from raydistill.training.phases import ALWAYS
from raydistill.training.run import run
from raydistill.training.run_folder import RunFolder
from raydistill.training.session import Session
from raydistill.training.stages import run_stages
from tests.conftest import digits, teaching
from tests.training.sessions import assert_equal_states, save_checkpoint, session_of

BATCH, EPOCHS = 48, 3
STAGED = {
    "ab": {"ab": {"pretrain_epochs": EPOCHS}},
    "fsp": {"fsp": {"pretrain_epochs": EPOCHS}},
    "ft": {"ft": {"pretrain_epochs": EPOCHS, "pretrain_lr": 0.2, "weight": 10.0}},
}


@pytest.fixture(scope="module")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A live teacher whose maps have other numbers of channels than the student's."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("wide") / "model.safetensors"
    save_weights(build_model("wrn_16_2", 10, in_channels=1), path)
    return {"model": "wrn_16_2", "weights": str(path), "source": "live"}


@pytest.fixture
def experiment_of(tmp_path: Path, teacher_weights: Path, wide_teacher: dict[str, Any]) -> Callable[..., Experiment]:
    def build(methods: Mapping[str, Any], **sections: Any) -> Experiment:
        teacher = teaching(teacher_weights) | {"source": "live"} if "fsp" in methods else wide_teacher
        values = {"teacher": teacher, "train": {"epochs": 2, "batch_size": BATCH}} | sections
        return digits(tmp_path, methods={"ce": {}, **methods}, **values)

    return build


def keep_nothing(record: Mapping[str, Any], session: Session) -> None:
    """Report to nobody."""


def keep_history(metrics: dict[str, float], session: Session) -> None:
    session.history.append(metrics)


def state_of_distiller(session: Session) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in session.distiller.state_dict().items()}


def changed(before: dict[str, Tensor], session: Session) -> set[str]:
    after = session.distiller.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("name", STAGED)
def test_the_loss_of_a_stage_falls(name: str, experiment_of: Callable[..., Experiment]) -> None:
    session = session_of(experiment_of(STAGED[name]))
    run_stages(session, keep_nothing)
    assert [(record["stage"], record["epoch"]) for record in session.stage_records] == [(name, 1), (name, 2), (name, 3)]
    losses = [record["train/loss"] for record in session.stage_records]
    assert losses[-1] < losses[0]
    assert session.epoch == 0


@pytest.mark.parametrize(
    ("name", "trained", "untouched"),
    [
        ("ab", ("student.", "objective.parts.ab.connectors."), ("student.fc.",)),
        ("fsp", ("student.",), ("student.fc.",)),
        ("ft", ("objective.parts.ft.paraphraser.",), ("student.", "objective.parts.ft.translator.")),
    ],
)
def test_a_stage_trains_its_modules_and_distillation_leaves_those_alone(
    name: str, trained: tuple[str, ...], untouched: tuple[str, ...], experiment_of: Callable[..., Experiment]
) -> None:
    session = session_of(experiment_of(STAGED[name]))
    flags = {key: value.requires_grad for key, value in session.distiller.named_parameters()}
    start = state_of_distiller(session)
    run_stages(session, keep_nothing)
    moved = changed(start, session)
    assert all(key.startswith(trained) and not key.startswith(untouched) for key in moved)
    assert {key for key, _ in session.distiller.named_parameters() if key.startswith(trained)} - moved == {
        key for key in start if key.startswith("student.fc.") and key.startswith(trained)
    }
    assert all(value.grad is None for value in session.distiller.parameters())
    assert flags == {key: value.requires_grad for key, value in session.distiller.named_parameters()}
    before = state_of_distiller(session)
    fit(session, keep_history)
    moved = changed(before, session)
    assert any(key.startswith("student.fc.") for key in moved)
    assert not any(key.startswith(("objective.parts.ab.", "objective.parts.ft.paraphraser.")) for key in moved)
    assert any(key.startswith("objective.parts.ft.translator.") for key in moved) == (name == "ft")


def test_a_method_of_weight_zero_and_its_teacher_are_gone_after_the_stage(
    experiment_of: Callable[..., Experiment],
) -> None:
    session = session_of(experiment_of(STAGED["ab"]))
    run_stages(session, keep_nothing)
    seen = session.teacher_forwards
    assert seen == EPOCHS * 4 * BATCH
    fit(session, keep_history)
    assert session.teacher_forwards == seen
    assert {key for key in session.history[-1] if key.startswith("train/")} == {"train/loss", "train/ce"}


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_stage_equals_the_uninterrupted_one_bit_for_bit(
    name: str, stop: int, tmp_path: Path, experiment_of: Callable[..., Experiment]
) -> None:
    experiment = experiment_of(STAGED[name])
    whole = session_of(experiment)
    run_stages(whole, keep_nothing)
    fit(whole, keep_history)

    def interrupt(record: Mapping[str, Any], session: Session) -> None:
        if len(session.stage_records) == stop:
            save_checkpoint(session, tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(session_of(experiment), interrupt)
    resumed = session_of(experiment)
    load_checkpoint(resumed, tmp_path)
    assert len(resumed.stage_records) == stop
    run_stages(resumed, keep_nothing)
    fit(resumed, keep_history)
    assert_equal_states(whole, resumed)
    assert [record["train/loss"] for record in whole.stage_records] == [
        record["train/loss"] for record in resumed.stage_records
    ]


def test_stages_follow_each_other_and_are_resumed_in_the_second(
    tmp_path: Path, experiment_of: Callable[..., Experiment]
) -> None:
    experiment = experiment_of({"ft": {"pretrain_epochs": 2}, "ab": {"pretrain_epochs": 2}})
    whole = session_of(experiment)

    def keep(record: Mapping[str, Any], session: Session) -> None:
        folder = tmp_path / str(len(session.stage_records))
        folder.mkdir()
        save_checkpoint(session, folder)

    run_stages(whole, keep)
    assert [record["stage"] for record in whole.stage_records] == ["ft", "ft", "ab", "ab"]
    for done in (2, 3, 4):
        resumed = session_of(experiment)
        load_checkpoint(resumed, tmp_path / str(done))
        run_stages(resumed, keep_nothing)
        assert_equal_states(whole, resumed)


def test_a_stage_may_only_look_on(experiment_of: Callable[..., Experiment]) -> None:
    session = session_of(experiment_of({"ft": {}}))
    seen: list[Tensor] = []
    calls: list[str] = []

    def collect(step: Step) -> Loss:
        assert dict(step.student) == {}
        seen.append(step.teacher[0]["features/3"])
        return Loss(seen[-1].new_zeros(()), terms={"seen": seen[-1].mean()})

    needs = Needs(teacher={0: frozenset({"features/3"})})
    session.stages = {"look": Stage(2, (), collect, needs, finish=lambda: calls.append("finish"))}
    start = state_of_distiller(session)
    run_stages(session, lambda record, session: calls.append(f"epoch {record['epoch']}"))
    assert calls == ["epoch 1", "finish", "epoch 2"]
    assert len(seen) == 8
    assert session.stage_records[1]["train/seen"] == pytest.approx(float(torch.stack(seen[4:]).mean()), rel=1e-5)
    assert not changed(start, session)


def test_the_stage_has_a_rate_of_its_own_and_plain_momentum(
    tmp_path: Path, experiment_of: Callable[..., Experiment]
) -> None:
    optimizer = {"name": "adamw", "lr": 0.002, "weight_decay": 0.01, "momentum": 0.5}
    for methods, rate in (({"ft": {"pretrain_epochs": 2}}, 0.01), ({"ab": {"pretrain_epochs": 2}}, 0.002)):
        session = session_of(experiment_of(methods, train={"batch_size": BATCH, "optimizer": optimizer}))
        groups: list[dict[str, Any]] = []

        def look(record: Mapping[str, Any], session: Session, groups: list[dict[str, Any]] = groups) -> None:
            groups.extend(session.stage_optimizer["param_groups"] if session.stage_optimizer else [])

        run_stages(session, look)
        (group,) = groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (rate, 0.9, 0.01)
        assert session.stage_optimizer is None


def test_a_run_writes_its_stages_apart_from_its_epochs(experiment_of: Callable[..., Experiment]) -> None:
    experiment = experiment_of(STAGED["ft"])
    session, folder = session_of(experiment), RunFolder(experiment.folder)
    folder.begin(experiment)
    progress: list[dict[str, Any]] = []
    reported: list[str] = []

    def keep(record: Mapping[str, Any], session: Session) -> None:
        reported.append("stage")
        progress.append(folder.progress())

    run(
        session,
        folder,
        after_epoch=lambda metrics, session: reported.append(f"epoch {metrics['epoch']}"),
        after_stage_epoch=keep,
        final=False,
    )
    assert reported == ["stage", "stage", "stage", "epoch 1", "epoch 2"]
    lines = (folder.path / "pretraining.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == session.stage_records == folder.pretraining()
    names = {"stage", "epoch", "train/loss", "seconds", "time/teacher", *(f"time/{phase}" for phase in ALWAYS)}
    assert all(set(record) == names for record in session.stage_records)
    assert [record["epoch"] for record in folder.history()] == [1, 2]
    assert {(shown["stage"], shown["epochs"]) for shown in progress} == {("ft", 3)}
    assert "stage" not in folder.progress()


def test_the_user_sees_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "logs").mkdir()
    folder.write_pretraining([{"stage": "ft", "epoch": 1, "train/loss": 0.5, "seconds": 1.0}])
    folder.write_progress(
        {"stage": "ft", "epoch": 1, "epochs": 3, "step": 1, "steps": 4, "images_per_s": 5.0, "train/loss": 0.25}
    )
    with display.training(digits(tmp_path), 2) as watch:
        watch(folder)
        watch(folder)
    assert capsys.readouterr().err.count("digits: stage ft, epoch 1  loss 0.500\n") == 1


def test_without_stages_a_checkpoint_has_none(tmp_path: Path) -> None:
    session = session_of(digits(tmp_path))
    run_stages(session, keep_nothing)
    assert session.stages == {}
    assert "stages" not in state_of(session)


def test_a_checkpoint_without_the_stages_of_the_experiment_is_refused(
    tmp_path: Path, experiment_of: Callable[..., Experiment]
) -> None:
    session = session_of(experiment_of(STAGED["fsp"]))
    state = {name: value for name, value in state_of(session).items() if name != "stages"}
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(RunError, match="stages"):
        load_checkpoint(session, tmp_path)


def test_a_loss_that_is_not_finite_names_the_stage(experiment_of: Callable[..., Experiment]) -> None:
    session = session_of(experiment_of({"ft": {"pretrain_lr": 1e30}}))
    with pytest.raises(
        RunError, match=r"stage of methods\.ft, epoch 1, step \d+ of \d+: loss became NaN .* Lower its pretrain_lr"
    ):
        run_stages(session, keep_nothing)


def test_the_cache_must_hold_what_only_a_stage_needs(
    tmp_path: Path, experiment_of: Callable[..., Experiment], teacher_weights: Path
) -> None:
    experiment = experiment_of({"ab": {}}, teacher=teaching(teacher_weights))
    assert not experiment.needs.teacher
    with pytest.raises(CacheError, match="preact/1"):
        prepare(experiment)


def test_impossible_stages_are_refused_before_training(
    experiment_of: Callable[..., Experiment], wide_teacher: dict[str, Any]
) -> None:
    with pytest.raises(
        ConfigError, match=r"methods\.fsp\.stages: .*'features/1' has 16 channels, the teacher's map 32"
    ):
        session_of(experiment_of({"fsp": {}}, teacher=wide_teacher))


def ft_session(folder: Path, teacher: dict[str, Any], rank: int, ranks: int) -> Session:
    experiment = digits(
        folder,
        teacher=teacher,
        methods={"ce": {}, "ft": {"pretrain_epochs": 2}},
        train={"epochs": 1, "batch_size": BATCH, "clip": 0.5},
    )
    return assemble(experiment, prepare(experiment), device=torch.device("cpu"), rank=rank, world_size=ranks)


def stage_on_a_rank(rank: int, ranks: int, folder: str, teacher: dict[str, Any]) -> None:
    """One process: run the stage and save what came out."""
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=rank, world_size=ranks)
    session = ft_session(path, teacher, rank, ranks)
    run_stages(session, keep_nothing)
    losses = [record["train/loss"] for record in session.stage_records]
    torch.save([state_of_distiller(session), losses], path / f"{rank}")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_with_half_batches_equal_one(tmp_path: Path, wide_teacher: dict[str, Any]) -> None:
    multiprocessing.spawn(stage_on_a_rank, args=(2, str(tmp_path), wide_teacher), nprocs=2)
    alone = ft_session(tmp_path, wide_teacher, 0, 1)
    start = state_of_distiller(alone)
    run_stages(alone, keep_nothing)
    names = changed(start, alone)
    assert names
    for rank in range(2):
        state, losses = torch.load(tmp_path / str(rank), weights_only=True)
        assert losses == pytest.approx([record["train/loss"] for record in alone.stage_records], rel=1e-5)
        for name in names:
            torch.testing.assert_close(state[name], alone.distiller.state_dict()[name], rtol=1e-4, atol=1e-6)
