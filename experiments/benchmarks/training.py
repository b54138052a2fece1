"""Images a second of cached training, as ratios to training without a teacher and to distillation as it is usual.

    python experiments/benchmarks/training.py [--student wrn_16_2] [--methods crd] [--precision auto] [--other-sizes]

Fashion-MNIST padded to 3 x 32 x 32, batch 64; teacher outputs are random numbers of the shapes of
wrn_40_2's, which take the time of real ones. All ways take turns within one process: a round is so many steps of each.
Printed is the median of the rounds' ratios, since machines slow down for seconds at a time.

1. Against a bare loop: the same student, cross entropy and SGD on tensors in memory, without a teacher and without
   augmentation, as a tutorial has it; and against the same one with what makes ours fast, channels_last and a fused
   optimiser (``tuned``). Ours renders its views and has the session's loop around each step; validation and checkpoints
   are left out.
2. Against the usual loop of the public code: PIL transforms in a DataLoader of two processes, the teacher in every
   step, for CRD negatives drawn for each sample on the CPU and B x 16385 rows of both banks gathered. Ours comes in
   float32 and as ``train.precision: auto`` has it, which takes bf16 where a probe finds it faster; so it is meant to be
   used, and of that way so many times the images are wanted.

Queues have 16384 keys, the rest is as the methods' defaults. With ``--other-sizes`` those of the papers and of
``experiments/fashion-mnist`` are measured too, for which there is no target. ``--methods`` leaves out all others and
the usual loop; fewer ``--steps`` in more ``--rounds`` tell more of a ratio where a machine's speed changes.
``--precision`` is ours against the bare loops; all loops that are not ours compute in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset

from raydistill.config import parse_experiment
from raydistill.data.idx import read_idx
from raydistill.data.image_set import DecodedImages
from raydistill.models.zoo import build_model
from raydistill.training.assembly import assemble
from raydistill.training.lookout import Lookout
from raydistill.training.material import Material
from raydistill.training.meter import Meter
from raydistill.training.session import Session
from raydistill.training.step import descend

BATCH, CLASSES, SIDE = 64, 10, 32
TEACHER = "wrn_40_2"
WIDTH, NEGATIVES = 128, 16384
TEMPERATURE = 4.0
MEAN, STD = (0.286,) * 3, (0.353,) * 3

BARE, TUNED = "bare loop", "bare loop, tuned"

Step = Callable[[], None]


@dataclass(frozen=True)
class Work:
    """What all ways train on, and the precision of ours against bare loops."""

    student: str
    images: Tensor
    labels: Tensor
    device: torch.device
    precision: str


@dataclass(frozen=True)
class Way:
    """A way to train and what is wanted of it: at least so many times the images a second of another one."""

    name: str
    step: Step
    wanted: float | None = None
    against: str = BARE


CACHED: dict[str, tuple[dict[str, Any], float | None]] = {
    "kd": ({"ce": {}, "kd": {}}, 0.95),
    "compress": ({"compress": {"queue": 16384, "queues": "1q"}}, 0.95),
    "seed": ({"seed": {"queue": 16384}}, 0.95),
    "protocpc": ({"ce": {}, "protocpc": {"weight": 1.75, "temperature": 4.0}}, 0.95),
    "crd": ({"ce": {}, "crd": {"negatives": NEGATIVES}}, 0.88),
    "cocord": ({"ce": {}, "cocord": {}}, 0.35),
}
OTHER_SIZES: dict[str, tuple[dict[str, Any], float | None]] = {
    "cocord, heads of 512": ({"ce": {}, "cocord": {"hidden": 512, "dimension": 512}}, None),
    "compress, 2048 keys": ({"compress": {"queue": 2048, "queues": "1q"}}, None),
    "compress, 128000 keys": ({"compress": {"queue": 128_000, "queues": "1q"}}, None),
    "seed, 65536 keys": ({"seed": {"queue": 65_536}}, None),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+", choices=CACHED)
    parser.add_argument("--other-sizes", action="store_true")
    parser.add_argument("--student", default="wrn_16_2")
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="fp32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out = sys.stderr if options.json else sys.stdout
    device = torch.device(options.device)
    work = Work(options.student, *padded_images(options.root), device, options.precision)

    cases = {name: CACHED[name] for name in options.methods or CACHED} | (OTHER_SIZES if options.other_sizes else {})
    parts = [("cached training against a bare loop without a teacher", cached_ways(work, cases))]
    if options.methods is None:
        parts.append(("cached training against the usual loop", usual_ways(work)))
    made = []
    for title, ways in parts:
        print(f"\n{title}\n{'':<26}{'images/s':>10}{'ratio':>8}{'least':>8}{'most':>8}{'tuned':>8}  wanted", file=out)
        for row in measured(ways, device, rounds=options.rounds, steps=options.steps):
            made.append(row)
            wanted = "" if row["wanted"] is None else f"{row['wanted']:g} {'met' if row['met'] else 'MISSED'}"
            ratios = [row["ratio"], row["least"], row["most"], row["tuned"]]
            shown = "".join(" " * 8 if ratio is None else f"{ratio:>8.2f}" for ratio in ratios)
            print(f"{row['name']:<26}{row['rate']:>10.0f}{shown}  {wanted}", file=out)
    if options.json:
        asked = {name: getattr(options, name) for name in ("threads", "device", "precision")}
        print(json.dumps({**asked, "ways": made}))


def padded_images(root: Path) -> tuple[Tensor, Tensor]:
    """All training images, uint8 [60000, 3, 32, 32], and their labels."""
    images = read_idx(root / "train-images-idx3-ubyte.gz", dimensions=3)
    labels = read_idx(root / "train-labels-idx1-ubyte.gz", dimensions=1).long()
    edge = (SIDE - images.shape[-1]) // 2
    return F.pad(images, (edge,) * 4)[:, None].repeat(1, 3, 1, 1), labels


def measured(ways: list[Way], device: torch.device, *, rounds: int, steps: int) -> Iterator[dict[str, Any]]:
    """Let the ways take turns, after a round that does not count."""
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            started = time.perf_counter()
            for _ in range(steps):
                way.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                rates[way.name].append(steps * BATCH / (time.perf_counter() - started))
    for way in ways:
        ratios = ratios_of(rates[way.name], rates[way.against])
        ratio = statistics.median(ratios)
        yield {
            "name": way.name,
            "against": way.against,
            "rate": statistics.median(rates[way.name]),
            "ratio": ratio,
            "least": min(ratios),
            "most": max(ratios),
            "tuned": statistics.median(ratios_of(rates[way.name], rates[TUNED])) if TUNED in rates else None,
            "wanted": way.wanted,
            "met": None if way.wanted is None else ratio >= way.wanted,
        }


def ratios_of(mine: list[float], others: list[float]) -> list[float]:
    """Ratios round by round."""
    return [left / right for left, right in zip(mine, others, strict=True)]


def cached_ways(work: Work, cases: Mapping[str, tuple[dict[str, Any], float | None]]) -> list[Way]:
    """The bare loops, and methods from the cache."""
    ways = [Way(BARE, bare_loop(work, tuned=False)), Way(TUNED, bare_loop(work, tuned=True))]
    return ways + [Way(name, ours(methods, work), wanted) for name, (methods, wanted) in cases.items()]


def usual_ways(work: Work) -> list[Way]:
    """The usual loops, and ours for the same methods."""
    fp32, auto = (replace(work, precision=precision) for precision in ("fp32", "auto"))
    kd, crd = {"ce": {}, "kd": {}}, {"ce": {}, "crd": {"negatives": NEGATIVES}}
    return [
        Way("usual kd", usual_loop(work, contrast=False), against="usual kd"),
        Way("kd, cached, float32", ours(kd, fp32), against="usual kd"),
        Way("kd, cached, auto", ours(kd, auto), 2.0, "usual kd"),
        Way("usual crd", usual_loop(work, contrast=True), against="usual crd"),
        Way("crd, cached, float32", ours(crd, fp32), against="usual crd"),
        Way("crd, cached, auto", ours(crd, auto), 5.0, "usual crd"),
    ]


def ours(methods: dict[str, Any], work: Work) -> Step:
    """A step of the product's session, with what its loop does around it."""
    experiment = parse_experiment(
        {
            "name": "training",
            "data": {"name": "fashion_mnist", "root": "unused", "validation": 0.1, "augment": {"crop": 4, "flip": 0.5}},
            "teacher": {"model": TEACHER, "weights": "none"},
            "student": {"model": work.student},
            "methods": methods,
            "train": {
                "epochs": 1000,
                "batch_size": BATCH,
                "precision": work.precision,
                "optimizer": {"lr": 0.05, "weight_decay": 5e-4},
            },
        }
    )
    session = assemble(experiment, material_of(work), device=work.device)
    session.model.train()
    steps = endless(session)

    def step() -> None:
        next(steps)

    return step


