"""Time and memory of two ways to the same result, in turns and in one process, on the CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own start

from torch import Tensor

from raydistill.evaluation.cost import peak_on_cpu

MIB = 2**20
Result = tuple[Tensor, ...]
Run = Callable[[], Result]
HEADER = f"{'objective':<36}{'plain':>11}{'ours':>11}{'faster':>10}{'plain':>13}{'ours':>13}{'smaller':>10}  difference"


@dataclass(frozen=True)
class Case:
    """``wanted``: least ratios by which ours is ``faster`` or ``smaller``, or the most ``mib`` that it may take.

    Results are compared unless the ways do not ``agree`` because they draw for themselves.
    """

    name: str
    plain: Run
    ours: Run
    wanted: tuple[str, float] | None = None
    agree: bool = True


@dataclass(frozen=True)
class Row:
    """What came out of a case."""

    name: str
    plain_ms: float
    ours_ms: float
    plain_mib: float
    ours_mib: float
    difference: float | None
    wanted: str
    met: bool | None

    def __str__(self) -> str:
        """One line under ``HEADER``."""
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        difference = "" if self.difference is None else f"{self.difference:.0e}"
        smaller = f"{self.plain_mib / self.ours_mib:>8.1f} x" if self.plain_mib and self.ours_mib else " " * 10
        return (
            f"{self.name:<36}{self.plain_ms:>8.1f} ms{self.ours_ms:>8.1f} ms{self.plain_ms / self.ours_ms:>8.1f} x"
            f"{self.plain_mib:>9.1f} MiB{self.ours_mib:>9.1f} MiB{smaller}  {difference:<7}{self.wanted} {verdict}"
        )


def measure(case: Case, repeats: int) -> Row:
    """Run both ways."""
    difference = max(map(_relative, case.ours(), case.plain())) if case.agree else None
    plain, ours = fastest([case.plain, case.ours], repeats)
    plain_mib, ours_mib = peak(case.plain), peak(case.ours)
    wanted, met = "", None
    if case.wanted is not None:
        kind, bound = case.wanted
        met = {
            "faster": plain >= bound * ours,
            "smaller": plain_mib >= bound * ours_mib,
            "mib": ours_mib <= bound,
        }[kind]
        wanted = f"at most {bound:g} MiB" if kind == "mib" else f"{bound:g} x {kind}"
    return Row(case.name, plain, ours, plain_mib, ours_mib, difference, wanted, met)


def fastest(runs: list[Callable[[], object]], repeats: int) -> list[float]:
    """Least milliseconds of each, after a round that does not count."""
    best = [float("inf")] * len(runs)
    for repeat in range(repeats + 1):
        for number, run in enumerate(runs):
            started = time.perf_counter()
            run()
            took = 1000 * (time.perf_counter() - started)
            best[number] = min(best[number], took) if repeat else best[number]
    return best


def peak(run: Callable[[], object]) -> float:
    """Most MiB of tensors that a call allocates and holds at once, what operations need inside included."""
    return peak_on_cpu(run) / MIB


def _relative(ours: Tensor, plain: Tensor) -> float:
    return float((ours - plain).abs().max() / plain.abs().max())
