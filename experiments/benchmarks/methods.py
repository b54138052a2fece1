"""Speed and memory of the objectives as ratios to plain versions of the same mathematics, in one process on the CPU.

    python experiments/benchmarks/methods.py [--quick] [--repeats 5] [--threads 1] [--json]

A plain version lays everything out as its equation is written. Both get the same input in turns. Time is the least of
all repeats; memory is what lives at once besides the input; the difference is the largest of loss and gradients,
relative to the plain version's. The last column is what the project asks of itself. With ``--json`` the table goes to
stderr and the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from measuring import HEADER, MIB, Case, Result, fastest, measure
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from raydistill.functional import info_nce_loss, nst_loss, proto_cpc_loss, sinkhorn_knopp, update_prior
from raydistill.methods.base import Method, Setting, Step
from raydistill.methods.compress import CompRes
from raydistill.methods.crd import CRD
from raydistill.methods.negatives import NegativeSampler
from raydistill.methods.sampled import (
    WHOLE_BANK_RATIO,
    WHOLE_WEIGHTS_RATIO,
    read_products,
    read_sum,
    sampled_products,
    whole_sum,
)
from raydistill.methods.seed import SEED


@dataclass(frozen=True)
class Sizes:
    """Sizes of the inputs."""

    batch: int = 64
    samples: int = 60_000
    negatives: int = 16_384
    dimension: int = 128
    few_negatives: int = 1024
    queue: int = 128_000
    width: int = 512
    channels: int = 256
    side: int = 8
    prototypes: int = 65_536
    bottleneck: int = 256


QUICK = Sizes(samples=6000, negatives=1638, few_negatives=100, queue=12_800, channels=64, prototypes=6554)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes, to which nothing wanted applies")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sizes = QUICK if options.quick else Sizes()
    out = sys.stderr if options.json else sys.stdout

    print(HEADER, file=out)
    rows = []
    for case in cases(sizes):
        rows.append(measure(replace(case, wanted=None) if options.quick else case, options.repeats))
        print(rows[-1], file=out, flush=True)
    matmuls = protocpc_in_matmuls(sizes, 2 * options.repeats)
    print(f"\nprotocpc from the scores on takes {matmuls:.2f} times the product that makes them;", end=" ", file=out)
    print("at most 2 x", "met" if matmuls <= 2 else "MISSED", file=out)
    ratios = list(whole_bank(sizes, options.repeats))
    print(f"\ncrd multiplies with the whole bank of M rows up to M / K = {WHOLE_BANK_RATIO},", end=" ", file=out)
    print(f"in the gradient up to {WHOLE_WEIGHTS_RATIO}:", file=out)
    for ratio, whole, read, whole_back, read_back in ratios:
        print(f"M / K = {ratio:<4} whole bank {whole:8.1f} ms   rows read {read:8.1f} ms", end="   ", file=out)
        print(f"gradient: whole bank {whole_back:8.1f} ms   rows read {read_back:8.1f} ms", file=out)
    if options.json:
        made = {"threads": options.threads, "quick": options.quick, "protocpc_matmuls": matmuls, "whole_bank": ratios}
        print(json.dumps({**made, "objectives": [asdict(row) for row in rows]}))


def cases(sizes: Sizes) -> Iterator[Case]:
    """All comparisons."""
    yield from crd(sizes)
    yield few_of_many(sizes)
    yield from queues(sizes)
    yield nst(sizes)
    yield protocpc(sizes)


def gradients(total: Tensor, *inputs: Tensor) -> Result:
    """The loss and its gradients."""
    return total.detach(), *torch.autograd.grad(total, inputs)


def unit_rows(*shape: int) -> Tensor:
    """Random unit vectors."""
    return F.normalize(torch.randn(shape), dim=-1)


def setting(sizes: Sizes) -> Setting:
    """Embeddings of one width on both sides, ten classes."""
    shapes = {"embedding": (sizes.width,)}
    labels = torch.arange(sizes.samples) % 10
    return Setting(shapes, (shapes,), nn.Identity(), 10, sizes.samples, sizes.batch, 1, labels, seed=0)


def both_sides(sizes: Sizes) -> tuple[Tensor, Tensor, Step]:
    """Student and teacher embeddings and a step of them."""
    student = torch.randn(sizes.batch, sizes.width, requires_grad=True)
    teacher = torch.randn(sizes.batch, sizes.width)
    index = torch.randperm(sizes.samples)[: sizes.batch]
    outputs = [{0: {"embedding": side}} for side in (student, teacher)]
    return student, teacher, Step({}, outputs[0], (outputs[1],), {"index": index})


def crd(sizes: Sizes) -> Iterator[Case]:
    """CRD's whole step, its loss with given draws, and its draws."""
    method = CRD(negatives=sizes.negatives, dimension=sizes.dimension)
    parts: Any = method.parts(setting(sizes))
    student, teacher, step = both_sides(sizes)
    index, log_normaliser = step.columns["index"], 11.0
    parts["log_normaliser"].value.fill_(log_normaliser)  # known from the first batch on
    trained = [student, *parts.parameters()]
    generator = np.random.default_rng(0)
    others = [np.flatnonzero(np.arange(sizes.samples) % 10 != label) for label in range(10)]

    def draw() -> Tensor:
        drawn = [generator.choice(others[sample % 10], sizes.negatives, replace=False) for sample in index.numpy()]
        return torch.from_numpy(np.stack(drawn))

    def plain(drawn: Tensor, *, update: bool) -> Result:
        rows = torch.cat([index[:, None], drawn], dim=1)
        embedded = [F.normalize(parts[s](x), dim=1) for s, x in (("student", student), ("teacher", teacher))]
        banks = [parts["student_bank"].rows, parts["teacher_bank"].rows]
        noise, total = sizes.negatives / sizes.samples, torch.zeros(())
        for embedding, bank in zip(embedded, reversed(banks), strict=True):
            products = torch.bmm(bank[rows], embedding[:, :, None])[:, :, 0]
            scores = (products / method.temperature).exp() / np.exp(log_normaliser)
            total = total - (scores[:, 0] / (scores[:, 0] + noise + 1e-7)).log().mean()
            total = total - (noise / (scores[:, 1:] + noise + 1e-7)).log().sum(1).mean()
        made = gradients(total, *trained)
        if update:
            for embedding, bank in zip(embedded, banks, strict=True):
                bank[index] = F.normalize(0.5 * bank[index] + 0.5 * embedding.detach(), dim=1)
        return made

    def ours(*, update: bool) -> Result:
        loss = method.loss(step, parts)
        made = gradients(loss.total, *trained)
        if update:
            method.after_step(parts, nn.Identity(), loss.carry)
        return made

    sampler = parts["sampler"]
    given = sampler(index, 0)
    yield Case("crd: loss of given draws", lambda: plain(given, update=False), lambda: ours(update=False))
    yield Case(
        "crd: draws, loss, gradients, banks",
        lambda: plain(draw(), update=True),
        lambda: ours(update=True),
        wanted=("faster", 8.0),
        agree=False,
    )
    yield Case("crd: draws alone", lambda: (draw(),), lambda: (sampler(index, 0),), agree=False)


