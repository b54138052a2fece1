"""Weighted k-NN against one matrix product of the same size, in turns and in one process on the CPU.

    python experiments/benchmarks/neighbours.py [--quick] [--repeats 5] [--threads 1] [--json]

Both compare 10,000 queries with a bank of 60,000 random features of 512 numbers; ours finds the 20 nearest, exactly,
and lets them vote. The product's result is thrown away; it runs in one piece, 2.4 GB of it, and in blocks of as many
elements as ours. Ratios are those of medians, and the quicker product is the one that counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from measuring import peak

from raydistill.evaluation.neighbours import weighted_knn

BLOCK_ELEMENTS = 1 << 24
BANK, QUERIES, WIDTH, CLASSES, NEIGHBOURS = 60_000, 10_000, 512, 100, 20
AT_MOST = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the queries")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    bank, queries = torch.randn(BANK, WIDTH), torch.randn(QUERIES // (10 if given.quick else 1), WIDTH)
    labels = torch.randint(CLASSES, (BANK,))

    def ours() -> object:
        return weighted_knn(bank, labels, queries, k=NEIGHBOURS, num_classes=CLASSES)

    def in_blocks() -> None:
        for block in queries.split(BLOCK_ELEMENTS // BANK):
            block @ bank.T

    seconds = in_turns([lambda: queries @ bank.T, in_blocks, ours], given.repeats)
    product, blocks, knn = (statistics.median(taken) for taken in seconds)
    ratio, mib = knn / min(product, blocks), peak(ours)
    if given.json:
        print(json.dumps({"product_s": seconds[0], "blocks_s": seconds[1], "knn_s": seconds[2], "knn_peak_mib": mib}))
        return
    print(f"product of {len(queries)} x {WIDTH} x {BANK}: {product:.2f} s, in blocks {blocks:.2f} s")
    print(f"k-NN {knn:.2f} s, {mib:.0f} MiB at most besides the features given")
    print(f"ratio {ratio:.2f}, at most {AT_MOST:g} wanted, {'met' if ratio <= AT_MOST else 'MISSED'}")


def in_turns(runs: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of each, after a round that does not count."""
    seconds: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for taken, run in zip(seconds, runs, strict=True):
            started = time.perf_counter()
            run()
            if repeat:
                taken.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
