"""What ImageNet-size work would cost with and without a teacher's cache: reckoned, never run, at prices that you give.

    python experiments/benchmarks/costs.py [--gpu-price 1.0] [--head-price 0.4] [--storage-price 0.023] [--gpus 8]

Prints the tables of docs/cluster.md. The prices are round numbers, nobody's offer. Rates and sizes are those of
reckoning.py beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from reckoning import CLASSES, OTHER_ROW_BYTES, SETS, SHAPE, Assumed, size, table

from raydistill.evaluation.cost import mult_adds
from raydistill.models.zoo import build_model

TEACHERS = ("torchvision/resnet50", "torchvision/resnet152")
EPOCHS = 100
WORK = {"one run": 1, "5 methods, 3 seeds": 15, "a sweep of 16 full trials, then 3 seeds": 19}
"""Runs of all epochs."""
VIEWS = (0, 20)
IMAGES = SETS["1.28 M"]
HOUR, GB = 3600.0, 1e9


@dataclass(frozen=True)
class Prices:
    """In dollars: of a GPU with its share of a machine and of the head, an hour; of a GB kept for a month."""

    gpu: float = 1.0
    head: float = 0.4
    storage: float = 0.023
    gpus: int = 8
    assumed: Assumed = field(default_factory=Assumed)

    def of(self, gpu_hours: float) -> float:
        """Of so many GPU hours, shared out evenly, while the head is up."""
        return gpu_hours * (self.gpu + self.head / self.gpus)


def teacher_flop(name: str) -> tuple[float, int]:
    """FLOP of an image forwards, and the bytes of its row in float16."""
    with torch.device("meta"):
        teacher = build_model(name, CLASSES)
    return 2.0 * mult_adds(teacher, SHAPE), 2 * (teacher.shapes(SHAPE)["embedding"][0] + CLASSES)


def costs(prices: Prices, name: str) -> str:
    """The table of one teacher."""
    assumed = prices.assumed
    forwards, row_bytes = teacher_flop(name)
    student = 3.0 * assumed.student_flop
    hours_of_flop = 1.0 / assumed.flops / HOUR
    rows = []
    for work, runs in WORK.items():
        seen = IMAGES * EPOCHS * runs
        live = seen * (student + forwards) * hours_of_flop
        rows.append([work, "no", "-", f"{live:,.0f}", f"{live / prices.gpus:,.1f}", f"{prices.of(live):,.0f}", "-"])
        for views in VIEWS:
            kept = IMAGES * (views + 1)
            cached = (seen * student + kept * forwards) * hours_of_flop
            stored = kept * (row_bytes + OTHER_ROW_BYTES)
            cost = prices.of(cached) + stored / GB * prices.storage
            share = 1.0 - cost / prices.of(live)
            rows.append(
                [
                    work,
                    "evaluation view" if not views else f"{views} views",
                    size(stored),
                    f"{cached:,.0f}",
                    f"{cached / prices.gpus:,.1f}",
                    f"{cost:,.0f}",
                    f"{share:.0%}",
                ]
            )
    head = ["work", "cache", "its size", "GPU hours", f"hours on {prices.gpus} GPUs", "dollars", "saved"]
    return table(f"Teacher {name.removeprefix('torchvision/')}, student resnet18, {EPOCHS} epochs", head, rows)


def tables(prices: Prices) -> Iterator[str]:
    """All tables of the page."""
    for name in TEACHERS:
        yield costs(prices, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu-price", type=float, default=1.0, help="of a GPU and its share of a machine, an hour")
    parser.add_argument("--head-price", type=float, default=0.4, help="of the head, an hour")
    parser.add_argument("--storage-price", type=float, default=0.023, help="of a GB, a month")
    parser.add_argument("--gpus", type=int, default=8, help="that share the work")
    parser.add_argument("--teraflops", type=float, default=20.0, help="of one GPU")
    given = parser.parse_args()
    assumed = Assumed(1e12 * given.teraflops)
    prices = Prices(given.gpu_price, given.head_price, given.storage_price, given.gpus, assumed)
    print("\n\n".join(tables(prices)))


if __name__ == "__main__":
    main()
