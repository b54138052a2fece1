"""Cache, training and sweep under random faults: what survives, how soon, what is done twice, what comes out otherwise.

    python experiments/benchmarks/chaos.py --minutes 10 [--seed 0] [--only train] [--faults kill disk] [--json]

First `raydistill cache build`, `train` and `tune` run undisturbed, small, each with a Ray of its own; their results are
what all others are compared with: shards and records byte for byte, the student's weights and metrics bit for bit, the
sweep's table of trials, its finalists and its best configuration. Then they run in turn, each under one random fault at
a random moment between its start and the end of the undisturbed one:

kill    SIGKILL for a random process of the command, one kind as likely as another: driver, raylet, gcs_server, workers
        and actors (ray::...), Ray's agents and monitors
disk    the disk of the run, a tmpfs, is filled for 2 to 15 s
clock   the wall clock of all its processes jumps twice by up to 12 hours, to and fro, and back after 6 to 10 s
slow    each write, sync and renaming on that disk takes 0.02 to 0.5 s more for 5 to 15 s

Clock and disk are slowed down by a library that is preloaded into these processes (faults.c), never the machine's own.
A command that ended is started anew at once, once its disk is free: `train` and `tune` with --resume where they had
begun, `cache build` as it was.

recovered     from the fault's first moment to the first progress beyond what there was by then: a further shard, a
              checkpoint at a later step, more epochs in the trials' metrics; or to the end, where none was to come. A
              full disk stays full meanwhile, and a start of Ray and torch is part of it where the command ended
lost work     batches that went through teacher or student, beyond those of the undisturbed run: they were done twice
unclean       a traceback, a code other than 0 or 1, no last line of ours with code 1, a file that has its name and is
              torn, temporary files or processes that are left 30 s after the end, a command that hangs or never ends
differences   results unlike those of the undisturbed run

The exit code is 1 where there was anything unclean or any difference; what such commands said is kept in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from types import FrameType
from typing import Any

from faults import FAULTS, Action, Scene, adopt_orphans, end_all, plan, scene
from workloads import LOG, Workload, differences, left_over, progress, results, torn, unclean, work_done, workloads

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0
"""A command that comes no further for so long hangs."""
GRACE_S = 30.0
MOST_STARTS = 6
POLL_S = 0.02
NO_RAY = "raydistill: Ray could not be started"
"""It gives itself half a minute for that, of which a busy machine may need more. Then the command is started again."""


@dataclass(frozen=True)
class Reference:
    """What an undisturbed command comes to, the seconds it takes, and the units of work it does."""

    results: dict[str, str]
    seconds: float
    work: int


@dataclass
class Round:
    """One command until its end, with all its starts, and what came of it."""

    number: int
    command: str
    fault: str
    at_s: float
    happened: list[str] = field(default_factory=list)
    starts: int = 0
    ended: int = 0
    recovered_s: float | None = None
    lost: int = 0
    seconds: float = 0.0
    unclean: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    @property
    def struck(self) -> bool:
        """Whether the fault came before the command was over."""
        return self.recovered_s is not None

    @property
    def survived(self) -> bool:
        """Whether the command went on by itself."""
        return self.struck and not self.ended

    def __str__(self) -> str:
        """One line."""
        what = ", ".join(self.happened) or "over before the fault"
        ends = "" if not self.struck else ", survived" if self.survived else f", {self.starts} starts"
        recovered = "" if self.recovered_s is None else f", recovered after {self.recovered_s:.1f} s"
        wrong = "".join(f"\n    {kind}: {said}" for kind in ("unclean", "differences") for said in getattr(self, kind))
        return (
            f"{self.number:>4} {self.command:<6}{self.fault:<6}at {self.at_s:5.1f} s: {what}{ends}{recovered}, "
            f"lost {self.lost}, {self.seconds:.0f} s in all{wrong}"
        )


@dataclass
class Started:
    """The processes of one round: the one that runs, and where all of them write what they say."""

    folder: Path
    workload: Workload
    scene: Scene
    environment: dict[str, str]
    drivers: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Begin, or begin again as a user would."""
        config = self.folder / f"{self.workload.experiment['name']}.yaml"
        config.write_text(json.dumps(self.workload.experiment))  # which is YAML too
        words = [*self.workload.verb.split(), str(config), *self.workload.arguments(self.scene.disk)]
        number = len(self.drivers) + 1
        with (self.folder / f"out{number}").open("wb") as out, (self.folder / f"err{number}").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raydistill.cli", *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.drivers.append(self.process.pid)

    @property
    def said(self) -> str:
        """What the newest one has said on stderr."""
        return (self.folder / f"err{len(self.drivers)}").read_text(errors="replace")

    @property
    def work(self) -> int:
        """Units done by all of them."""
        return work_done(self.folder / "batches", self.drivers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults; the last round comes to its end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=["cache", "train", "tune"], default=["cache", "train", "tune"])
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=[*FAULTS])
    parser.add_argument("--folder", type=Path, help="where to work and to keep what failed; else a temporary one")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    folder = Path(tempfile.mkdtemp(prefix="chaos", dir="/tmp")) if given.folder is None else given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    adopt_orphans()
    rounds: list[Round] = []
    with scene(folder) as place:
        try:
            for one in run(place, given.only, given.faults, given.seed, given.minutes):
                rounds.append(one)
                print(one, flush=True)
        finally:  # an interrupt too
            end_all()
            print("\n".join(table(rounds)))
    bad = [one for one in rounds if one.unclean or one.differences]
    if bad:
        print(f"what these {len(bad)} rounds said is kept in {folder}")
    else:
        shutil.rmtree(folder)
    if given.json:
        print(json.dumps({"seed": given.seed, "rounds": [asdict(one) for one in rounds], "ok": not bad}))
    raise SystemExit(bool(bad))


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def run(place: Scene, commands: Sequence[str], faults: Sequence[str], seed: int, minutes: float) -> Iterator[Round]:
    """Run undisturbed, then under faults until the time is over; yield each round as it ends."""
    for fault, reason in place.lacking.items():
        if fault in faults:
            print(f"left out: {fault}: {reason}")
    faults = [fault for fault in faults if fault not in place.lacking]
    cache = place.folder / "cache"
    loads = workloads(place.disk, cache)
    references = {}
    for command in dict.fromkeys(["cache", *commands]):
        references[command] = undisturbed(place, command, loads[command])
        if command == "cache":
            shutil.copytree(place.disk / loads[command].output, cache)
    ends = time.monotonic() + 60 * minutes
    for number, (command, fault) in enumerate(turns(commands, faults, random.Random(seed)), 1):
        if time.monotonic() > ends:
            break
        chance = random.Random(f"{seed} {number}")
        one = Round(number, command, fault, chance.uniform(0, references[command].seconds))
        disturbed(place, one, plan(fault, place, chance), loads[command], references[command])
        yield one


