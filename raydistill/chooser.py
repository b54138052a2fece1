"""Choosing a teacher from caches alone, before any student is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydistill.data.datasets import load_train, split_train
from raydistill.errors import CacheError, ConfigError, DataError
from raydistill.evaluation.classification import top_k_accuracy
from raydistill.evaluation.clusters import cluster_alignment
from raydistill.evaluation.linear import logistic_regression
from raydistill.evaluation.neighbours import knn_accuracy
from raydistill.evaluation.similarity import linear_cka, neighbour_overlap
from raydistill.progress import Progress, part, unwatched
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.cache.remote import Location

if TYPE_CHECKING:
    from raydistill.config import Experiment


@dataclass(frozen=True)
class Candidate:
    """A teacher's cached output on held-out images: percentages of images that were classified rightly.

    ``knn``: weighted vote of ``evaluate.k`` neighbours. ``linear``: logistic regression on standardised features.
    ``clusters``: k-means with one cluster for each class, matched to classes. ``score`` is their mean.
    """

    path: str
    model: str
    width: int
    knn: float
    linear: float
    clusters: float
    score: float


@dataclass(frozen=True)
class Ranking:
    """Candidates, the best first, and how many images they were fitted on and judged by."""

    output: str
    fitted: int
    held_out: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Difference:
    """How alike two teachers see the same images: shares from 0 to 1.

    ``overlap`` is the mean share of common ones among ``k`` nearest neighbours, ``chance`` that of unrelated features.
    """

    a: str
    b: str
    output: str
    images: int
    k: int
    overlap: float
    chance: float
    cka: float


@dataclass(frozen=True)
class _Labelled:
    features: Tensor
    labels: Tensor


def rank(
    experiment: Experiment,
    paths: Iterable[str | Location],
    *,
    output: str = "embedding",
    progress: Progress = unwatched,
) -> Ranking:
    """Rank caches of different teachers by what their evaluation views tell of the classes.

    A cache holds no labels: they come from the experiment's data, which must be what the caches were built from. The
    teachers are fitted on its training split and judged by its validation split; test images are not looked at.

    Raises:
        CacheError: if a cache is damaged, lacks the output, or is of other images.
        DataError: if the data have no labels, or no validation split can be carved.
        ConfigError: if no cache is given.
    """
    paths = list(paths)
    progress(0.0, "reading the images")
    images = load_train(experiment.data.of_teacher)
    if images.labels is None:
        raise DataError(
            f"data set '{experiment.data.name}' has no labels to rank teachers with; compare two by `cache diff`"
        )
    if int(images.labels.min()) == int(images.labels.max()):
        raise DataError(f"data set '{experiment.data.name}' has one class alone, which tells nothing of teachers")
    fingerprint, splits = images.fingerprint(), split_train(images, experiment.data)
    candidates = []
    for number, path in enumerate(paths):
        begun = 0.1 + 0.9 * number / len(paths)
        cache = TeacherCache.open(path)
        if cache.manifest.content.data.fingerprint != fingerprint:
            raise CacheError(f"{path}: not a cache of the images of this experiment's section 'data'")
        fitted, held_out = (
            _Labelled(_features(cache, output, side.ids), side.labels)
            for side in (splits.train, splits.validation)
            if side.labels is not None
        )
        judging = part(progress, begun, begun + 0.9 / len(paths))
        candidates.append(_judge(cache, fitted, held_out, experiment, images.num_classes, progress=judging))
    if not candidates:
        raise ConfigError("name at least one cache to rank")
    candidates.sort(key=lambda found: -found.score)
    return Ranking(output, len(splits.train), len(splits.validation), tuple(candidates))


def difference(
    a: str | Location,
    b: str | Location,
    *,
    output: str = "embedding",
    k: int = 10,
    progress: Progress = unwatched,
) -> Difference:
    """Compare the evaluation views of two caches of the same images.

    Raises:
        CacheError: if a cache is damaged, lacks the output, or they are of different images.
        ConfigError: if there are not more than ``k`` images.
    """
    progress(0.0, "reading both caches")
    one, other = TeacherCache.open(a), TeacherCache.open(b)
    if one.manifest.content.data != other.manifest.content.data:
        raise CacheError(f"{a} and {b} are caches of different images; build both with the same section 'data'")
    left, right = (_features(cache, output, one.ids) for cache in (one, other))
    if not 1 <= k < len(left):
        raise ConfigError(f"-k {k}: must be from 1 to {len(left) - 1}, one less than the images")
    try:
        progress(0.2, "nearest neighbours")
        overlap = neighbour_overlap(left, right, k=k)
        progress(0.9, "linear CKA")
        cka = linear_cka(left, right)
    except ValueError as error:
        raise CacheError(f"{a} and {b}: {error}") from None
    return Difference(str(a), str(b), output, len(left), k, overlap, k / (len(left) - 1), cka)


def _features(cache: TeacherCache, output: str, ids: object) -> Tensor:
    return cache.read(torch.as_tensor(ids), outputs=[output])[output].flatten(1)


def _judge(
    cache: TeacherCache,
    fitted: _Labelled,
    held_out: _Labelled,
    experiment: Experiment,
    num_classes: int,
    *,
    progress: Progress,
) -> Candidate:
    parts = fitted.features, fitted.labels, held_out.features, held_out.labels
    progress(0.0, f"{cache.path}: nearest neighbours")
    knn = knn_accuracy(*parts, k=experiment.evaluate.k, num_classes=num_classes)
    progress(0.2, f"{cache.path}: linear classifier")
    linear = top_k_accuracy(logistic_regression(*parts[:3], num_classes=num_classes), held_out.labels, 1)
    progress(0.7, f"{cache.path}: clusters")
    clusters = cluster_alignment(*parts, num_classes=num_classes, seed=experiment.seed)
    score = (knn + linear + clusters) / 3
    model, width = cache.manifest.content.teacher.model, fitted.features.shape[1]
    return Candidate(str(cache.path), model, width, knn, linear, clusters, score)
