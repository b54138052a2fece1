"""What an experiment asks a cache for, and where that cache lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raydistill.data.datasets import training_ids
from raydistill.errors import CacheError, ConfigError, DataError
from raydistill.models.taps import EMBEDDING
from raydistill.models.weights import weights_fingerprint
from raydistill.teachers.cache.codec import LOGITS, Array
from raydistill.teachers.cache.manifest import (
    MANIFEST,
    REPAIR,
    Augmentation,
    Content,
    DataContent,
    Manifest,
    PartnersContent,
    Preprocessing,
    TeacherContent,
    read_manifest,
)
from raydistill.teachers.cache.remote import Location
from raydistill.teachers.cache.shards import ids_sha256
from raydistill.teachers.cache.store import folders_with
from raydistill.teachers.network import output_shapes

if TYPE_CHECKING:
    from raydistill.config import Experiment
    from raydistill.data.image_set import ImageSet
    from raydistill.models.taps import Tapped

_NOTHING = "nothing"


def requested(experiment: Experiment, images: ImageSet, network: Tapped) -> Content:
    """Return everything that decides the values of the experiment's cache; ``images`` are what the teacher sees.

    Raises:
        DataError: if views are to be mixed, but there are no two training images.
        ConfigError: if the teacher lacks an output of ``cache.outputs``, or has no more than ``cache.top_k`` logits.
    """
    config, teacher = experiment.cache, experiment.teacher
    assert teacher is not None
    # Sorted: the order in which outputs are listed decides no value, so it must not decide the name.
    names = tuple(sorted(set(config.outputs)))
    shapes = output_shapes(network, names, images.shape)
    if config.top_k is not None and config.top_k >= shapes[LOGITS][0]:
        raise ConfigError(f"cache.top_k = {config.top_k}: the teacher has {shapes[LOGITS][0]} logits; leave it out")
    return Content(
        data=DataContent(fingerprint=images.fingerprint(), count=len(images), ids=ids_sha256(images.ids.cpu().numpy())),
        teacher=TeacherContent(
            model=teacher.model,
            weights=weights_fingerprint(network),
            outputs=shapes,
            taps={name: path for name, path in teacher.taps.items() if name in names},
        ),
        preprocessing=Preprocessing(
            mean=tuple(map(float, images.mean)), std=tuple(map(float, images.std)), image_shape=images.shape
        ),
        augmentation=_augmentation(experiment, images) if config.views else None,
        views=config.views,
        dtype=config.dtype,
        shard_rows=config.shard_rows,
        compression=config.compression,
        top_k=config.top_k,
    )


def _augmentation(experiment: Experiment, images: ImageSet) -> Augmentation:
    data = experiment.data
    partners = None
    if data.augment.mixing is not None:
        ids = training_ids(images, validation=data.validation, split_seed=data.split_seed)
        if len(ids) < 2:
            raise DataError(f"data.augment.{data.augment.mixing}: needs 2 training images or more, not {len(ids)}")
        partners = PartnersContent(
            ids=ids_sha256(ids.cpu().numpy()),
            count=len(ids),
            split_seed=data.split_seed,
            validation=data.validation,
        )
    return Augmentation(operations=data.augment.operations, seed=experiment.cache.seed, partners=partners)


def partners_of(content: Content, images: ImageSet) -> Array | None:
    """Return the ids, ascending int64 [M], of the images that a cache's views are mixed with; None where none is.

    Raises:
        CacheError: the images are split in another way than they were for the cache.
    """
    told = content.augmentation.partners if content.augmentation else None
    if told is None:
        return None
    ids: Array = training_ids(images, validation=told.validation, split_seed=told.split_seed).cpu().numpy()
    if ids_sha256(ids) != told.ids:
        raise CacheError(
            f"augmentation.partners: validation = {told.validation} and split_seed = {told.split_seed} leave other "
            "training images than the cache was mixed from; are the labels the same?"
        )
    return ids


def missing_outputs(experiment: Experiment) -> tuple[str, ...]:
    """Return the teacher outputs that methods or ``train.agreement`` want and ``cache.outputs`` does not include."""
    wanted = {name for outputs in experiment.all_needs.teacher.values() for name in outputs}
    wanted |= {EMBEDDING} if experiment.agreement else set()
    return tuple(sorted(wanted - set(experiment.cache.outputs)))


def needing_every_logit(experiment: Experiment) -> tuple[str, ...]:
    """Return ``label: reason`` of each method that cannot use logits shortened by ``cache.top_k``."""
    if experiment.cache.top_k is None:
        return ()
    reasons = {
        label: method.needs_every_logit()
        for label, method in experiment.methods.items()
        if any(LOGITS in names for names in method.needs().teacher.values())
    }
    return tuple(f"{label}: {reason}" for label, reason in reasons.items() if reason)


def cache_folders(root: Location) -> list[Location]:
    """Return the folders under ``root`` that hold a manifest, in the order of their names."""
    return folders_with(root, MANIFEST)


def absent(root: Location, content: Content) -> CacheError:
    """Return the error for a cache that was not built, naming what sets the nearest one apart."""
    nearest: tuple[list[str], Location] | None = None
    for folder in cache_folders(root):
        try:
            manifest = read_manifest(folder)
        except CacheError:
            continue
        found = differences(manifest, content)
        if nearest is None or len(found) < len(nearest[0]):
            nearest = found, folder
    text = f"no teacher cache for this teacher and data in '{root}'"
    if nearest is not None:
        text += f"; the nearest, {nearest[1].name}, differs in {', '.join(nearest[0])}"
    return CacheError(f"{text}. Build it: `{REPAIR}`")


def differences(manifest: Manifest, content: Content) -> list[str]:
    """Return one ``field (there X, wanted Y)`` for each field in which a cache is not the requested one."""
    there, wanted = (_flat(part.model_dump(mode="json")) for part in (manifest.content, content))
    return [
        f"{name} (there {_short(there.get(name, _NOTHING))}, wanted {_short(wanted.get(name, _NOTHING))})"
        for name in sorted({*there, *wanted})
        if there.get(name, _NOTHING) != wanted.get(name, _NOTHING)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _short(value: Any) -> str:
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)
