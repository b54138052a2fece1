"""Commands on several machines with addresses of their own, one of which dies or is cut off, and comes back.

What comes out is what one machine makes that nothing happens to. ``pytest -m slow -s`` shows the times of recovery.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raydistill.config import Experiment
from raydistill.teachers.cache.manifest import RECORDS, SHARDS
from raydistill.teachers.cache.read import TeacherCache
from tests.commands import PATIENCE, Command
from tests.conftest import digits, teaching
from tests.data_room.files import write_folder
from tests.machines import HEAD, Machines, possible, running_machines
from tests.teachers.stored import store
from tests.training.sessions import without_times
from tests.training.test_kills import Run
from tests.tuning.test_restart import Sweep, assert_same, sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not possible(), reason="network namespaces need root and the command ip"),
]

WORKERS = 3
CUT_S = 30.0
FORWARDS = "forwards"


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Each test leaves all of them alive."""
    folder = tmp_path_factory.mktemp("machines")
    with running_machines(WORKERS, folder, FORWARDS=str(folder / FORWARDS), SECONDS_PER_FORWARD="1.0") as machines:
        yield machines


class Build(Command):
    """``raydistill cache build``."""

    verb = "cache build"

    def records(self) -> list[Path]:
        return sorted(Path(self.experiment.cache.root).glob(f"*/{RECORDS}/*.json"))


def at_work(machines: Machines) -> set[int | None]:
    """Machines that ran the teacher."""
    log = machines.log_folder / FORWARDS
    pids = {int(line.split()[0]) for line in log.read_text().splitlines()} if log.exists() else set()
    return {machines.machine_of(pid) for pid in pids}


def finish(command: Command) -> None:
    said, complained = command.process.communicate(timeout=PATIENCE)
    assert command.process.returncode == 0, said + complained


def recovered(what: str, met: Callable[[], object], command: Command) -> None:
    """Wait until a command gets on after something happened to it, and say how long that took."""
    began = time.monotonic()
    command.until(met)
    print(f"{what}: goes on after {time.monotonic() - began:.1f} s", flush=True)


def cut_off(machines: Machines, number: int, command: Command, goes_on: Callable[[], object]) -> None:
    """Pull a machine's cable for a while, in which the command has to get on without it."""
    machines.cut(number)
    began = time.monotonic()
    recovered(f"{command.verb}, machine {number} cut off", goes_on, command)
    time.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
    machines.join(number)
    machines.restart(number)


def test_a_cache_is_built_by_three_machines_though_one_dies_and_one_is_cut_off(
    machines: Machines, tmp_path: Path
) -> None:
    experiment = digits(
        tmp_path,
        teacher={"model": "tests.models.foreign:watched", "batch_size": 10},
        data={"name": "digits", "subset": 600, "validation": 0.2, "augment": {"crop": 1}},
        methods={"kd": {}},
        cache={
            "root": str(tmp_path / "cache"),
            "shard_rows": 20,
            "views": 1,
            "actors": [1, WORKERS],
            "cpus_per_actor": 1,
        },
    )
    build = Build(experiment, machines.environment, machines.prefix)
    build.start()
    build.until(lambda: at_work(machines) >= {2, 3, 4})

    machines.kill(2)
    done = len(build.records())
    recovered("cache build, machine 2 dead", lambda: len(build.records()) > done + 1, build)
    machines.start(2)
    done = len(build.records())
    cut_off(machines, 3, build, lambda: len(build.records()) > done + 1)
    finish(build)

    (path,) = Path(experiment.cache.root).iterdir()
    whole = Path(store(experiment, root=str(tmp_path / "uninterrupted")).path)
    assert path.name == whole.name
    for shard in (whole / SHARDS).iterdir():
        assert (path / SHARDS / shard.name).read_bytes() == shard.read_bytes()
    assert len(list((path / SHARDS).iterdir())) == len(list((whole / SHARDS).iterdir()))
    assert TeacherCache.open(path).verify(full=True) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_training_comes_to_the_same_student_though_its_machines_die_and_are_cut_off(
    machines: Machines, tmp_path: Path, teacher_weights: Path, workers: int
) -> None:
    def experiment_of(name: str) -> Experiment:
        return digits(
            tmp_path,
            name=name,
            data={"name": "digits", "subset": 400, "validation": 0.2, "augment": {"crop": 1}},
            teacher=teaching(teacher_weights) | {"source": "live"},
            methods={"ce": {}, "crd": {"negatives": 64, "dimension": 16}},
            train={"epochs": 60, "batch_size": 16, "checkpoint": {"steps": 7, "keep": 3}},
            scale={"workers": workers, "cpus_per_worker": 1, "use_gpu": False, "max_failures": 10},
        )

    whole = Run(experiment_of("whole"), machines.environment, machines.prefix)
    whole.start()
    whole.end()
    run = Run(experiment_of("shaken"), machines.environment, machines.prefix)
    run.start()
    worker = run.until_works(after=20, not_by=None)
    number = machines.machine_of(worker)
    assert number is not None
    machines.kill(number)
    recovered(f"train, machine {number} dead", lambda: run.worker() not in (None, worker), run)
    machines.start(number)
    worker = run.until_works(after=run.step, not_by=worker)
    number = machines.machine_of(worker)
    assert number is not None
    cut_off(machines, number, run, lambda: run.worker() not in (None, worker))
    run.end()
    student = "student.safetensors"
    assert (run.folder.path / student).read_bytes() == (whole.folder.path / student).read_bytes()
    assert [*map(without_times, run.folder.history())] == [*map(without_times, whole.folder.history())]


def test_a_sweep_over_three_machines_comes_to_the_same_decisions(machines: Machines, tmp_path: Path) -> None:
    def sweep_of(name: str) -> Sweep:
        changed = {"name": name, "tune.concurrent": WORKERS}
        return Sweep(sweep(tmp_path).override(changed), machines.environment, machines.prefix)

    whole = sweep_of("whole")
    whole.start()
    whole.finish()
    command = sweep_of("shaken")
    command.start()
    number = machines.machine_of(command.until(lambda: command.worker_of("0000") or command.worker_of("0001")))
    assert number is not None
    machines.kill(number)
    machines.start(number)  # a sweep waits for a node in the place of a lost one, so that its decisions stay the same
    ended = command.ended_trials()
    recovered(f"tune, machine {number} dead", lambda: command.ended_trials() > ended, command)
    worker = command.until(lambda: next(filter(None, map(command.worker_of, ("0003", "0004", "0005", "0006"))), None))
    number = machines.machine_of(worker)
    assert number is not None
    machines.cut(number)
    time.sleep(CUT_S)
    machines.join(number)
    machines.restart(number)
    ended = command.ended_trials()
    recovered(f"tune, machine {number} back", lambda: command.ended_trials() > ended, command)
    command.finish()
    assert_same(command.found(), whole.found())


def test_a_machine_that_does_not_see_the_images_is_named(machines: Machines, tmp_path: Path) -> None:
    write_folder(tmp_path / "hidden" / "images")
    number = HEAD + WORKERS + 1
    machines.plug(number)
    machines.start(number, hides=tmp_path / "hidden")
    run = Run(
        digits(
            tmp_path,
            name="blind",
            data={"name": "image_folder", "root": str(tmp_path / "hidden" / "images"), "image_size": 16},
        ),
        machines.environment,
        machines.prefix,
    )
    run.start()
    said, complained = run.process.communicate(timeout=PATIENCE)
    machines.kill(number)
    assert run.process.returncode == 2, said + complained
    assert machines.address(number) in complained and "data.root" in complained and "Traceback" not in complained
    assert not run.folder.path.exists()
