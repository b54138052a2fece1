"""Copies of runs in plain folders, without Ray, torch or a server: always one whole state, or one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.config import Experiment, load_experiment
from raydistill.errors import ConfigError, DataError, RunError
from raydistill.teachers.cache import store
from raydistill.training.backup import copying, keeping, restoring
from raydistill.training.backup.copying import Copier, signatures
from raydistill.training.backup.index import INDEX, OBJECTS, read_index, travels
from raydistill.training.backup.restoring import pull, restore
from raydistill.training.checkpoint_files import FILE, RECORD
from raydistill.training.run_folder import RunFolder, claimed
from tests.conftest import digits
from tests.reporting.folders import make_sweep
from tests.security.attacks import command, files_below, nothing_written

State = dict[str, bytes]
CHECKPOINT = "checkpoints/checkpoint_step000000007"


def put(folder: Path, files: State) -> None:
    """Write files as runs do: beside, and then in place."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        beside = (folder / path).with_name(f".{Path(path).name}.tmp")
        beside.write_bytes(data)
        beside.replace(folder / path)


def sealed(data: bytes, checkpoint: str = CHECKPOINT) -> State:
    record = json.dumps({"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)})
    return {f"{checkpoint}/{FILE}": data, f"{checkpoint}/{RECORD}": record.encode()}


def restored(place: Path, folder: Path) -> State | None:
    shutil.rmtree(folder, ignore_errors=True)
    found = restore(place, folder)
    assert (found is None) == (not folder.exists())
    assert not [path for path in folder.parent.iterdir() if path.name.endswith(".tmp")]
    return None if found is None else files_below(folder)


def objects_of(place: Path) -> set[str]:
    return {path.name for path in (place / OBJECTS).iterdir()}


class Cut:
    """``store.write`` that breaks at some request, after it was served or before; the storage may keep a part of it."""

    def __init__(self, at: int, effect: str) -> None:
        self.left, self.effect, self.real = at, effect, store.write

    def __call__(self, path: Path, data: str | bytes) -> None:
        self.left -= 1
        if self.left < 0:
            content = data.encode() if isinstance(data, str) else data
            if self.effect == "half" and path.name != INDEX:  # an object store shows none, but others might
                path.write_bytes(content[: len(content) // 2])
            if self.effect == "served":
                self.real(path, data)
            raise RunError(f"{path}: cannot be written: the connection broke")
        self.real(path, data)


PATHS = st.sampled_from(["config.yaml", "metrics.jsonl", "_SUCCESS", "trials/0000/trial.json", "logs/notices.jsonl"])
CONTENTS = st.binary(max_size=40)
STEPS = st.one_of(
    st.tuples(st.just("put"), PATHS, CONTENTS),
    st.tuples(st.just("remove"), PATHS),
    st.tuples(st.just("checkpoint"), st.integers(0, 2), CONTENTS),
    st.tuples(st.just("half a checkpoint"), st.integers(0, 2)),
    st.tuples(st.just("turn")),
    st.tuples(st.just("cut turn"), st.integers(0, 6), st.sampled_from(["nothing", "half", "served"])),
    st.tuples(st.just("another process")),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=25), large=st.sampled_from([0, 20, 1 << 20]))
def test_whatever_happens_what_is_restored_is_a_whole_state_and_none_older_than_the_last_copy(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]], large: int
) -> None:
    top = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "LARGE", large)
        patch.setattr("raydistill.files.os.fsync", lambda descriptor: None)
        run, place = top / "run", top / "there"
        run.mkdir()
        copier, now = Copier(run, place), State()
        possible: list[State | None] = [None]
        for name, *values in steps:
            if name == "put":
                put(run, {values[0]: values[1]})
                now[values[0]] = values[1]
            elif name == "remove":
                (run / values[0]).unlink(missing_ok=True)
                now.pop(values[0], None)
            elif name == "checkpoint":
                files = sealed(values[1], f"checkpoints/checkpoint_step{values[0]:09d}")
                put(run, files)
                now |= files
            elif name == "half a checkpoint":
                folder = f"checkpoints/checkpoint_step{values[0]:09d}"
                (run / folder / FILE).unlink(missing_ok=True)
                now = {path: data for path, data in now.items() if not path.startswith(folder)}
            elif name == "turn":
                copier.turn()
                possible = [dict(now)]
            elif name == "cut turn":
                with patch.context() as broken, suppress(RunError):
                    broken.setattr(store, "write", Cut(*values))
                    copier.turn()
                possible.append(dict(now))
            else:
                copier = Copier(run, place)
            found = restored(place, top / "back")
            assert found in possible
            if found is not None:
                possible = possible[possible.index(found) :]
        copier.turn()
        assert restored(place, top / "back") == now


