"""Advice for a run whose steps wait for their data."""

from __future__ import annotations

from collections.abc import Mapping

from raydistill.training.session import Session

SHARE = 1 / 3
LEAST_S = 1.0
"""Shorter waits of an epoch are nobody's trouble."""


def waiting_advice(session: Session) -> str | None:
    """Return a line about the last record of the session's history where it is the first one that waited too long.

    That is a third of the time of training, apart from validation.
    """
    waited = [record for record in session.history if _waits(record)]
    if len(waited) != 1 or waited[0] is not session.history[-1]:
        return None
    share = waited[0]["time/data"] / _training(waited[0])
    return (
        f"epoch {waited[0]['epoch']:.0f}: {100 * share:.0f} % of the training's time went into waiting for data. "
        + _knob(session)
    )


def _waits(record: Mapping[str, float]) -> bool:
    waited = record.get("time/data", 0.0)
    return waited >= LEAST_S and waited > SHARE * _training(record)


def _training(record: Mapping[str, float]) -> float:
    return record["seconds"] - record["time/validation"]


def _knob(session: Session) -> str:
    sets = [session.data, *([session.teacher_data] if session.teacher_data is not None else [])]
    readers = "or lower scale.cpus_per_worker, which leaves more CPUs to the tasks that read ahead"
    if not all(images.resident for images in sets):
        return (
            f"Images are decoded as they are asked for: where they fit into memory set data.reading=resident, {readers}"
        )
    if session.placement is not None and session.placement.way == "stream":
        return f"The teacher's rows stay on the disk: where they fit into memory set cache.read=shared, {readers}"
    if session.device.type == "cpu":
        return "Views are rendered on the same CPUs: take cheaper operations in data.augment, or train on a GPU"
    return "Views are rendered on the GPU: take cheaper operations in data.augment"
