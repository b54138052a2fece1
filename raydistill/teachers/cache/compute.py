"""The rows of one shard: from images through the teacher to a file and its record. Runs in Ray's actors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raydistill.data.config import AugmentConfig
from raydistill.data.views import parameters, render
from raydistill.files import write_atomically
from raydistill.teachers.cache.codec import Array
from raydistill.teachers.cache.manifest import Content, ShardRecord, record_path, shard_path, write_part
from raydistill.teachers.cache.shards import Place, encode, ids_sha256

if TYPE_CHECKING:
    from raydistill.models.taps import Tapped

_UNCHANGED = AugmentConfig.model_construct(crop=0, flip=0.0, resized_crop=None, cutout=0)


@dataclass(frozen=True)
class Source:
    """What all shards are computed from: images uint8 [N, C, H, W], ids int64 [N], and a frozen network."""

    content: Content
    images: Array
    ids: Array
    network: Tapped
    batch_size: int
    device: torch.device


def compute_shard(source: Source, folder: Path, place: Place) -> ShardRecord:
    """Compute a shard and write it, then its record. Doing so twice leaves the same files.

    Raises:
        CacheError: if the teacher's outputs can't be stored.
        RunError: if the disk refuses.
    """
    ids = source.ids[place.first : place.first + place.rows]
    data = encode(source.content, place, ids, _outputs(source, place), _parameters(source, place))
    write_atomically(shard_path(folder, place.name), data)
    record = ShardRecord(
        name=place.name,
        view=place.view,
        first=place.first,
        rows=place.rows,
        bytes=data.nbytes,
        sha256=hashlib.sha256(data).hexdigest(),
        ids=ids_sha256(ids),
        forwards=place.rows,
    )
    write_part(record_path(folder, place.name), record)
    return record


@torch.no_grad()
def teacher_rows(source: Source, positions: Array, view: int) -> dict[str, Array]:
    """Run the teacher on one view of some images: positions int64 [B] -> name -> float32 [B, *shape]."""
    content = source.content
    images = torch.from_numpy(source.images[positions]).to(source.device)
    ids = torch.from_numpy(source.ids[positions]).to(source.device)
    pixels = render(
        images,
        ids,
        torch.full_like(ids, view),
        augment=augment_of(content),
        seed=content.augmentation.seed if content.augmentation else 0,
        mean=content.preprocessing.mean,
        std=content.preprocessing.std,
    )
    found = source.network(pixels, outputs=tuple(content.teacher.outputs))
    return {name: value.float().cpu().numpy() for name, value in found.items()}


def augment_of(content: Content) -> AugmentConfig:
    """Return the operations behind a cache's views."""
    return AugmentConfig(**content.augmentation.operations) if content.augmentation else _UNCHANGED


def _outputs(source: Source, place: Place) -> dict[str, Array]:
    shapes = source.content.teacher.outputs
    whole = {name: np.empty((place.rows, *shape), dtype=np.float32) for name, shape in shapes.items()}
    for start in range(0, place.rows, source.batch_size):
        stop = min(start + source.batch_size, place.rows)
        positions = np.arange(place.first + start, place.first + stop)
        for name, values in teacher_rows(source, positions, place.view).items():
            whole[name][start:stop] = values
    return whole


def _parameters(source: Source, place: Place) -> dict[str, Any] | None:
    """Crop box, flip and cutout of a shard's rows; None for view 0, where nothing is drawn."""
    content = source.content
    if not place.view or content.augmentation is None:
        return None
    ids = torch.from_numpy(np.array(source.ids[place.first : place.first + place.rows]))
    drawn = parameters(
        ids,
        torch.full_like(ids, place.view),
        augment=augment_of(content),
        seed=content.augmentation.seed,
        size=content.preprocessing.image_shape[1:],
    )
    return {name: value.numpy() for name, value in drawn.items()}
