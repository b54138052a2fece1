"""Whether a cache holds what its teacher computes: some rows are computed again when a cache is first used.

Hashes tell that files are as they were written. That the right numbers were written, for the pixels that a student
will see, only the teacher can tell.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raydistill.errors import CacheError, RunError
from raydistill.teachers.cache import store
from raydistill.teachers.cache.codec import LOGITS, Array
from raydistill.teachers.cache.manifest import REPAIR, Content, ShardRecord
from raydistill.teachers.cache.shards import ids_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from raydistill.data.image_set import ImageSet
    from raydistill.models.taps import Tapped
    from raydistill.teachers.cache.read import TeacherCache

CHECKED = "_CHECKED"
"""The file beside ``_SUCCESS`` that names the manifest whose rows were found to be the teacher's."""

_ROWS = 64
_SHARDS = 8  # a shard's checksum covers all of it, so rows come from few
_SECONDS = 10.0

# What stored numbers may be off by, as a share of the row's largest. A value is rounded once when it is stored; sums
# come out differently in batches of another size, and on GPUs factors are rounded to ten bits by default.
_ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "int8": 1 / 254}
_NOISE = 2e-4
_NOISE_BETWEEN_DEVICES = 2e-2
_SMALLEST = 2.0**-24  # of float16; smaller numbers become 0

_sound: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class SpotCheck:
    """How far recomputed rows are from the stored ones, over all outputs; cosines are between whole rows.

    ``excess`` is the largest difference divided by what rounding explains of it. Of logits that were shortened by
    ``cache.top_k``, those are compared which were kept.
    """

    rows: int
    max_difference: float
    min_cosine: float
    excess: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains every difference."""
        return self.excess <= 1.0  # false for NaN


def check_first_use(cache: TeacherCache, teacher: Tapped, images: ImageSet) -> None:
    """Spot-check a cache unless that was done before; later uses read one small file.

    Where the cache can't be written to, or is remote, this process alone remembers.

    Args:
        cache: just opened.
        teacher: with the weights that the cache names.
        images: what the teacher sees.

    Raises:
        CacheError: if rounding does not explain how the rows differ from the teacher's.
    """
    digest = hashlib.sha256(cache.manifest.model_dump_json().encode()).hexdigest()
    if (str(cache.path), digest) in _sound or _remembered(cache) == digest:
        return
    found = spot_check(cache, teacher, images)
    if not found.passed:
        raise CacheError(
            f"{cache.path}: its rows are not what this teacher computes: in {found.rows} rows computed again the "
            f"largest difference is {found.max_difference:.3g}, {found.excess:.3g} times what rounding explains, and "
            f"the smallest cosine {found.min_cosine:.4f}; delete it with `raydistill cache rm {cache.path}` and build "
            f"it again with `{REPAIR}`, or set teacher.source=live"
        )
    _sound.add((str(cache.path), digest))
    _remember(cache, digest)


def spot_check(cache: TeacherCache, teacher: Tapped, images: ImageSet, rows: int = _ROWS, seed: int = 0) -> SpotCheck:
    """Recompute random rows of a few shards with the teacher, on its own device, and compare.

    Large teachers stop after ten seconds, with fewer rows.

    Args:
        cache: to be checked.
        teacher: frozen.
        images: what the teacher sees.
        rows: how many.
        seed: decides which.

    Raises:
        CacheError: if the images are not those of the cache, or a shard is damaged.
    """
    import torch

    from raydistill.teachers.cache.compute import Source, teacher_rows
    from raydistill.teachers.cache.request import partners_of

    content = cache.manifest.content
    ids = images.ids.cpu().numpy()
    if ids_sha256(ids) != content.data.ids:
        raise CacheError(f"{cache.path}: it holds rows of other images than those to check it with")
    device = next(teacher.parameters(), torch.empty(0)).device
    source = Source(content, images, teacher, rows, device, partners_of(content, images))
    deadline = time.monotonic() + _SECONDS
    count, found = 0, []
    for record, positions in _chosen(cache.manifest.shards, rows, np.random.default_rng(seed)):
        stored = cache.read(ids[positions], view=record.view)
        noise = _NOISE if record.device == device.type else _NOISE_BETWEEN_DEVICES
        for name, values in teacher_rows(source, positions, record.view).items():
            found.append(_compare(content, name, stored[name], torch.from_numpy(values), noise))
        count += len(positions)
        if time.monotonic() > deadline:
            break
    differences, cosines, excesses = torch.stack(found).unbind(1)  # their extremes pass NaN on
    return SpotCheck(count, float(differences.max()), float(cosines.min()), float(excesses.max()))


def _chosen(
    shards: tuple[ShardRecord, ...], rows: int, generator: np.random.Generator
) -> Iterator[tuple[ShardRecord, Array]]:
    """Yield random shards, and positions of some of their rows in the data set: int64, ascending."""
    each = -(-rows // min(_SHARDS, len(shards)))
    for number in generator.permutation(len(shards)):
        record = shards[number]
        count = min(each, rows, record.rows)
        if not count:
            return
        yield record, record.first + np.sort(generator.choice(record.rows, size=count, replace=False))
        rows -= count


def _compare(content: Content, name: str, stored: Tensor, computed: Tensor, noise: float) -> Tensor:
    """Return the largest difference, the smallest cosine and the excess of rows [B, ...]; two zero rows are alike."""
    import torch

    left, right = stored.flatten(1).double(), computed.flatten(1).double()
    allowed = (_ROUNDING[content.dtype] + noise) * right.abs().amax(dim=1, keepdim=True) + _SMALLEST
    if name == LOGITS and content.top_k is not None:
        kept = left.topk(content.top_k, dim=1).indices
        left, right = left.gather(1, kept), right.gather(1, kept)
    dots, norms = (left * right).sum(1), left.norm(dim=1) * right.norm(dim=1)
    alike = (left == right).all(dim=1)
    cosine = (dots / norms.clamp_min(1e-300)).masked_fill(alike, 1.0)
    difference = (left - right).abs()
    return torch.stack([difference.max(), cosine.min(), (difference / allowed).max()])


def _remembered(cache: TeacherCache) -> str | None:
    if not isinstance(cache.path, Path):
        return None
    try:
        return (cache.path / CHECKED).read_text(errors="replace").strip()
    except OSError:
        return None


def _remember(cache: TeacherCache, digest: str) -> None:
    if not isinstance(cache.path, Path):
        return
    try:
        store.write(cache.path / CHECKED, digest + "\n")
    except RunError:  # a cache that others own is read all the same
        return
