"""Whether an exported file, loaded back, computes what the student computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from raydistill.data.views import normalise
from raydistill.errors import RunError
from raydistill.evaluation.features import spread
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.resident import ResidentSet
    from raydistill.models.taps import Tapped

BOUND = 1e-4
"""Largest difference of any output that still counts as equal."""
BATCHES = (1, 7, 64)
"""Numbers of images that are shown at once, in turns: the batch of an exported network is free."""
MOST_IMAGES = 256

Predictor = Callable[[Tensor], Mapping[str, Tensor]]
"""Float images [B, C, H, W] in [0, 1] -> outputs [B, ...] by name."""


@dataclass(frozen=True)
class Parity:
    """The largest difference of each output, and over how many images."""

    differences: Mapping[str, float]
    images: int

    @property
    def max_abs_diff(self) -> float:
        """The largest of all; NaN where an output is NaN."""
        return float(torch.tensor(list(self.differences.values())).max())

    def check(self, what: str) -> None:
        """Raise ``RunError`` where an output differs by more than ``BOUND``."""
        for name, difference in self.differences.items():
            if not difference <= BOUND:  # NaN too
                raise RunError(
                    f"{what}: `{name}` differs from the student's by {difference:.3g}, more than {BOUND:g}; "
                    "nothing was written"
                )


@torch.no_grad()
def compare(student: Tapped, predict: Predictor, images: ResidentSet, outputs: tuple[str, ...]) -> Parity:
    """Show the same images to the student, normalised as in its evaluation, and to the exported network.

    Args:
        student: in evaluation mode, float32.
        predict: the exported network.
        images: of which at most ``MOST_IMAGES`` are taken, evenly; few are shown again until each batch size was met.
        outputs: names to compare.
    """
    chosen = spread(len(images), MOST_IMAGES)
    shown = chosen[torch.arange(max(len(chosen), sum(BATCHES))) % len(chosen)]
    differences = dict.fromkeys(outputs, 0.0)
    for positions in _batches(shown):
        pixels = images.pixels(positions)
        wanted = student(normalise(pixels, images.mean, images.std), outputs)
        found = predict(as_fractions(pixels))
        for name in outputs:
            differences[name] = _larger(differences[name], wanted[name], found[name])
    return Parity(differences, len(chosen))


def as_fractions(pixels: Tensor) -> Tensor:
    """Pixels uint8 [B, C, H, W] -> float32 in [0, 1]: what a deployed network takes."""
    return pixels.to(torch.float32).div_(255.0)


def _batches(positions: Tensor) -> Iterator[Tensor]:
    sizes = cycle(BATCHES)
    while len(positions):
        size = next(sizes)
        yield positions[:size]
        positions = positions[size:]


def _larger(before: float, wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    return float(torch.maximum(torch.tensor(before), (wanted - found).abs().max()))
