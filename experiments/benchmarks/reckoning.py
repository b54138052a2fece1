"""What a run on ImageNet would cost on 8 to 512 GPUs: reckoned from the code's formulae and assumed rates, never run.

    python experiments/benchmarks/reckoning.py [--teraflops 20] [--rows 256]

Prints the tables of the second half of docs/scaling.md, where the formulae are explained.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from volumes import FLOAT, INT, Sizes, Volume, batch_norm_bytes, exchange_of

from raydistill.evaluation.cost import mult_adds
from raydistill.methods.registry import method_class
from raydistill.models.zoo import build_model
from raydistill.training.cpus import READERS_SHARE
from raydistill.training.placement import STORE_OF_MEMORY, STORE_SHARE

RANKS, GPUS_OF_A_NODE = (8, 64, 256, 512), 8
STUDENT, TEACHER, SHAPE, CLASSES = "torchvision/resnet18", "torchvision/resnet50", (3, 224, 224), 1000
SETS = {"1.28 M": 1_281_167, "100 M": 100_000_000}
HELD_OUT = 0.01
LINKS = {"100 Gbit/s": 100e9 / 8, "400 Gbit/s": 400e9 / 8, "NVLink, 450 GB/s": 450e9}
"""Bytes a second in one direction, of a node's card, or of a GPU inside of a node."""
REACHED = 0.8
"""Share of a link's rate that a ring reaches."""
CALL_S = 50e-6
"""Of a small collective between nodes, which only waits."""
ROW_BYTES = 2 * (2048 + CLASSES)
"""Embedding and logits of the teacher in float16."""
OTHER_ROW_BYTES = 8 + 2 + 9
"""Ids, view, crop box and flip: raydistill.teachers.cache.shards.row_bytes."""
VIEWS = (1, 21)
PAGE = 4096
DECODED_PER_S = 250.0
"""JPEGs of 500 x 375 a second and core: experiments/benchmarks/scaling.py decoding."""
DIMENSION = 128
"""Of CRD's banks."""
CORES_OF_A_NODE = 128
DECODING_THREADS = 8
"""Most that a process starts: raydistill.data.decoding.threads."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "kd": ("kd", {}),
    "protocpc": ("protocpc", {}),
    "dist": ("dist", {}),
    "crd": ("crd", {}),
    "moco_v2": ("moco_v2", {}),
    "cocord": ("cocord", {}),
    "seed": ("seed", {}),
    "compress, 1q": ("compress", {"queues": "1q"}),
    "compress, 2q": ("compress", {}),
    "pkt, rkd": ("pkt", {}),
    "wcord": ("wcord", {}),
    "swav": ("swav", {}),
    "dino": ("dino", {}),
    "sskd": ("sskd", {}),
    "protocpc, mode: compress": ("protocpc", {"mode": "compress"}),
    "protocpc, mode: self": ("protocpc", {"mode": "self"}),
    "sp, stage: 4": ("sp", {"stage": 4}),
}


@dataclass(frozen=True)
class Assumed:
    """``flops``: of training a student, a second and GPU; ``rows``: images of a GPU in a step."""

    flops: float = 20e12
    rows: int = 256

    @cached_property
    def networks(self) -> tuple[Any, Any]:
        """Student and teacher, of which only the shapes are there."""
        with torch.device("meta"):
            return build_model(STUDENT, CLASSES), build_model(TEACHER, CLASSES)

    @cached_property
    def student_flop(self) -> float:
        """Of an image forwards: a multiply-add is two; backwards costs twice that."""
        return 2.0 * mult_adds(self.networks[0], SHAPE)

    @property
    def images_per_s(self) -> float:
        """Of one GPU in training."""
        return self.flops / (3 * self.student_flop)

    @property
    def step_s(self) -> float:
        """Seconds of a step's computation."""
        return self.rows / self.images_per_s

    @cached_property
    def sizes(self) -> Sizes:
        """What the formulae ask of both networks; the maps are of their last stage."""
        student, teacher = (network.shapes(SHAPE) for network in self.networks)
        maps = sum(torch.Size(shapes["features/4"]).numel() for shapes in (student, teacher))
        return Sizes(student["embedding"][0], teacher["embedding"][0], CLASSES, maps)

    @cached_property
    def gradients(self) -> Volume:
        """Of the student alone."""
        return Volume(gradients=FLOAT * sum(value.numel() for value in self.networks[0].parameters()))

    @cached_property
    def batch_norms(self) -> list[int]:
        """Bytes that each of the student's would exchange in a pass and its way back."""
        found = (part for part in self.networks[0].modules() if isinstance(part, nn.BatchNorm2d))
        return [batch_norm_bytes(part.num_features) for part in found]


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """One table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"**{title}**", "", *lines])


def size(count: float) -> str:
    """Bytes in words."""
    for unit, least in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            return f"{shown(count / least, 3)} {unit}"
    return f"{shown(count, 3)} B"


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{shown(seconds, 2)} s" if seconds >= 1 else f"{shown(1000 * seconds, 2)} ms"


def shown(value: float, digits: int) -> str:
    """A number with so many digits that count."""
    return f"{float(f'{value:.{digits}g}'):,g}"


def gradients(assumed: Assumed) -> str:
    rows = []
    for ranks in RANKS:
        through = assumed.gradients.through_a_link(ranks)
        times = [duration(through / (REACHED * rate)) for rate in LINKS.values()]
        if ranks > GPUS_OF_A_NODE:
            times[-1] = "-"
        rows.append([str(ranks), size(through), *times])
    return table("Gradients of a ResNet-18 in a step", ["GPUs", "through a link", *LINKS], rows)


def batch_norms(assumed: Assumed) -> str:
    through = sum(assumed.batch_norms)
    calls = 4 * len(assumed.batch_norms)
    row = [str(len(assumed.batch_norms)), str(calls), size(through), duration(calls * CALL_S)]
    head = ["layers", "small all-reduces in a step", "bytes of a rank", "waiting"]
    return table("`scale.sync_batch_norm` in a ResNet-18", head, [row])


def gathers(assumed: Assumed) -> str:
    rows = []
    for label, (name, settings) in METHODS.items():
        method, exchange = method_class(name)(**settings), exchange_of(name)
        row = exchange.row(method, assumed.sizes)
        found = [exchange.volume(method, assumed.sizes, assumed.rows).through_a_link(ranks) for ranks in RANKS]
        slow, fast = (duration(found[-1] / (REACHED * rate)) for rate in [*LINKS.values()][:2])
        rows.append([f"`{label}`", size(row), *map(size, found), slow, fast])
    slow, fast = [*LINKS][:2]
    head = ["method", "of an image", *(f"{ranks} GPUs" for ranks in RANKS), f"512, {slow}", f"512, {fast}"]
    return table(f"What the methods' gathers bring to each GPU in a step, {assumed.rows} images a GPU", head, rows)


def matrices(assumed: Assumed) -> str:
    student, teacher = assumed.sizes.student, assumed.sizes.teacher
    rows = []
    for batch in (1024, *(ranks * assumed.rows for ranks in RANKS)):
        flop = 2.0 * batch**2 * (3 * student + teacher)
        rows.append(
            [
                f"{batch:,}",
                size(FLOAT * batch**2),
                duration(flop / assumed.flops),
                size(FLOAT * batch**2 * (student + teacher)),
                size(FLOAT * batch**3),
                size(FLOAT * batch * 3000),
                size(FLOAT * batch * 65536),
            ]
        )
    head = ["B", "one B x B", "`pkt`'s products", "`rkd`'s differences", "one of `rkd`'s B x B x B"]
    head += ["`swav`: B x 3000", "`protocpc`: B x 65536"]
    return table("What every GPU holds and computes of the global batch, all in float32", head, rows)


def reading(assumed: Assumed) -> str:
    columns = (2 * 2048, 2 * CLASSES)
    pages = sum(1 + (width - 1) / PAGE for width in columns)
    images = GPUS_OF_A_NODE * assumed.images_per_s
    row = [
        f"{images:,.0f}",
        size(images * ROW_BYTES) + "/s",
        f"{images * pages:,.0f}",
        size(images * pages * PAGE) + "/s",
    ]
    head = [
        "images/s of a node",
        "rows that are used",
        "random reads/s of 4 KiB, at most",
        "read from the disk, at most",
    ]
    return table(f"Reading a cache of {ROW_BYTES} bytes an image and view from the disk, 8 GPUs a node", head, [row])


def decoding(assumed: Assumed) -> str:
    cores = assumed.images_per_s / DECODED_PER_S
    spare = READERS_SHARE * CORES_OF_A_NODE / GPUS_OF_A_NODE
    pixels = torch.Size(SHAPE).numel()
    row = [
        f"{assumed.images_per_s:,.0f}",
        f"{cores:.1f}",
        f"{GPUS_OF_A_NODE * cores:.0f}",
        f"{spare * DECODED_PER_S:,.0f} images/s",
        size(GPUS_OF_A_NODE * assumed.images_per_s * pixels) + "/s",
    ]
    head = ["images/s of a GPU", "cores a GPU", "cores of a node", f"a GPU with the default, {CORES_OF_A_NODE} cores"]
    return table("Decoding JPEGs while training", [*head, "pixels through the object store"], [row])


def stores() -> str:
    rows = []
    for name, images in SETS.items():
        for views in VIEWS:
            held = images * views * ROW_BYTES
            store = held / STORE_SHARE
            rows.append([name, str(views), size(held + images * views * OTHER_ROW_BYTES)])
            rows[-1] += [size(held), size(store), size(store / STORE_OF_MEMORY)]
    head = ["images", "views", "cache on the disk", "table, once for a node", "object store", "memory, if Ray chooses"]
    return table("`cache.read: shared`", head, rows)


def banks() -> str:
    rows = []
    for name, images in SETS.items():
        both, sampler = 2 * images * DIMENSION * FLOAT, 3 * images * INT
        rows.append([name, size(both), size(sampler), size(both), size(3 * images * INT)])
    head = ["images", "two banks, on every GPU", "places of the negatives", "more in every checkpoint"]
    return table("`crd`, `info_nce`, `gckt`, `wcord`", [*head, "order, ids and labels of any run"], rows)


def epochs(assumed: Assumed) -> str:
    images = SETS["1.28 M"] * (1 - HELD_OUT)
    validation = SETS["1.28 M"] * HELD_OUT
    decoded = validation / (DECODED_PER_S * DECODING_THREADS)
    rows = []
    for ranks in RANKS:
        batch = ranks * assumed.rows
        rows.append(
            [
                str(ranks),
                f"{batch:,}",
                f"{images // batch:,.0f}",
                duration(images / (ranks * assumed.images_per_s)),
                duration(validation * assumed.student_flop / assumed.flops),
                duration(decoded),
            ]
        )
    head = ["GPUs", "B", "steps", "steps of an epoch", "validation on each GPU", "decoding for it"]
    return table(f"An epoch of 1.27 M images, {validation:,.0f} held out", head, rows)


def tables(assumed: Assumed) -> Iterator[str]:
    yield epochs(assumed)
    yield gradients(assumed)
    yield batch_norms(assumed)
    yield gathers(assumed)
    yield matrices(assumed)
    yield reading(assumed)
    yield stores()
    yield decoding(assumed)
    yield banks()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teraflops", type=float, default=20.0, help="of one GPU in training")
    parser.add_argument("--rows", type=int, default=256, help="images of a GPU in a step")
    given = parser.parse_args()
    assumed = Assumed(1e12 * given.teraflops, given.rows)
    print(f"{assumed.images_per_s:,.0f} images/s of a GPU, {duration(assumed.step_s)} a step\n")
    print("\n\n".join(tables(assumed)))


if __name__ == "__main__":
    main()