def turns(commands: Sequence[str], faults: Sequence[str], chance: random.Random) -> Iterator[tuple[str, str]]:
    """Yield commands in turn, each under its faults in an order that is drawn anew whenever all have come."""
    left: dict[str, list[str]] = {command: [] for command in commands}
    for command in cycle(commands):
        if not faults:
            return
        if not left[command]:
            left[command] = chance.sample(list(faults), len(faults))
        yield command, left[command].pop()


def undisturbed(place: Scene, command: str, load: Workload) -> Reference:
    """Run a command to its end. Raises ``SystemExit`` where it fails by itself."""
    place.empty()
    started = _started(place, load, place.folder / f"undisturbed-{command}")
    for _ in range(MOST_STARTS):
        began = time.monotonic()
        code, seconds = started.process.wait(), time.monotonic() - began
        if NO_RAY not in started.said:
            break
        started.start()
    output = place.disk / load.output
    problems = [*unclean(started.said, code), *torn(output), *left_over(output)]
    problems += [f"{name} lives on" for name in end_all(GRACE_S)]
    if code or problems:
        raise SystemExit(f"{command} fails undisturbed, code {code}: {problems}\n{started.said}")
    found = Reference(results(output), seconds, started.work)
    print(f"     {command:<6}undisturbed: {found.seconds:.1f} s, {found.work} {load.unit}", flush=True)
    _tidy(started)
    return found


def disturbed(place: Scene, one: Round, actions: list[Action], load: Workload, reference: Reference) -> None:
    """Run a command to its end under a fault, and note in ``one`` what came of it."""
    place.empty()
    under_way = UnderWay(one, actions, _started(place, load, place.folder / f"round{one.number}"))
    while not under_way.over():
        time.sleep(POLL_S)
    under_way.judge(reference)
    place.free()
    place.deceive()


