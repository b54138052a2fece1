"""A run that is cut within an epoch becomes the uninterrupted one bit for bit; without Ray."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from raydistill.config import Experiment
from raydistill.errors import RunError
from raydistill.methods.registry import METHODS, method_class
from raydistill.train_config import CheckpointConfig
from raydistill.training.assembly import assemble
from raydistill.training.checkpoint import load_checkpoint, read_record, state_of
from raydistill.training.checkpoint_files import FILE, RECORD
from raydistill.training.due import Due
from raydistill.training.keeping import CheckpointKeeper, Keeper
from raydistill.training.loop import fit
from raydistill.training.material import prepare
from raydistill.training.meter import Meter
from raydistill.training.run import run
from raydistill.training.run_folder import RunFolder
from raydistill.training.session import Session
from raydistill.training.shelf import Shelf
from raydistill.training.stages import run_stages
from tests.conftest import digits, teaching
from tests.methods.cases import SMALL
from tests.training.sessions import save_checkpoint, session_of

CPU = torch.device("cpu")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
TIMES = {"seconds", "images_per_s", "phases", "energy_j"}
EVERYTHING = CheckpointConfig(steps=4, keep=100)


def keeper_of(folder: Path, config: CheckpointConfig = EVERYTHING, **clock: Any) -> CheckpointKeeper:
    return CheckpointKeeper(Shelf(folder), config, Due(config, CPU, **clock))


def finished(session: Session, keeper: Keeper | None = None) -> Session:
    """Run all that is left of the session, as a worker would."""
    keeper = keeper or Keeper()

    def report(metrics: dict[str, float], session: Session) -> None:
        session.history.append(metrics)
        keeper.keep_epoch(session)

    run_stages(session, lambda record, session: keeper.keep_stage_epoch(session), keeper=keeper)
    fit(session, report, keeper=keeper)
    keeper.finish()
    return session


def is_time(name: Any) -> bool:
    return name in TIMES or str(name).startswith("time/")


def without_times(value: Any) -> Any:
    """Plain values and tensors of a state; what a clock said is left out."""
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if not is_time(name)}
    return [without_times(part) for part in value] if isinstance(value, list | tuple) else value


def assert_same(left: Any, right: Any, where: str = "state") -> None:
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for name, part in left.items():
            assert_same(part, right[name], f"{where}.{name}")
    elif isinstance(left, list):
        assert len(left) == len(right), where
        for number, part in enumerate(left):
            assert_same(part, right[number], f"{where}.{number}")
    else:
        assert torch.equal(left, right) if isinstance(left, Tensor) else left == right, where


def assert_became_the_same(left: Session, right: Session) -> None:
    """Student, methods' state, optimiser, schedule, random state, counts and records, bit for bit."""
    assert_same(without_times(state_of(left)), without_times(state_of(right)))


def six_steps(folder: Path, methods: dict[str, Any], **sections: Any) -> Experiment:
    """Two epochs of six steps."""
    values: dict[str, Any] = {
        "data": {"name": "digits", "subset": 120, "validation": 0.2, "augment": {"crop": 1}},
        "train": {"epochs": 2, "batch_size": 16, "optimizer": {"lr": 0.001}},
    }
    return digits(folder, methods=methods, **(values | sections))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_from_the_middle_of_an_epoch(name: str, tmp_path: Path, teacher_weights: Path) -> None:
    stage = {"pretrain_epochs": 1} if "pretrain_epochs" in method_class(name).model_fields else {}
    teacher = teaching(teacher_weights) | {"source": "live"}
    experiment = six_steps(tmp_path, {name: SMALL.get(name, {}) | stage}, teacher=teacher)
    whole = finished(session_of(experiment), keeper_of(tmp_path / "checkpoints"))
    names = Shelf(tmp_path / "checkpoints").names()
    before = 6 * len(whole.stage_records)
    assert [name for name in names if int(name[-9:]) > before] == [
        f"checkpoint_step{before + step:09d}" for step in (4, 6, 10, 12)
    ]
    for cut in [name for name in names if int(name[-9:]) % 6]:
        resumed = session_of(experiment)
        load_checkpoint(resumed, tmp_path / "checkpoints" / cut)
        assert resumed.under_way is not None and resumed.under_way["step"] == 4
        assert_became_the_same(whole, finished(resumed))


