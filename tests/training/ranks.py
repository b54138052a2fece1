"""Whole training runs on some ranks; run in processes of their own and in the test's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raydistill.config import Experiment
from raydistill.training.assembly import assemble
from raydistill.training.loop import fit, validate
from raydistill.training.material import prepare
from raydistill.training.session import Session
from tests.conftest import digits, teaching

METHODS = {"ce": {"weight": 0.5}, "kd": {"weight": 0.5}, "pkt": {"weight": 10.0}, "seed": {"queue": 64}}
"""Losses of single rows, of all pairs of rows, and of a queue."""

TRAIN = {"epochs": 2, "batch_size": 20, "drop_last": False, "optimizer": {"lr": 0.01}}
CASES: dict[str, dict[str, Any]] = {
    "whole batches": {"methods": METHODS, "train": TRAIN},
    "micro-batches": {
        "methods": METHODS,
        "train": TRAIN | {"accumulate": 2, "clip": 0.5, "ema": {"decay": 0.5, "warmup": False}},
    },
    "lars": {
        "methods": {"ce": {}},
        "train": TRAIN | {"optimizer": {"name": "lars", "lr": 1.0, "trust": 0.01}, "schedule": {"warmup": 0.5}},
    },
}
"""Of 48 images, so the last batch has 8: on three ranks 3, 3 and 2."""


def experiment_of(case: str, folder: Path, teacher: str, ranks: int) -> Experiment:
    data = {"name": "digits", "subset": 60, "validation": 0.2, "augment": {"crop": 1}}
    scale = {"workers": ranks, "sync_batch_norm": True}
    return digits(folder, data=data, teacher=teaching(Path(teacher)) | {"source": "live"}, scale=scale, **CASES[case])


def trained(experiment: Experiment, rank: int = 0, ranks: int = 1) -> tuple[Session, dict[str, Any]]:
    """Train; return the session, and what a test compares."""

    def wrap(module: nn.Module) -> nn.Module:
        return DistributedDataParallel(module, forward_sync_buffers=False) if ranks > 1 else module

    device = torch.device("cpu")
    session = assemble(experiment, prepare(experiment), device=device, rank=rank, world_size=ranks, wrap=wrap)
    before = validate(session)
    fit(session, lambda metrics, session: session.history.append(metrics))
    return session, {
        "before": before,
        "history": session.history,
        "state": {name: value.clone() for name, value in session.distiller.state_dict().items()},
        "exported": {name: value.clone() for name, value in session.student.state_dict().items()},
    }


def train_on_a_rank(rank: int, ranks: int, folder: str, teacher: str) -> None:
    """One process: all cases."""
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=rank, world_size=ranks)
    found = {case: trained(experiment_of(case, path, teacher, ranks), rank, ranks)[1] for case in CASES}
    torch.save(found, path / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
