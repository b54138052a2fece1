"""Makes run folders with students that have learnt a little, in a second and without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from raydistill.data.datasets import load_train, split_train
from raydistill.data.views import normalise
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.training.run_folder import RunFolder
from tests.conftest import digits

BATCH = 64


def make_trained_run(folder: Path, *, steps: int = 40, result: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A finished run of digits whose student took so many steps of cross entropy."""
    experiment = digits(folder, **sections)
    run = RunFolder(experiment.folder)
    run.begin(experiment)
    images = split_train(load_train(experiment.data), experiment.data).train
    assert images.labels is not None
    torch.manual_seed(0)
    network = build_model(experiment.student.model, images.num_classes, in_channels=images.shape[0])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    order = torch.arange(steps * BATCH) % len(images)
    for positions in order.split(BATCH)[:steps]:
        pixels = normalise(images.pixels(positions), images.mean, images.std)
        loss = F.cross_entropy(network(pixels, ("logits",))["logits"], images.labels[positions])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_weights(network, run.path / "student.safetensors")
    told = {"kind": "train", "run": str(run.path), "name": experiment.name, "seed": experiment.seed}
    measured = {"top1": 87.5, "val_top1": 86.0, "best_val_top1": 88.0, "epochs": 2, "seconds": 3.25}
    run.write_result({**told, "student": experiment.student.model, **measured, **(result or {})})
    run.succeed()
    return run.path