def few_of_many(sizes: Sizes) -> Case:
    """Scores of CRD where the training set is hundreds of times as large as the draws."""
    bank = unit_rows(400 * sizes.few_negatives, sizes.dimension)
    drawn = NegativeSampler(len(bank), None, sizes.few_negatives, seed=0)(torch.arange(sizes.batch), 0)
    embedding = unit_rows(sizes.batch, sizes.dimension).requires_grad_()
    weights = torch.randn(drawn.shape)
    return Case(
        "crd: scores, M / K = 400",
        lambda: gradients((torch.einsum("bd,bkd->bk", embedding, bank[drawn]) * weights).sum(), embedding),
        lambda: gradients((sampled_products(embedding, bank, drawn) * weights).sum(), embedding),
    )


def queues(sizes: Sizes) -> Iterator[Case]:
    """Losses with a long queue, which must not be copied: a quarter of its size is the most that they may take."""
    wanted = ("mib", round(sizes.queue * sizes.width * 4 / MIB / 4))
    student, teacher, step = both_sides(sizes)

    def case(name: str, method: Method, plain: Callable[[Any], Tensor]) -> Case:
        parts: Any = method.parts(setting(sizes))
        if "head" in parts:  # widths are equal, and both ways would run it alike
            parts["head"] = nn.Identity()
        return Case(
            name,
            lambda: gradients(plain(parts), student),
            lambda: gradients(method.loss(step, parts).total, student),
            wanted,
        )

    def own(rows: Tensor) -> Tensor:
        return (F.normalize(rows, dim=1) * F.normalize(teacher, dim=1)).sum(1, keepdim=True)

    def compress(parts: Any) -> Tensor:
        keys = parts["teacher_queue"].keys
        sides = ((student, parts["student_queue"].keys if "student_queue" in parts else keys), (teacher, keys))
        scores = [(F.normalize(rows, dim=1) @ queue.T / 0.04).log_softmax(1) for rows, queue in sides]
        return F.kl_div(*scores, reduction="batchmean", log_target=True)

    def seed(parts: Any) -> Tensor:
        keys = parts["queue"].keys
        scores = [torch.cat([own(rows), F.normalize(rows, dim=1) @ keys.T], dim=1) for rows in (student, teacher)]
        return -((scores[1] / 0.01).softmax(1) * (scores[0] / 0.2).log_softmax(1)).sum(1).mean()

    def info_nce(keys: Tensor) -> Tensor:
        products = F.normalize(student, dim=1) @ F.normalize(keys, dim=1).T
        scores = torch.cat([own(student), products], dim=1) / 0.1
        return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64))

    yield case("compress 1q", CompRes(queue=sizes.queue, queues="1q"), compress)
    yield case("compress 2q", CompRes(queue=sizes.queue, momentum=0.0), compress)
    yield case("seed", SEED(queue=sizes.queue), seed)
    keys = unit_rows(sizes.queue, sizes.width)
    yield Case(
        "cocord, moco_v2: InfoNCE",
        lambda: gradients(info_nce(keys), student),
        lambda: gradients(info_nce_loss(student, teacher, keys, temperature=0.1, unit_negatives=True), student),
        wanted,
    )