def endless(session: Session) -> Iterator[None]:
    """Train for ever, a step at a time."""
    weights = session.experiment.weights
    for epoch in count():
        meter = Meter(lambda values: None, epoch, session.steps_per_epoch, BATCH)
        lookout = Lookout(session, epoch, session.distiller.objective.needs, weights=weights)
        for step in session.steps(epoch):
            loss = descend(session, step)
            terms = {"loss": loss.total.detach(), **loss.terms}
            lookout.see(meter.count, terms)
            meter.add(terms)
            yield


def material_of(work: Work) -> Material:
    """The images, and teacher outputs as a cache of one view would hold them in memory."""
    images, labels = work.images, work.labels
    ids = torch.arange(len(images))
    whole = DecodedImages(decoded=images, labels=labels, ids=ids, num_classes=CLASSES, mean=MEAN, std=STD)
    generator = np.random.default_rng(0)
    table = {
        name: generator.standard_normal((1, len(images), width), dtype=np.float32).astype(np.float16)
        for name, width in (("logits", CLASSES), ("embedding", WIDTH))
    }
    return Material(whole, whole.take(ids[:BATCH]), tables=(table,), table_views=((0,),))


def bare_loop(work: Work, *, tuned: bool) -> Step:
    """What anybody would write for a student alone, with the images in memory."""
    device, layout = work.device, torch.channels_last if tuned else torch.contiguous_format
    student = build_model(work.student, CLASSES, in_channels=3).to(device, memory_format=layout).train()
    optimizer = sgd(student.parameters(), fused=tuned)
    images, labels = work.images.to(device), work.labels.to(device)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    order = torch.randperm(len(images))
    batches = iter(order[: len(order) // BATCH * BATCH].view(-1, BATCH).repeat(1000, 1))

    def step() -> None:
        batch = next(batches).to(device)
        pixels = ((images[batch].float() / 255 - mean) / std).contiguous(memory_format=layout)
        loss = F.cross_entropy(student(pixels)["logits"], labels[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def usual_loop(work: Work, *, contrast: bool) -> Step:
    """The step of the public distillation code."""
    images, labels, device = work.images, work.labels, work.device
    student, teacher = (build_model(name, CLASSES, in_channels=3).to(device) for name in (work.student, TEACHER))
    student.train()
    teacher.eval()
    banks = UsualBanks(len(images), device) if contrast else None
    trained = [*student.parameters(), *(banks.parameters() if banks is not None else ())]
    optimizer = sgd(trained, fused=False)
    data = PillowImages(images, labels, negatives=NEGATIVES if contrast else 0)
    batches = forever(DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=2))

    def step() -> None:
        pixels, label, index, drawn = (part.to(device) for part in next(batches))
        found = student(pixels, outputs=("logits", "embedding"))
        with torch.no_grad():
            wanted = teacher(pixels, outputs=("logits", "embedding"))
        loss = F.cross_entropy(found["logits"], label)
        if banks is None:
            soft = [side["logits"] / TEMPERATURE for side in (found, wanted)]
            divergence = F.kl_div(soft[0].log_softmax(1), soft[1].softmax(1), reduction="batchmean")
            loss = loss + divergence * TEMPERATURE**2
        else:
            loss = loss + 0.8 * banks(found["embedding"], wanted["embedding"], index, drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # for the running mean that is printed

    return step


class UsualBanks(nn.Module):
    """CRD by two banks, whose rows are laid out for each sample: [B, K + 1, D]."""

    def __init__(self, samples: int, device: torch.device) -> None:
        """Banks of unit rows."""
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)).to(device)
        self.banks = [F.normalize(torch.randn(samples, WIDTH, device=device), dim=1) for _ in range(2)]
        self.noise, self.normalisers = NEGATIVES / samples, [None, None]

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, drawn: Tensor) -> Tensor:
        """The loss; the banks' rows move with it."""
        sides = [F.normalize(head(side), dim=1) for head, side in zip(self.heads, (student, teacher), strict=True)]
        total = torch.zeros((), device=student.device)
        for number, side in enumerate(sides):
            rows = self.banks[1 - number].index_select(0, drawn.view(-1)).view(len(side), -1, WIDTH)
            scores = (torch.bmm(rows, side[:, :, None])[:, :, 0] / 0.1).exp()
            if self.normalisers[number] is None:
                self.normalisers[number] = scores.mean().item() * len(self.banks[number])
            scores = scores / self.normalisers[number]
            total = total - (scores[:, 0] / (scores[:, 0] + self.noise + 1e-7)).log().mean()
            total = total - (self.noise / (scores[:, 1:] + self.noise + 1e-7)).log().sum(1).mean()
        with torch.no_grad():
            for bank, side in zip(self.banks, sides, strict=True):
                bank[index] = F.normalize(0.5 * bank[index] + 0.5 * side, dim=1)
        return total


class PillowImages(Dataset):
    """Images with transforms by PIL, and for CRD the numbers of the positive and of the negatives."""

    def __init__(self, images: Tensor, labels: Tensor, *, negatives: int) -> None:
        """Keep the images as they would be read, and for each class who is not of it."""
        from torchvision import transforms

        self.images, self.labels, self.negatives = images.permute(0, 2, 3, 1).numpy(), labels.numpy(), negatives
        self.others = [np.flatnonzero(self.labels != label) for label in range(CLASSES)] if negatives else []
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIDE, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, np.ndarray[Any, Any]]:
        """One sample."""
        label = int(self.labels[index])
        pixels = self.transform(Image.fromarray(self.images[index]))
        if not self.negatives:
            return pixels, label, index, np.array([index])
        drawn = np.random.choice(self.others[label], self.negatives, replace=False)
        return pixels, label, index, np.concatenate([[index], drawn])


def forever(loader: DataLoader[Any]) -> Iterator[Any]:
    """Batches of one epoch after the other."""
    while True:
        yield from loader


def sgd(parameters: Any, *, fused: bool) -> torch.optim.Optimizer:
    """The optimiser of all ways but ours, whose settings are the same."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4, fused=fused or None)


if __name__ == "__main__":
    main()
