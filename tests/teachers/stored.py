"""Caches written in this process, without Ray, and a teacher that has learnt something."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from raydistill.config import Experiment
from raydistill.data.datasets import ImageSet, load_train
from raydistill.data.resident import ResidentSet
from raydistill.data.views import normalise
from raydistill.files import make_folders
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.teachers.cache.commit import begin, finish
from raydistill.teachers.cache.compute import Source, compute_shard
from raydistill.teachers.cache.manifest import RECORDS, SHARDS
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.request import partners_of, requested
from raydistill.teachers.cache.shards import Place
from raydistill.teachers.network import teacher_of


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Several threads of several test processes would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@one_thread()
def learnt(experiment: Experiment, path: Path, steps: int = 20) -> Path:
    """Train the experiment's teacher on its images for a moment and save its weights."""
    torch.manual_seed(0)
    images = ResidentSet(load_train(experiment.data), "cpu")
    assert experiment.teacher is not None and images.labels is not None
    network = build_model(experiment.teacher.model, images.num_classes, in_channels=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    pixels = normalise(images.images, images.mean, images.std)
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (64,))
        loss = cross_entropy(network(pixels[chosen], outputs=("logits",))["logits"], images.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_weights(network, path)
    return path


def source_of(experiment: Experiment, images: ImageSet) -> Source:
    """What the shards of the experiment's cache are computed from."""
    assert experiment.teacher is not None
    network, batch_size = teacher_of(experiment, images), experiment.teacher.batch_size
    content = requested(experiment, images, network)
    return Source(content, images, network, batch_size, torch.device("cpu"), partners_of(content, images))


@one_thread()
def store(experiment: Experiment, **cache: Any) -> TeacherCache:
    """Write the experiment's cache, with other settings of the section ``cache`` where given, and open it."""
    experiment = experiment.override({f"cache.{name}": value for name, value in cache.items()})
    source = source_of(experiment, load_train(experiment.data))
    content = source.content
    folder = Path(experiment.cache.root) / content.folder_name
    make_folders(folder, folder / SHARDS, folder / RECORDS)
    begin(folder, content)
    places = [Place(content.key, *shard) for shard in content.shards()]
    finish(folder, content, {place.name: compute_shard(source, folder, place) for place in places})
    return TeacherCache.open(folder)
