"""Faults that befall a running command and nothing else: kills, a full disk, a clock that jumps, a slow disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Action = tuple[float, Callable[[], str]]
"""Seconds after the fault's beginning, and what is done then; it says what that was."""
FAULTS = ("kill", "disk", "clock", "slow")
DISK_BYTES = 64 * 2**20
SET_CHILD_SUBREAPER = 36


class NotPossibleError(Exception):
    """This machine lacks the means for a fault."""


# --- processes --------------------------------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """Become the parent of all descendants that lose theirs, so that none can get out of sight."""
    if ctypes.CDLL(None, use_errno=True).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def descendants(own: int | None = None) -> dict[int, str]:
    """Return the living descendants of this process with their names; the dead are laid to rest, but for ``own``."""
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, (state, parent) = int(path.parent.name), path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children[int(parent)].append(pid)
            elif int(parent) == os.getpid() and pid != own:
                os.waitpid(pid, os.WNOHANG)
    found, waiting = {}, [os.getpid()]
    while waiting:
        for pid in children[waiting.pop()]:
            found[pid] = _role(pid)
            waiting.append(pid)
    return found


def _role(pid: int) -> str:
    """Say in a word or two which of Ray's processes, or of ours, one is."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "gone"
    line = " ".join(words)
    if "raydistill.cli" in line:
        return "driver"
    if words[0].startswith("ray::"):
        return words[0].split("(")[0].split(".")[0]
    scripts = [Path(word).name for word in words if word.endswith((".py", "raylet", "gcs_server"))]
    return (scripts or [Path(words[0]).name])[0]


def end_all(grace: float = 0.0) -> list[str]:
    """Kill every descendant that still lives after ``grace`` seconds; return their names."""
    until = time.monotonic() + grace
    while (left := descendants()) and time.monotonic() < until:
        time.sleep(0.1)
    names = sorted(left.values())
    while left:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        left = descendants()
    return names


# --- the place of a command -------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A small disk on which commands work, and the amounts by which their processes are deceived.

    ``short`` is a folder for Rays, whose sockets have short names; ``environment`` is what commands need. Where there
    is no root, the disk is a folder as any other; where there is no compiler, nobody is deceived; ``lacking`` tells of
    both.
    """

    folder: Path
    short: Path
    environment: dict[str, str]
    lacking: dict[str, str]

    @property
    def disk(self) -> Path:
        """Where a command writes its run or cache."""
        return self.folder / "disk"

    def empty(self) -> None:
        """Give the next command an empty disk."""
        if "disk" in self.lacking:
            subprocess.run(["rm", "-rf", str(self.disk)], check=True)
            self.disk.mkdir()
        else:
            _unmount(self.disk)
            _mount(self.disk)

    def fill(self) -> None:
        """Leave no byte free on the disk."""
        with (self.disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**16))

    def free(self) -> None:
        """Undo that."""
        (self.disk / "ballast").unlink(missing_ok=True)

    def deceive(self, *, clock_s: int = 0, delay_us: int = 0) -> None:
        """Let all processes see a clock that is off by so much, and each write to the disk take so much longer."""
        path = self.folder / "amounts"
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(struct.pack("qq", clock_s, delay_us))

    def leave(self) -> None:
        """Leave no mount behind."""
        if "disk" not in self.lacking:
            _unmount(self.disk)


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """Prepare a place for the time being."""
    short = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    made = Scene(folder, short, {}, {})
    made.disk.mkdir()
    made.deceive()
    try:
        _mount(made.disk)
    except NotPossibleError as error:
        made.lacking["disk"] = str(error)
    try:
        made.environment.update(_shim(folder))
    except NotPossibleError as error:
        made.lacking |= {"clock": str(error), "slow": str(error)}
    try:
        yield made
    finally:
        made.leave()
        shutil.rmtree(short, ignore_errors=True)


def _shim(folder: Path) -> dict[str, str]:
    """Compile what is preloaded; return what preloads it."""
    library = folder / "faults.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(Path(__file__).with_suffix(".c")), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise NotPossibleError(f"no C compiler ({error})") from None
    return {
        "LD_PRELOAD": " ".join([str(library), *os.environ.get("LD_PRELOAD", "").split()]),
        "CHAOS_AMOUNTS": str(folder / "amounts"),
        "CHAOS_FOLDER": str(folder / "disk"),
    }


def _mount(folder: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise NotPossibleError(f"no small file system can be mounted ({error})") from None


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


# --- faults -----------------------------------------------------------------------------------------------------------


def plan(fault: str, scene: Scene, chance: random.Random) -> list[Action]:
    """Draw what happens, and when."""
    return {"kill": _kill, "disk": _full_disk, "clock": _jumping_clock, "slow": _slow_disk}[fault](scene, chance)


def _kill(scene: Scene, chance: random.Random) -> list[Action]:
    """Of a random kind of the command's processes a random one."""
    kind, one = chance.random(), chance.random()

    def strike() -> str:
        roles: dict[str, list[int]] = defaultdict(list)
        for pid, role in descendants().items():
            roles[role].append(pid)
        roles.pop("gone", None)
        if not roles:
            return "killed nobody: none was left"
        role = sorted(roles)[int(kind * len(roles))]
        pid = sorted(roles[role])[int(one * len(roles[role]))]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return f"killed {role}"

    return [(0.0, strike)]


def _full_disk(scene: Scene, chance: random.Random) -> list[Action]:
    held = chance.uniform(2.0, 15.0)

    def fill() -> str:
        scene.fill()
        return "disk full"

    def free() -> str:
        scene.free()
        return "and free again"

    return [(0.0, fill), (held, free)]


def _jumping_clock(scene: Scene, chance: random.Random) -> list[Action]:
    """Two jumps of up to twelve hours and one back."""

    def jump(hours: float) -> Callable[[], str]:
        def act() -> str:
            scene.deceive(clock_s=int(3600 * hours))
            return f"clock {hours:+.1f} h"

        return act

    first, second = chance.choice([(-1, 1), (1, -1)])
    return [
        (0.0, jump(first * chance.uniform(0.1, 12.0))),
        (chance.uniform(1.0, 5.0), jump(second * chance.uniform(0.1, 12.0))),
        (chance.uniform(6.0, 10.0), jump(0.0)),
    ]


def _slow_disk(scene: Scene, chance: random.Random) -> list[Action]:
    """Each write, sync and renaming takes up to half a second more."""
    delay, held = chance.uniform(0.02, 0.5), chance.uniform(5.0, 15.0)

    def slow() -> str:
        scene.deceive(delay_us=int(1e6 * delay))
        return f"writes {delay:.2f} s slower"

    def fast() -> str:
        scene.deceive()
        return "and fast again"

    return [(0.0, slow), (held, fast)]
