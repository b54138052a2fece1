"""Hyper-parameters that change during a run."""

from __future__ import annotations

import math


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from ``start`` to ``end``; ``progress`` is the finished share of all steps, 0 to 1."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))


def warm_up(start: float, end: float, epoch: int, epochs: int) -> float:
    """Line from ``start`` in epoch 0 to ``end`` in the last of ``epochs`` epochs; ``end`` from there on."""
    return end if epoch >= epochs else start + (end - start) * epoch / max(1, epochs - 1)


def grown(epoch: int, epochs: int) -> float:
    """Share of a weight that grows over ``epochs`` epochs, from 1 / ``epochs`` in epoch 0; 0 epochs: always 1.

    The authors whose warm-ups these are count epochs from 1, so that their first one is not without a loss.
    """
    return min((epoch + 1) / epochs, 1.0) if epochs else 1.0