def test_a_state_is_one_in_which_all_files_were_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    changes = iter(range(1, 6))

    def look(folder: Path) -> dict[str, copying.Signature]:
        seen = signatures(folder)
        if number := next(changes, None):  # between what is seen and what is read
            put(run, {"result.json": b"%d" % number, "a/trial.json": b"%d" % number, f"{number}": b""})
            (run / f"{number - 1}").unlink()
        return seen

    put(run, {"result.json": b"0", "a/trial.json": b"0", "0": b""})
    monkeypatch.setattr(copying, "signatures", look)
    Copier(run, tmp_path / "there").turn()
    assert restored(tmp_path / "there", tmp_path / "back") == {"result.json": b"5", "a/trial.json": b"5", "5": b""}


def test_a_folder_that_never_rests_is_not_copied_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    def look(folder: Path) -> dict[str, copying.Signature]:
        put(run, {"metrics.jsonl": b"".join(b"%d" % number for number in range(look.calls))})  # type: ignore[attr-defined]
        look.calls += 1  # type: ignore[attr-defined]
        return signatures(folder)

    look.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(copying, "signatures", look)
    with pytest.raises(RunError, match="change faster than they can be read"):
        Copier(run, tmp_path / "there").turn()
    assert restore(tmp_path / "there", tmp_path / "back") is None


@pytest.mark.parametrize(
    ("path", "goes"),
    [
        ("config.yaml", True),
        ("trials/0003/metrics.jsonl", True),
        ("logs/wandb/offline-run-1/run.wandb", True),
        ("checkpoints", True),
        (f"trials/0003/{CHECKPOINT}/state.pt", True),
        ("logs/ray_train", False),
        ("trials/0003/logs/ray_train/x.json", False),
        ("logs/ray_tune/tuner.pkl", False),
        ("logs/progress.json", False),
        ("logs/progress.json.tmp", False),
        (".config.yaml.12-ab.tmp", False),
        ("checkpoints/.checkpoint_step000000007.12-ab.tmp/state.pt", False),
        ("checkpoints/damaged_checkpoint_step000000007/state.pt", False),
        ("../config.yaml", False),
        ("/etc/passwd", False),
        ("a/../b", False),
        ("a//b", False),
        ("", False),
        (".lock", False),
        ("a\\b", False),
        ("a\0b", False),
        ("a\nb", False),
        ("a" * 256, False),
        ("a/" * 2500 + "a", False),
    ],
)
def test_files_that_travel(path: str, goes: bool) -> None:
    assert travels(path) is goes


def test_links_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "run", {"config.yaml": b""})
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "run" / "folder").symlink_to(tmp_path)
    assert [*signatures(tmp_path / "run")] == ["config.yaml"]