@dataclass
class UnderWay:
    """A round that is being watched.

    Attributes:
        struck: when the fault began, None before that.
        reached: the progress there was by then.
    """

    one: Round
    actions: list[Action]
    started: Started
    first: float = field(default_factory=time.monotonic)
    struck: float | None = None
    reached: int = 0

    def __post_init__(self) -> None:
        """The fault's moment is counted from the first start that has a Ray."""
        self.one.starts, self.began, self.moved, self.farthest = 1, self.first, self.first, 0

    @property
    def output(self) -> Path:
        """What the command writes."""
        return self.started.scene.disk / self.started.workload.output

    def over(self) -> bool:
        """Do what is due by now: the fault, or a start anew; return whether the round has come to its end."""
        now, ended = time.monotonic(), self.started.process.poll() is not None
        if self.struck is None and not ended and now - self.began >= self.one.at_s:
            self.struck, self.reached = now, progress(self.output)
        while self.struck is not None and self.actions and (ended or now - self.struck >= self.actions[0][0]):
            self.one.happened.append(self.actions.pop(0)[1]())  # who finds a command ended, puts things right at once
        self._follow(now)
        if ended:
            return self.started.process.returncode == 0 or self._gives_up(now)
        if now - self.moved > PATIENCE_S:
            self.one.unclean.append(f"hangs: {self.started.said[-300:]}")
        return now - self.moved > PATIENCE_S

    def _follow(self, now: float) -> None:
        at = progress(self.output)
        if at > self.farthest:
            self.farthest, self.moved = at, now
        if self.struck is not None and self.one.recovered_s is None and at > self.reached:
            self.one.recovered_s = now - self.struck

    def _gives_up(self, now: float) -> bool:
        """Look at how a command ended, and start it again; return whether that was done too often."""
        one, code = self.one, self.started.process.returncode
        if code != -signal.SIGKILL or "killed driver" not in one.happened:
            one.unclean += unclean(self.started.said, code)
        last = (self.started.said.strip().splitlines() or ["nothing said"])[-1]
        one.happened.append(f"ended with code {code} ({last[:200]})")
        one.unclean += torn(self.output)
        if self.struck is None:
            self.began = now
            if NO_RAY not in self.started.said:
                one.unclean.append(f"ended by itself: {self.started.said[-300:]}")
        else:
            one.ended += 1
        if one.starts == MOST_STARTS:
            one.unclean.append(f"does not come to its end with {MOST_STARTS} starts")
            return True
        one.starts, self.moved = one.starts + 1, now
        self.started.start()
        return False

    def judge(self, reference: Reference) -> None:
        """Look at what the round has left."""
        one, now = self.one, time.monotonic()
        one.seconds = now - self.first
        if self.struck is not None and one.recovered_s is None:
            one.recovered_s = now - self.struck
        if self.started.process.poll() == 0:
            one.unclean += unclean(self.started.said, 0)
        one.unclean += [f"{name} lives on" for name in end_all(GRACE_S)]
        one.unclean += [*torn(self.output), *(f"{name} is left" for name in left_over(self.output))]
        one.differences += differences(results(self.output), reference.results)
        one.lost = self.started.work - reference.work
        if one.lost < 0:
            one.unclean.append("less work was done than undisturbed")
        if not one.unclean and not one.differences:
            _tidy(self.started)
        else:
            _keep(self.started)


def _started(place: Scene, load: Workload, folder: Path) -> Started:
    """Begin a command with a Ray of its own, whose files lie where nobody else looks for one."""
    folder.mkdir()
    ray = place.short / folder.name
    ray.mkdir()
    paths = [str(ROOT), str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    own: dict[str, Any] = {
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_TMPDIR": str(ray),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",  # what else runs on the machine shall not decide how long a round takes
        LOG: str(folder / "batches"),
    }
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    started = Started(folder, load, place, environment | own | place.environment)
    started.start()
    return started


def _tidy(started: Started) -> None:
    """Remove what nobody will ask for."""
    shutil.rmtree(started.folder)
    shutil.rmtree(started.environment["RAY_TMPDIR"], ignore_errors=True)


def _keep(started: Started) -> None:
    """Put what a round wrote, and what its Rays said, where it can be looked at."""
    kept = shutil.ignore_patterns("ballast", "sockets", "runtime_resources")
    for source, name in ((started.scene.disk, "disk"), (Path(started.environment["RAY_TMPDIR"]), "ray")):
        shutil.copytree(source, started.folder / name, symlinks=True, ignore=kept)


def table(rounds: Sequence[Round]) -> list[str]:
    """Return the lines of a table in Markdown, one row for each command and fault, and one for all."""
    head = ["command", "fault", "attempts", "ended by it", "survived", "recovered", "mean seconds", "lost work"]
    head += ["unclean", "differences"]
    pairs = sorted({(one.command, one.fault) for one in rounds})
    rows = [_summed(*pair, [one for one in rounds if (one.command, one.fault) == pair]) for pair in pairs]
    return [_row(head), _row(["---"] * len(head)), *rows, _summed("all", "", rounds)]


def _summed(command: str, fault: str, rounds: Sequence[Round]) -> str:
    struck = [one for one in rounds if one.struck]
    times = [one.recovered_s or 0.0 for one in struck]
    return _row(
        [
            command,
            fault,
            sum(one.starts for one in rounds),
            sum(not one.survived for one in struck),
            sum(one.survived for one in struck),
            sum(not one.unclean and not one.differences for one in struck),
            f"{sum(times) / len(times):.1f}" if times else "-",
            sum(one.lost for one in rounds),
            sum(len(one.unclean) for one in rounds),
            sum(len(one.differences) for one in rounds),
        ]
    )


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
