"""The number of workers changes nothing but the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from raydistill.errors import ConfigError
from raydistill.training.run_folder import RunFolder
from raydistill.training.trainer import train
from tests.conftest import digits
from tests.training.ranks import CASES, experiment_of, train_on_a_rank, trained
from tests.training.sessions import session_of, without_times


def results(record: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in without_times(record).items() if name != "teacher_forwards"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, teacher_weights: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("alone")
    found = {case: trained(experiment_of(case, folder, str(teacher_weights), 1))[1] for case in CASES}
    torch.set_num_threads(threads)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_train_what_one_process_does(
    tmp_path: Path, teacher_weights: Path, alone: dict[str, Any], ranks: int
) -> None:
    multiprocessing.spawn(train_on_a_rank, args=(ranks, str(tmp_path), str(teacher_weights)), nprocs=ranks)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for case, expected in alone.items():
        first = found[0][case]
        for rank in range(ranks):
            mine = found[rank][case]
            assert mine["before"] == pytest.approx(expected["before"], rel=1e-5)
            for left, right in zip(mine["history"], expected["history"], strict=True):
                assert results(left) == pytest.approx(results(right), rel=1e-4), case
            for kind in ("state", "exported"):
                assert mine[kind].keys() == expected[kind].keys()
                for name, value in expected[kind].items():
                    torch.testing.assert_close(mine[kind][name], value, rtol=1e-4, atol=1e-5, msg=f"{case} {name}")
                    assert torch.equal(mine[kind][name], first[kind][name]), f"{case}: {name} differs by rank"


def test_the_last_batch_is_of_two_images_each_or_refused(tmp_path: Path) -> None:
    data = {"name": "digits", "subset": 60, "validation": 0.2}
    odd = digits(tmp_path, data=data, train={"batch_size": 47, "drop_last": False})
    with pytest.raises(ConfigError, match=r"train\.drop_last = false: the last batch of an epoch would have 1 of"):
        session_of(odd)
    assert session_of(odd.override({"train.drop_last": True})).steps_per_epoch == 1
    assert session_of(odd.override({"train.batch_size": 46})).steps_per_epoch == 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_workers_of_ray_train_what_one_does(tmp_path: Path) -> None:
    """Batches of 33 images, 17 and 16, in two micro-batches, and a last one of 27."""
    settings = {"epochs": 2, "batch_size": 33, "drop_last": False, "accumulate": 2, "optimizer": {"lr": 0.01}}
    settings |= {"ema": {"decay": 0.9}, "clip": 1.0}
    found = []
    for workers in (1, 2):
        scale = {"workers": workers, "sync_batch_norm": True, "cpus_per_worker": 1}
        result = train(digits(tmp_path, name=f"of-{workers}", scale=scale, train=settings))
        assert result["averaged"]
        folder = RunFolder(Path(result["run"]))
        found.append((result["top1"], folder.history(), load_file(folder.path / "student.safetensors")))
    (top1, history, weights), (other_top1, other_history, other_weights) = found
    assert other_top1 == pytest.approx(top1, abs=1.0)
    for left, right in zip(history, other_history, strict=True):
        assert results(left) == pytest.approx(results(right), rel=2e-3)
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, rtol=1e-3, atol=2e-4)
