"""Images of a report: what became better and worse, whom networks see as neighbours, what clusters hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from raydistill.errors import DataError
from raydistill.reporting.pictures import Album, Albums
from raydistill.reporting.runs import RunRecord
from raydistill.reporting.tables import Change

SHOWN = 12
"""Images of a row."""


@dataclass(frozen=True)
class Picture:
    """One image with the words below it."""

    address: str
    words: str


@dataclass(frozen=True)
class Row:
    """Images side by side, with the words before them."""

    words: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Strip:
    """Rows of images under one heading, or the reason why there are none."""

    heading: str
    rows: Sequence[Row] = field(default_factory=tuple)
    reason: str = ""


def changed_images(change: Change, albums: Albums) -> Strip:
    """Show the test images that a distilled student gains and loses most surely against the student alone."""
    heading = f"{change.label} against {change.against}"
    try:
        album = albums.test(change.record.config.get("data") or {})
        rows = [
            _changed(album, "right with the teacher, wrong without", change.gain[change.gain > 0]),
            _changed(album, "wrong with the teacher, right without", -change.gain[change.gain < 0]),
        ]
    except DataError as error:
        return Strip(heading, reason=f"The images cannot be shown: {error}.")
    return Strip(heading, [row for row in rows if row.pictures])


def neighbours_and_clusters(name: str, record: RunRecord, albums: Albums) -> Strip:
    """Show test images with the training images that networks see nearest to them, and images of some clusters."""
    data = record.config.get("data") or {}
    try:
        test, train = albums.test(data), albums.training(data)
        rows = [
            row for query in record.panels.neighbours for row in _neighbours(query.query, query.nearest, test, train)
        ]
        rows += [
            Row(f"cluster {number}", _labelled(train, ids))
            for number, ids in enumerate(record.panels.clusters, start=1)
        ]
    except DataError as error:
        return Strip(name, reason=f"The images cannot be shown: {error}.")
    return Strip(name, rows)


def _changed(album: Album, words: str, gain: pd.Series) -> Row:
    # The surest first; among equals in the order of their ids, which nobody chose.
    chosen = gain.sort_values(ascending=False, kind="stable").head(SHOWN)
    return Row(f"{words}: {len(gain)} images", _labelled(album, [int(number) for number in chosen.index]))


def _neighbours(query: int, nearest: dict[str, list[int]], test: Album, train: Album) -> list[Row]:
    (address,), (label,) = test.pictures([query]), test.labels([query])
    asked = Picture(address, f"query: {label}")
    return [Row(role, [asked, *_labelled(train, ids)]) for role, ids in nearest.items()]


def _labelled(album: Album, ids: list[int]) -> list[Picture]:
    return [Picture(address, label) for address, label in zip(album.pictures(ids), album.labels(ids), strict=True)]
