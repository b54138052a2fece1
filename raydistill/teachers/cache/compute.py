"""The rows of one shard: from images through the teacher to a file and its record. Runs in Ray's actors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raydistill.data.ahead import ahead
from raydistill.data.augment_config import AugmentConfig
from raydistill.data.mixing import Mixture, Partners, blend, draw_mixture
from raydistill.data.views import parameters, render
from raydistill.teachers.cache import store
from raydistill.teachers.cache.codec import Array
from raydistill.teachers.cache.manifest import Content, ShardRecord, record_path, shard_path, write_part
from raydistill.teachers.cache.remote import Location
from raydistill.teachers.cache.shards import Place, encode

if TYPE_CHECKING:
    from raydistill.data.image_set import ImageSet
    from raydistill.models.taps import Tapped

_UNCHANGED = AugmentConfig.model_construct(crop=0, flip=0.0, resized_crop=None, cutout=0)


def _ignore(rows: int) -> None:
    del rows


@dataclass(frozen=True)
class Source:
    """What all shards are computed from.

    Attributes:
        content: of the cache.
        images: what the teacher sees; its tensors lie on the CPU.
        network: frozen, on ``device``.
        batch_size: of the teacher.
        device: of the teacher.
        partners: ids, int64 [M], of the images that views are mixed with, as ``request.partners_of`` gives them.
        computed: called with the number of rows after each batch.
    """

    content: Content
    images: ImageSet
    network: Tapped
    batch_size: int
    device: torch.device
    partners: Array | None = None
    computed: Callable[[int], None] = _ignore

    @cached_property
    def mixing(self) -> Partners | None:
        """The partners and where they lie among the images, on the CPU."""
        if self.partners is None:
            return None
        return Partners.within(torch.tensor(self.partners), self.images.ids)

    def mixture(self, positions: Tensor, view: int) -> Mixture | None:
        """What the rows at ``positions``, int64 [B], are mixed with in a view; None where nothing is."""
        if not view or self.mixing is None or self.content.augmentation is None:
            return None
        ids = self.images.ids[positions]
        return draw_mixture(
            ids,
            positions,
            torch.full_like(ids, view),
            partners=self.mixing,
            augment=augment_of(self.content),
            seed=self.content.augmentation.seed,
            size=self.content.preprocessing.image_shape[1:],
        )


@dataclass(frozen=True)
class Gathered:
    """One view of some images before it is drawn, on the CPU and ready for the way to the device.

    Attributes:
        view: its number.
        ids: int64 [B].
        images: uint8 [B, C, H, W].
        mixture: what they are mixed with, or None.
        others: uint8 [B, C, H, W], the images that they are mixed with, or None.
    """

    view: int
    ids: Tensor
    images: Tensor
    mixture: Mixture | None
    others: Tensor | None


def compute_shard(source: Source, folder: Location, place: Place) -> ShardRecord:
    """Compute a shard and write it, then its record. Doing so twice leaves the same files.

    Raises:
        CacheError: if the teacher's outputs can't be stored.
        RunError: if the disk refuses.
    """
    ids = source.images.ids[place.first : place.first + place.rows].numpy()
    encoded = encode(source.content, place, ids, _outputs(source, place), _parameters(source, place))
    store.write(shard_path(folder, place.name), encoded.data)
    record = encoded.record(forwards=place.rows, device=source.device.type)
    write_part(record_path(folder, place.name), record)
    return record


def teacher_rows(source: Source, positions: Array, view: int) -> dict[str, Array]:
    """Run the teacher on one view of some images: positions int64 [B] -> name -> float32 [B, *shape]."""
    return run_teacher(source, gather(source, torch.from_numpy(positions), view))


def gather(source: Source, positions: Tensor, view: int) -> Gathered:
    """Take or decode the images at ``positions``, int64 [B], and those that they are mixed with in a view."""
    mixture = source.mixture(positions, view)
    return Gathered(
        view=view,
        ids=source.images.ids[positions],
        images=_ready(source, positions),
        mixture=mixture,
        others=None if mixture is None else _ready(source, mixture.positions),
    )


@torch.inference_mode()
def run_teacher(source: Source, batch: Gathered) -> dict[str, Array]:
    """Draw the view and compute the teacher's outputs: name -> float32 [B, *shape]."""
    pixels = _drawn(source, batch.images, batch.ids, batch.view)
    if batch.mixture is not None and batch.others is not None:
        others = _drawn(source, batch.others, batch.mixture.ids, batch.view)
        pixels = blend(pixels, others, batch.mixture.to(source.device))
    if source.device.type == "cuda":
        pixels = pixels.to(memory_format=torch.channels_last)
    found = source.network(pixels, outputs=tuple(source.content.teacher.outputs))
    return {name: value.float().cpu().numpy() for name, value in found.items()}


def _ready(source: Source, positions: Tensor) -> Tensor:
    """Pixels, uint8 [B, C, H, W]; for a GPU in memory that it can fetch by itself."""
    pixels = source.images.pixels(positions)
    return pixels.pin_memory() if source.device.type == "cuda" else pixels


def _drawn(source: Source, images: Tensor, ids: Tensor, view: int) -> Tensor:
    """One view of some images by themselves, normalised: float32 [B, C, H, W]."""
    content = source.content
    ids = ids.to(source.device)
    return render(
        images.to(source.device, non_blocking=True),
        ids,
        torch.full_like(ids, view),
        augment=augment_of(content),
        seed=content.augmentation.seed if content.augmentation else 0,
        mean=content.preprocessing.mean,
        std=content.preprocessing.std,
    )


def augment_of(content: Content) -> AugmentConfig:
    """Return the operations behind a cache's views."""
    return AugmentConfig(**content.augmentation.operations) if content.augmentation else _UNCHANGED


def _outputs(source: Source, place: Place) -> dict[str, Array]:
    shapes = source.content.teacher.outputs
    whole = {name: np.empty((place.rows, *shape), dtype=np.float32) for name, shape in shapes.items()}
    positions = torch.arange(place.first, place.first + place.rows)
    batches = ahead(lambda part: gather(source, part, place.view), torch.split(positions, source.batch_size))
    start = 0
    for batch in batches:  # the next ones are decoded meanwhile
        stop = start + len(batch.ids)
        for name, values in run_teacher(source, batch).items():
            whole[name][start:stop] = values
        source.computed(stop - start)
        start = stop
    return whole


def _parameters(source: Source, place: Place) -> dict[str, Any] | None:
    """Crop box, flip, cutout and mixture of a shard's rows; None for view 0, where nothing is drawn."""
    content = source.content
    if not place.view or content.augmentation is None:
        return None
    positions = torch.arange(place.first, place.first + place.rows)
    ids = source.images.ids[positions]
    drawn = parameters(
        ids,
        torch.full_like(ids, place.view),
        augment=augment_of(content),
        seed=content.augmentation.seed,
        size=content.preprocessing.image_shape[1:],
    )
    mixture = source.mixture(positions, place.view)
    if mixture is not None:
        drawn |= {"partner": mixture.ids, "share": mixture.share, "covered": mixture.box}
    return {name: value.numpy() for name, value in drawn.items()}