@pytest.mark.parametrize("name", ["ab", "ft"])
def test_a_stage_before_distillation_goes_on_from_the_middle_of_an_epoch(
    name: str, tmp_path: Path, teacher_weights: Path
) -> None:
    teacher = teaching(teacher_weights) | {"source": "live"}
    experiment = six_steps(tmp_path, {"ce": {}, name: {"pretrain_epochs": 2}}, teacher=teacher)
    whole = finished(session_of(experiment), keeper_of(tmp_path / "checkpoints"))
    cut = tmp_path / "checkpoints" / "checkpoint_step000000010"
    resumed = session_of(experiment)
    load_checkpoint(resumed, cut)
    assert [record["epoch"] for record in resumed.stage_records] == [1]
    assert_became_the_same(whole, finished(resumed))


def test_keeping_changes_nothing(tmp_path: Path) -> None:
    experiment = six_steps(tmp_path, {"ce": {}})
    kept = finished(session_of(experiment), keeper_of(tmp_path / "checkpoints", CheckpointConfig(steps=1)))
    assert_became_the_same(finished(session_of(experiment)), kept)


def test_a_student_that_draws_random_numbers_goes_on(tmp_path: Path) -> None:
    experiment = six_steps(tmp_path, {"ce": {}}, student={"model": "tests.training.networks:dropping"})
    whole = finished(session_of(experiment), keeper_of(tmp_path / "checkpoints"))
    resumed = session_of(experiment)
    torch.manual_seed(99)
    load_checkpoint(resumed, tmp_path / "checkpoints" / "checkpoint_step000000004")
    assert_became_the_same(whole, finished(resumed))


class SlowShelf(Shelf):
    """A disk that takes longer than the steps of an epoch."""

    def put(self, *arguments: Any) -> None:
        time.sleep(0.5)
        super().put(*arguments)


def test_what_is_written_late_is_the_state_of_its_own_step(tmp_path: Path) -> None:
    experiment = six_steps(tmp_path, {"ce": {}})
    config = CheckpointConfig(steps=3, keep=100)
    keeper = CheckpointKeeper(SlowShelf(tmp_path / "late"), config, Due(config, CPU))
    finished(session_of(experiment), keeper)
    finished(session_of(experiment), keeper_of(tmp_path / "soon", config))
    for name in ("checkpoint_step000000003", "checkpoint_step000000009"):
        late, soon = (torch.load(tmp_path / folder / name / FILE, weights_only=True) for folder in ("late", "soon"))
        assert_same(without_times(late), without_times(soon))


def test_time_is_that_of_all_attempts(tmp_path: Path) -> None:
    session = session_of(six_steps(tmp_path, {"ce": {}}))
    session.seconds_before = 100.0
    finished(session, keeper_of(tmp_path / "checkpoints"))
    resumed = session_of(session.experiment)
    load_checkpoint(resumed, tmp_path / "checkpoints" / "checkpoint_step000000010")
    assert 100.0 < resumed.seconds < 160.0
    spent = resumed.under_way["seconds"] if resumed.under_way else math.nan
    finished(resumed)
    assert resumed.history[1]["seconds"] > spent > 0.0
    assert resumed.history[1]["images_per_s"] < 96 / spent