def nst(sizes: Sizes) -> Case:
    """NST without B x C x C x H W numbers."""
    shape = (sizes.batch, sizes.channels, sizes.side, sizes.side)
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left[:, None] * right[:, :, None]).sum(-1).square().mean()

    def plain() -> Tensor:
        one, two = (F.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))
        return kernel(one, one) + kernel(two, two) - 2 * kernel(two, one)

    return Case(
        "nst",
        lambda: gradients(plain(), student),
        lambda: gradients(nst_loss([student], [teacher]), student),
        wanted=("smaller", 10.0),
    )


def protocpc(sizes: Sizes) -> Case:
    """Sinkhorn-Knopp, prior, loss and gradient from given scores."""
    student, teacher, prior = prototype_scores(sizes)

    def plain() -> Result:
        plan = (teacher / 0.04).exp()
        for _ in range(3):
            plan = plan / plan.sum(0, keepdim=True)
            plan = plan / plan.sum(1, keepdim=True)
        new, scores = 0.9 * prior + 0.1 * sizes.prototypes * plan.mean(0), student / 0.1
        return gradients((-(plan * scores).sum(1) + (scores.exp() * new).sum(1).log()).mean(), student)

    return Case("protocpc: from the scores on", plain, lambda: protocpc_step(student, teacher, prior))


def prototype_scores(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines of both sides with all prototypes, and the first prior."""
    prototypes = unit_rows(sizes.prototypes, sizes.bottleneck)
    student, teacher = (F.linear(unit_rows(sizes.batch, sizes.bottleneck), prototypes) for _ in range(2))
    return student.requires_grad_(), teacher, torch.ones(sizes.prototypes)


def protocpc_step(student: Tensor, teacher: Tensor, prior: Tensor) -> Result:
    """What ProtoCPC does with the scores of a step."""
    assigned = sinkhorn_knopp(teacher / 0.04)
    return gradients(proto_cpc_loss(student / 0.1, assigned, update_prior(prior, assigned, momentum=0.9)), student)


def protocpc_in_matmuls(sizes: Sizes, repeats: int) -> float:
    """How many products [B, 256] x [256, K] ProtoCPC's step is worth from the scores on."""
    student, teacher, prior = prototype_scores(sizes)
    embedding, prototypes = unit_rows(sizes.batch, sizes.bottleneck), unit_rows(sizes.prototypes, sizes.bottleneck)
    step, product = fastest(
        [lambda: protocpc_step(student, teacher, prior), lambda: F.linear(embedding, prototypes)], repeats
    )
    return step / product


def whole_bank(sizes: Sizes, repeats: int) -> Iterable[tuple[int, float, float, float, float]]:
    """M / K, and milliseconds by products with the whole bank and by reading the drawn rows: scores and gradient."""
    embedding = unit_rows(sizes.batch, sizes.dimension)
    for ratio in (2, 4, 6, 8, 12, 16, 20, 24, 32):
        bank = unit_rows(ratio * sizes.few_negatives, sizes.dimension)
        drawn = torch.randint(len(bank), (sizes.batch, sizes.few_negatives))
        ways: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
            lambda rows, bank, index: (rows @ bank.T).gather(1, index),
            read_products,
        ]
        runs = [lambda way=way: [way(embedding, bank, drawn)] for way in ways]  # noqa: B023
        weights = torch.randn(drawn.shape)
        runs += [lambda way=way: [way(weights, bank, drawn)] for way in (whole_sum, read_sum)]  # noqa: B023
        whole, read, whole_back, read_back = fastest(runs, repeats)
        yield ratio, whole, read, whole_back, read_back


if __name__ == "__main__":
    main()
