"""Run folders from anybody: what they hold is read as text, and nothing outside of them is written."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from raydistill.config import Experiment
from raydistill.errors import ConfigError, DataError, RunError
from raydistill.training.run_folder import RunFolder, claimed
from raydistill.training.trainer import train
from raydistill.tuning.sweep import tune
from tests.conftest import digits
from tests.reporting.folders import make_run
from tests.security.attacks import LAUGHS, Trap, nothing_written, refused


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that can go on."""
    experiment = digits(tmp_path)
    with claimed(experiment.folder, resume=False) as folder:
        folder.begin(experiment)
    return experiment.folder


@pytest.mark.parametrize("name", ["logs", "checkpoints", "logs/progress.json.tmp", "logs/ray_train"])
def test_a_run_does_not_go_on_through_links_that_lead_out_of_its_folder(tmp_path: Path, run: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    place = run / name
    if place.is_dir():
        place.rmdir()
    place.symlink_to(tmp_path / "outside")
    refusal = pytest.raises(ConfigError, match="leads out of the run's folder")
    with nothing_written(tmp_path), refusal, claimed(run, resume=True):
        pass


def test_links_within_a_run_and_to_it_stay_allowed(tmp_path: Path, run: Path) -> None:
    (run / "logs" / "latest").symlink_to(run / "checkpoints")
    (tmp_path / "link").symlink_to(run.parent)
    with claimed(tmp_path / "link" / run.name, resume=True) as folder:
        assert folder.path.samefile(run)


def test_a_lock_is_not_emptied_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".kd.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="cannot be made"), claimed(tmp_path / "kd", resume=False):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000, '{"a":' * 100_000, "\x00"])
def test_damaged_records_of_a_run_are_told_in_one_line(run: Path, text: str) -> None:
    (run / "result.json").write_text(text)
    (run / "metrics.jsonl").write_text(f"{text}\n" if text else "\n")
    for read in (RunFolder(run).result, RunFolder(run).history):
        with pytest.raises(DataError) as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "metrics.jsonl", "environment.json", "card.json"])
@pytest.mark.parametrize("kind", ["pickle", "deep", "tag", "bomb"])
def test_reports_refuse_what_is_no_run(tmp_path: Path, sprung: Path, name: str, kind: str) -> None:
    folder = make_run(tmp_path / "run", 70.0)
    contents = {
        "pickle": pickle.dumps(Trap(sprung)),
        "deep": b"[" * 100_000,
        "tag": f'!!python/object/apply:os.system ["touch {sprung}"]'.encode(),
        "bomb": LAUGHS.encode(),
    }
    (folder / name).write_bytes(contents[kind])
    with nothing_written(tmp_path):
        assert str(folder) in refused("compare", str(folder))


TRAPPED = {
    "ray_train": (
        "checkpoint_manager_snapshot.pkl",
        "trainer.pkl",
        "tuner.pkl",
        "error.pkl",
        ".validate_storage_marker",
    ),
    "ray_tune": ("tuner.pkl", "trainable.pkl", "searcher-state-x.pkl", "search_gen_state-x.json", "error.pkl"),
}


def with_traps(experiment: Experiment, sprung: Path) -> None:
    """Put a trap wherever Ray keeps a pickle of its own, or did so in earlier versions."""
    for state, names in TRAPPED.items():
        folder = experiment.folder / "logs" / state
        folder.mkdir(parents=True, exist_ok=True)
        for name in {*names, *(path.name for path in folder.rglob("*.pkl"))}:
            (folder / name).write_bytes(pickle.dumps(Trap(sprung)))
        for path in folder.rglob("*.pkl"):
            path.write_bytes(pickle.dumps(Trap(sprung)))


@pytest.mark.slow
def test_a_run_that_goes_on_reads_no_pickle_of_its_folder(tmp_path: Path, sprung: Path, ray_session: None) -> None:
    experiment = digits(tmp_path)
    train(experiment)
    (experiment.folder / "_SUCCESS").unlink()
    with_traps(experiment, sprung)
    assert train(experiment, resume=True)["epochs"] == 2


@pytest.mark.slow
def test_a_sweep_that_goes_on_reads_no_pickle_of_its_folder(tmp_path: Path, sprung: Path, ray_session: None) -> None:
    space = {"train.optimizer.lr": {"loguniform": [0.01, 0.1]}}
    experiment = digits(tmp_path, tune={"samples": 1, "scheduler": {"name": "none"}, "space": space})
    tune(experiment)
    (experiment.folder / "_SUCCESS").unlink()
    with_traps(experiment, sprung)
    assert tune(experiment, resume=True)["trials"] == 2