@pytest.mark.parametrize("damage", ["cut off", "bit flipped", "state lost", "record changed", "record cut off"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(damage: str, tmp_path: Path) -> None:
    experiment = six_steps(tmp_path, {"ce": {}})
    finished(session_of(experiment), keeper_of(tmp_path / "checkpoints"))
    shelf, said = Shelf(tmp_path / "checkpoints"), []
    *_, before, last = shelf.names()
    spoil(shelf.folder / last, damage)
    taken = shelf.take(CPU, said.append)
    assert taken is not None and taken[0] == before and taken[1]["under_way"]["step"] == 4
    assert len(said) == 1 and last in said[0] and before in said[0]
    assert shelf.names()[-1] == before and (shelf.folder / f"damaged_{last}").is_dir()
    for name in shelf.names():
        spoil(shelf.folder / name, damage)
    for _ in range(2):  # nothing is set aside, or a later start would take the run for a new one
        with pytest.raises(RunError, match="no sound checkpoint is left"):
            shelf.take(CPU, said.append)
    assert len(said) == 1
    assert Shelf(tmp_path / "nothing").take(CPU, said.append) is None


def spoil(checkpoint: Path, damage: str) -> None:
    state, record = checkpoint / FILE, checkpoint / RECORD
    content = bytearray(state.read_bytes())
    if damage == "bit flipped":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif damage == "cut off":
        state.write_bytes(content[:-1000])
    elif damage == "state lost":
        state.unlink()
    elif damage == "record changed":
        record.write_text(json.dumps(read_record(checkpoint) | {"xxh3": "0"}))
    else:
        record.write_text(record.read_text()[:10])


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    session = session_of(six_steps(tmp_path, {"ce": {}}))
    state = state_of(session)
    results = [10.0, 70.0, None, 30.0, 70.0, None, 20.0]
    for keep, best, left in ((2, True, [2, 6, 7]), (2, False, [6, 7]), (1, True, [2, 7])):
        shelf = Shelf(tmp_path / f"{keep}{best}")
        for step, top1 in enumerate(results, start=1):
            shelf.put(state, step, top1)
            shelf.thin(keep, best=best)
        assert [int(name[-9:]) for name in shelf.names()] == left
        assert sorted(path.name for path in shelf.folder.iterdir()) == shelf.names()


def test_the_best_is_the_epoch_with_the_highest_validation_result(tmp_path: Path) -> None:
    session = session_of(six_steps(tmp_path, {"ce": {}}, train={"epochs": 4, "batch_size": 16}))
    finished(session, keeper_of(tmp_path / "checkpoints", CheckpointConfig(steps=4, keep=1)))
    shelf = Shelf(tmp_path / "checkpoints")
    results = [record["val/top1"] for record in session.history]
    expected = {6 * (results.index(max(results)) + 1), 24}
    assert {int(name[-9:]) for name in shelf.names()} == expected
    assert read_record(shelf.folder / shelf.names()[0])["val/top1"] == max(results)


def test_a_run_does_not_succeed_without_its_checkpoints(tmp_path: Path) -> None:
    experiment = six_steps(tmp_path, {"ce": {}})
    (tmp_path / "file").write_text("")
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    config = CheckpointConfig(epochs=2)  # the only checkpoint is that of the end
    keeper = CheckpointKeeper(Shelf(tmp_path / "file" / "checkpoints"), config, Due(config, CPU))
    with pytest.raises(RunError, match="file/checkpoints"), keeper:
        run(session_of(experiment), folder, after_epoch=lambda metrics, session: None, keeper=keeper)
    assert not folder.result()


def test_a_state_with_infinite_losses_takes_no_place(tmp_path: Path) -> None:
    optimizer = {"lr": 1e30}
    experiment = six_steps(tmp_path, {"ce": {}}, train={"epochs": 2, "batch_size": 16, "optimizer": optimizer})
    with pytest.raises(RunError, match="ce became NaN"), keeper_of(tmp_path / "checkpoints") as keeper:
        finished(session_of(experiment), keeper)
    assert Shelf(tmp_path / "checkpoints").names() == []


def test_a_checkpoint_of_an_older_version_is_gone_on_from(tmp_path: Path) -> None:
    experiment = six_steps(tmp_path, {"ce": {}})
    whole = finished(session_of(experiment), keeper_of(tmp_path / "checkpoints"))
    (shelf := Shelf(tmp_path / "old")).folder.mkdir()
    state = torch.load(tmp_path / "checkpoints" / "checkpoint_step000000006" / FILE, weights_only=True)
    old = shelf.folder / "checkpoint_2026-11-01_12-00-00.000000"
    old.mkdir()
    names = ("distiller", "optimizer", "schedule", "epoch", "history")
    torch.save({name: state[name] for name in names}, old / FILE)
    taken = shelf.take(CPU, lambda text: None)
    assert taken is not None and taken[0] == old.name
    resumed = session_of(experiment)
    load_checkpoint(resumed, old)
    assert_became_the_same(whole, finished(resumed))
    shelf.put(state, 1, None)
    assert shelf.names() == [old.name, "checkpoint_step000000001"]


def test_minutes_are_counted_from_the_last_checkpoint(tmp_path: Path) -> None:
    now = 0.0
    due = Due(CheckpointConfig(minutes=0.5), CPU, clock=lambda: now)
    found = []
    for step in range(1, 21):
        now += 4.0
        if due.after_step():
            found.append(step)
            due.restart()
    assert found == [8, 16]


def test_older_keys_of_the_configuration_mean_the_new_ones(tmp_path: Path) -> None:
    older = digits(tmp_path, train={"epochs": 2, "checkpoint_every": 3, "keep_checkpoints": 5})
    assert older.train.checkpoint == CheckpointConfig(epochs=3, keep=5)
    assert older.to_dict()["train"]["checkpoint"] == {
        "epochs": 3,
        "steps": None,
        "minutes": None,
        "keep": 5,
        "best": True,
    }
    assert older.override({"train.checkpoint_every": 7}).train.checkpoint.epochs == 7
    with pytest.raises(Exception, match=r"train\.checkpoint\.epochs = 0: must be greater"):
        digits(tmp_path, train={"checkpoint_every": 0})
    with pytest.raises(Exception, match=r"train\.checkpoint = 3: must be a mapping"):
        digits(tmp_path, train={"checkpoint": 3, "checkpoint_every": 2})


def cut_on_a_rank(rank: int, folder: str, weights: str) -> None:
    """One of two processes: a whole run, and the same from each of its checkpoints within an epoch."""
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=rank, world_size=2)
    teacher = teaching(Path(weights)) | {"source": "live"}
    methods = {name: SMALL.get(name, {}) for name in ("ce", "kd", "crd", "cocord")}
    experiment = six_steps(path, methods, teacher=teacher)

    def session() -> Session:
        def wrap(module: torch.nn.Module) -> torch.nn.Module:
            return DistributedDataParallel(module, forward_sync_buffers=False)

        return assemble(experiment, prepare(experiment), device=CPU, rank=rank, world_size=2, wrap=wrap)

    ticks = iter(range(1, 10**6))

    def clock() -> float:  # of rank 0 a step takes a minute, of rank 1 it takes three
        return next(ticks) * 60.0 * (1 + 2 * rank)

    config = CheckpointConfig(minutes=4, keep=100)
    whole = finished(session(), CheckpointKeeper(Shelf(path / "shelf"), config, Due(config, CPU, clock)))
    dist.barrier()
    cuts = [name for name in Shelf(path / "shelf").names() if int(name[-9:]) % 6]
    assert cuts == ["checkpoint_step000000004", "checkpoint_step000000010"]
    for cut in cuts:
        resumed = session()
        load_checkpoint(resumed, path / "shelf" / cut)
        finished(resumed)
        assert_same(*[trained_alike(session, rank) for session in (whole, resumed)])
        for name, value in whole.distiller.state_dict().items():
            if not (rank and name.endswith(STATISTICS)):  # rank 1's own are in no checkpoint; nothing depends on them
                assert torch.equal(value, resumed.distiller.state_dict()[name]), name
        assert_same(without_times(state_of(whole)["optimizer"]), without_times(state_of(resumed)["optimizer"]))
    dist.barrier()
    dist.destroy_process_group()


def trained_alike(session: Session, rank: int) -> list[dict[str, float]]:
    """The records of a rank; what rank 1 validates, with statistics of batch-norms of its own, nobody sees."""
    kept = [without_times(record) for record in session.history]
    return [{name: value for name, value in record.items() if not (rank and "val/" in name)} for record in kept]


def test_two_ranks_go_on_from_the_middle_of_an_epoch(tmp_path: Path, teacher_weights: Path) -> None:
    multiprocessing.spawn(cut_on_a_rank, args=(str(tmp_path), str(teacher_weights)), nprocs=2)


def test_sums_of_two_ranks_are_shared_by_one(tmp_path: Path) -> None:
    under_way = {"step": 2, "seconds": 1.0, "sums": {"loss": torch.tensor([1.0, 3.0])}}
    meter = Meter(lambda values: None, 0, 3, 8, under_way)
    meter.add({"loss": torch.tensor(4.0)})
    assert meter.result()["train/loss"] == pytest.approx(2.0)


def test_a_checkpoint_by_hand_is_what_it_was(tmp_path: Path) -> None:
    experiment = six_steps(tmp_path, {"ce": {}})
    session = finished(session_of(experiment))
    save_checkpoint(session, tmp_path)
    other = session_of(experiment)
    load_checkpoint(other, tmp_path)
    assert_became_the_same(session, other)