@pytest.mark.parametrize("damage", ["no state", "no record", "another state", "a cut record", "a strange record"])
def test_a_checkpoint_goes_whole_or_not_at_all(tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    put(run, {"config.yaml": b""} | sealed(b"sound", f"{CHECKPOINT}1") | sealed(b"broken"))
    if damage == "no state":
        (run / CHECKPOINT / FILE).unlink()
    elif damage == "no record":
        (run / CHECKPOINT / RECORD).unlink()
    elif damage == "another state":
        (run / CHECKPOINT / FILE).write_bytes(b"brOken")
    else:
        (run / CHECKPOINT / RECORD).write_text('{"bytes": 6,' if damage == "a cut record" else "[6]")
    Copier(run, tmp_path / "there").turn()
    assert restored(tmp_path / "there", tmp_path / "back") == {"config.yaml": b""} | sealed(b"sound", f"{CHECKPOINT}1")


def test_what_has_not_changed_is_not_sent_again_and_what_is_not_needed_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place = tmp_path / "run", tmp_path / "there"
    put(run, {"config.yaml": b"config", "metrics.jsonl": b"1", "same": b"config"})
    copier = Copier(run, place)
    copier.turn()
    kept = objects_of(place)
    assert len(kept) == 2
    sent = []
    monkeypatch.setattr(store, "write", lambda path, data, real=store.write: (sent.append(path.name), real(path, data)))
    copier.turn()
    assert sent == []
    put(run, {"metrics.jsonl": b"12"})
    Copier(run, place).turn()  # as after a restart
    assert sent[1:] == [INDEX] and len(sent) == 2
    assert objects_of(place) == kept | {sent[0]}  # those of the index before stay, for who reads it now
    again = Copier(run, place)
    put(run, {"metrics.jsonl": b"123"})
    again.turn()
    assert len(objects_of(place)) == 3 and not kept <= objects_of(place)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy."""
    put(tmp_path / "run", {"config.yaml": b"config", "metrics.jsonl": b"metrics"})
    Copier(tmp_path / "run", tmp_path / "there").turn()
    return tmp_path / "there"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "missing"),
        (lambda path: path.write_bytes(b"confi"), "5 bytes instead of 6"),
        (lambda path: path.write_bytes(b"Config"), "its content does not have the checksum"),
        (lambda path: path.write_bytes(bytes(1 << 20)), "1048576 bytes instead of 6"),
    ],
    ids=["missing", "cut", "flipped", "another"],
)
def test_a_damaged_object_is_named_and_nothing_is_left(
    tmp_path: Path, place: Path, damage: Callable[[Path], None], said: str
) -> None:
    victim = place / OBJECTS / xxhash.xxh3_128_hexdigest(b"config")
    damage(victim)
    with nothing_written(tmp_path), pytest.raises(DataError, match=f"{victim}: damaged: {said}") as caught:
        restore(place, tmp_path / "back")
    assert "--resume" in str(caught.value) and "\n" not in str(caught.value)


def test_the_run_itself_mends_its_copy(tmp_path: Path, place: Path) -> None:
    victim = place / OBJECTS / xxhash.xxh3_128_hexdigest(b"config")
    victim.write_bytes(b"con")
    (place / INDEX).write_text((place / INDEX).read_text()[:-20])
    with pytest.raises(DataError, match=f"{place / INDEX}: damaged"):
        restore(place, tmp_path / "back")
    Copier(tmp_path / "run", place).turn()
    assert restored(place, tmp_path / "back") == {"config.yaml": b"config", "metrics.jsonl": b"metrics"}


def test_what_has_no_room_is_not_begun(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(restoring.shutil, "disk_usage", lambda path: used._replace(free=12))  # type: ignore[attr-defined]
    with nothing_written(tmp_path), pytest.raises(RunError, match=r"13 bytes are to come from .* but 12 are free"):
        restore(place, tmp_path / "back")


def test_an_interrupted_restore_leaves_nothing(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, data: bytes) -> None:
        if path.name == "metrics.jsonl":
            raise KeyboardInterrupt
        path.write_bytes(data)

    with monkeypatch.context() as patch, nothing_written(tmp_path), pytest.raises(KeyboardInterrupt):
        patch.setattr(restoring, "write_atomically", interrupted)
        restore(place, tmp_path / "back")
    put(tmp_path / ".back.restored.tmp", {"left": b"by one that was killed"})
    assert restored(place, tmp_path / "back") == {"config.yaml": b"config", "metrics.jsonl": b"metrics"}


def test_a_run_that_goes_on_while_it_is_read_is_read_anew(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copier = Copier(tmp_path / "run", place)

    def twice(path: str, *rest: Any, real: Any = restoring._content) -> Any:
        for number in range(2):  # the objects of the index that is being read are gone then
            if not (tmp_path / "run" / f"later{number}").exists():
                put(tmp_path / "run", {"config.yaml": b"%d" % number, f"later{number}": b""})
                copier.turn()
        return real(path, *rest)

    monkeypatch.setattr(restoring, "_content", twice)
    found = restored(place, tmp_path / "back")
    assert found == {"config.yaml": b"1", "metrics.jsonl": b"metrics", "later0": b"", "later1": b""}


def test_the_copy_of_a_sweep_is_the_sweep(tmp_path: Path) -> None:
    run = make_sweep(tmp_path / "sweep", trials=6)
    for number in range(6):
        put(run / "trials" / f"{number:05d}", sealed(b"%d" % number))
    whole = files_below(run)
    put(run, {"logs/ray_tune/tuner.pkl": b"", "trials/00000/logs/ray_train/x.json": b"", "logs/progress.json": b"{}"})
    Copier(run, tmp_path / "there").turn()
    assert restored(tmp_path / "there", tmp_path / "elsewhere") == whole
    assert len(whole) > 20


# What training and sweeps do with a copy: runs by files alone.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "EVERY_S", 0.01)
    monkeypatch.setattr(keeping, "FRUITLESS_S", 0.05)


def backed(tmp_path: Path, machine: str = "here", **sections: Any) -> Experiment:
    return digits(tmp_path / machine, backup=str(tmp_path / "backups"), **sections)


def claim(experiment: Experiment, *, resume: bool = False) -> Any:
    return claimed(experiment.folder, resume=resume, backup=experiment.backup)


def run_of(experiment: Experiment, *, resume: bool = False, steps: int = 3) -> None:
    """What a run leaves, without a run."""
    with claim(experiment, resume=resume) as folder:
        folder.begin(experiment, resume=resume)
        for step in range(len(folder.history()), steps):
            put(folder.path, sealed(b"%d" % step, f"checkpoints/checkpoint_step{step:09d}"))
            folder.write_history([*folder.history(), {"epoch": step}])
        folder.succeed()


def copied(tmp_path: Path) -> State | None:
    return restored(tmp_path / "backups" / "digits", tmp_path / "check" / "run")


@pytest.fixture
def check(tmp_path: Path) -> None:
    (tmp_path / "check").mkdir()


@pytest.mark.usefixtures("check")
def test_a_run_is_copied_to_its_end_and_comes_back_elsewhere(tmp_path: Path) -> None:
    run_of(backed(tmp_path))
    here = files_below(backed(tmp_path).folder)
    assert "_SUCCESS" in here and copied(tmp_path) == here
    there = backed(tmp_path, "elsewhere")
    with claim(there, resume=True) as folder:
        assert folder.succeeded
        assert load_experiment(folder.path / "config.yaml") == backed(tmp_path)
    assert files_below(there.folder) == here


@pytest.mark.usefixtures("check")
def test_an_unfinished_run_goes_on_elsewhere_from_its_copy(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claim(backed(tmp_path)) as folder:
        folder.begin(backed(tmp_path))
        folder.write_history([{"epoch": 0}])
        raise KeyboardInterrupt
    assert "_SUCCESS" not in (copied(tmp_path) or {"_SUCCESS": b""})
    there = backed(tmp_path, "elsewhere")
    run_of(there, resume=True)
    assert RunFolder(there.folder).history() == [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}]
    assert copied(tmp_path) == files_below(there.folder)


@pytest.mark.usefixtures("check")
def test_the_folder_that_is_there_goes_on_and_not_its_copy(tmp_path: Path) -> None:
    run_of(backed(tmp_path), steps=1)
    (backed(tmp_path).folder / "_SUCCESS").unlink()
    RunFolder(backed(tmp_path).folder).write_history([{"epoch": 0}, {"epoch": 1}])
    run_of(backed(tmp_path), resume=True, steps=2)
    assert (copied(tmp_path) or {})["metrics.jsonl"].count(b"\n") == 2


def test_a_copy_is_never_overwritten_by_another_run(tmp_path: Path) -> None:
    run_of(backed(tmp_path))
    refusal = pytest.raises(ConfigError, match=r"digits: holds the copy of a run already; --resume goes on with it")
    with nothing_written(tmp_path / "backups"), refusal, claim(backed(tmp_path, "elsewhere")):
        pass


def test_other_files_are_not_replaced_by_a_copy(tmp_path: Path) -> None:
    run_of(backed(tmp_path))
    there = backed(tmp_path, "elsewhere")
    put(there.folder, {"thesis.tex": b"years of work"})
    with pytest.raises(ConfigError, match="no run to resume here"), claim(there, resume=True):
        pass
    assert files_below(there.folder) == {"thesis.tex": b"years of work"}


def test_where_there_is_no_copy_either_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run to resume here, nor in .*backups"):
        run_of(backed(tmp_path), resume=True)


def test_two_do_not_write_to_one_copy(tmp_path: Path) -> None:
    refusal = pytest.raises(ConfigError, match=r"backups/digits: another process writes this copy")
    with claim(backed(tmp_path)) as folder:
        folder.begin(backed(tmp_path))
        with refusal, claim(backed(tmp_path, "elsewhere")):
            pass


def test_a_run_that_left_nothing_leaves_no_copy(tmp_path: Path, quick: None) -> None:
    with pytest.raises(DataError), claim(backed(tmp_path)) as folder:
        folder.begin(backed(tmp_path))
        until(lambda: read_index(tmp_path / "backups" / "digits"))
        shutil.rmtree(folder.path)
        raise DataError("images are wrong")
    assert not (tmp_path / "backups" / "digits").exists()
    run_of(backed(tmp_path))


def test_a_run_that_does_not_begin_copies_nothing(tmp_path: Path) -> None:
    without = digits(tmp_path / "here")
    with claimed(without.folder, resume=False) as folder:
        folder.begin(without)
        folder.succeed()
    with pytest.raises(DataError), claim(backed(tmp_path)):  # in whose folder the one before still is
        raise DataError("images are wrong")
    assert read_index(tmp_path / "backups" / "digits") is None
    run_of(backed(tmp_path))


def until(met: Callable[[], Any]) -> Any:
    for _ in range(2000):
        if found := met():
            return found
        keeping.time.sleep(0.005)  # type: ignore[attr-defined]
    raise AssertionError("it does not come")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """A storage that can be switched off and on."""
    off = False

    def write(path: Path, data: str | bytes, real: Any = store.write) -> None:
        if off:
            raise RunError(f"{path}: cannot be written: the server cannot be reached")
        real(path, data)

    def switch(to: bool) -> None:
        nonlocal off
        off = to

    monkeypatch.setattr(store, "write", write)
    yield switch


@pytest.mark.usefixtures("check", "quick")
def test_a_storage_that_is_gone_for_a_while_costs_a_notice(tmp_path: Path, broken: Callable[[bool], None]) -> None:
    experiment = backed(tmp_path)
    with claim(experiment) as folder:
        folder.begin(experiment)
        until(lambda: read_index(tmp_path / "backups" / "digits"))
        broken(True)
        folder.write_history([{"epoch": 0}])
        until(folder.notices)
        folder.write_history([{"epoch": 0}, {"epoch": 1}])
        keeping.time.sleep(0.1)  # type: ignore[attr-defined]
        assert len(folder.notices()) == 1
        broken(False)
        until(lambda: len(folder.notices()) == 2)
    lost, back = folder.notices()
    assert lost.startswith("backup: ") and lost.endswith("reached; it is tried again, and the run goes on")
    assert back == "backup: goes on"
    assert copied(tmp_path) == files_below(experiment.folder)


@pytest.mark.usefixtures("check", "quick")
def test_a_last_copy_that_fails_is_one_line_and_resume_makes_it(tmp_path: Path, broken: Callable[[bool], None]) -> None:
    experiment = backed(tmp_path)
    broken(True)
    with pytest.raises(RunError, match=r"digits: all of it is here, but its copy .* --resume copies it") as caught:
        run_of(experiment)
    assert "\n" not in str(caught.value)
    assert copied(tmp_path) is None
    broken(False)
    with claim(experiment, resume=True) as folder:
        assert folder.succeeded
    assert copied(tmp_path) == files_below(experiment.folder)


@pytest.mark.usefixtures("quick")
def test_a_run_that_fails_keeps_its_own_error(
    tmp_path: Path, broken: Callable[[bool], None], capfd: pytest.CaptureFixture[str]
) -> None:
    broken(True)
    with pytest.raises(RunError, match=r"^the loss is no number$"), claim(backed(tmp_path)) as folder:
        folder.begin(backed(tmp_path))
        raise RunError("the loss is no number")
    assert capfd.readouterr().err.count("lacks the end") == 1


def test_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of(backed(tmp_path))
    url = str(tmp_path / "backups" / "digits")
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    ended = command("pull", url, "--json")
    said = json.loads(ended.stdout.splitlines()[-1])
    here = files_below(backed(tmp_path).folder)
    assert said == {"run": "runs/digits", "files": len(here), "bytes": sum(map(len, here.values()))}
    assert files_below(Path("runs/digits")) == here
    assert pull(f"file://{url}", Path("other"))[0] == Path("other")
    assert files_below(Path("other")) == here
    for arguments, told in (
        ((url,), "runs/digits: is there already; name another folder"),
        ((str(tmp_path / "backups"), "third"), "holds no copy of a run, but ['digits'] below it do"),
        ((str(tmp_path / "nowhere"), "third"), "holds no copy of a run"),
    ):
        with nothing_written(tmp_path):
            refused = command("pull", *arguments)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert told in refused.stderr


def test_a_notice_that_the_disk_refuses_ends_no_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RunError("No space left on device")

    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    monkeypatch.setattr(folder, "note", refuse)
    backup = keeping.Backup(folder, tmp_path / "copy", lambda: None, own=True)
    monkeypatch.setattr(backup._copier, "turn", refuse)
    assert not backup._turn()
    monkeypatch.undo()
    assert backup._turn()
