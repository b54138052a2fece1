"""The energy that the machine says it took: CPU packages by Linux's powercap, NVIDIA GPUs by NVML.

Counters are of the whole package or GPU, so whatever else runs there is counted, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
ENERGY = "energy_j"
"""The name of an epoch's and a run's joules."""

LOOK_EVERY_S = 30.0
"""Counters of packages begin anew after some minutes at full power, so they must be read more often than that.

Between steps they are; what lies between two steps, such as a validation, has to be shorter.
"""


@dataclass(frozen=True)
class Counter:
    """One that only grows: ``read`` returns joules, and begins anew at ``span``. Raises ``OSError`` once it is lost."""

    name: str
    read: Callable[[], float]
    span: float = math.inf


@dataclass
class Energy:
    """Adds up what some counters say, from its making on; of no counters, or lost ones, nothing is known."""

    counters: Sequence[Counter] = ()
    _joules: float | None = field(default=None, init=False)
    _last: list[float] = field(default_factory=list, init=False)
    _looked: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        if self.counters:
            self._joules = 0.0
            self._look()

    @property
    def joules(self) -> float | None:
        """All energy so far, or None where not all of it is known."""
        self._look()
        return self._joules

    def look(self) -> None:
        """Read the counters if that was long ago; called once a step."""
        if time.monotonic() - self._looked > LOOK_EVERY_S:
            self._look()

    def restart(self, before: float | None) -> None:
        """Begin anew, after a part of the run that took ``before``; the whole stays unknown where that part is."""
        self._look()
        self._joules = None if self._joules is None else before

    def _look(self) -> None:
        self._looked = time.monotonic()
        if self._joules is None:
            return
        try:
            now = [counter.read() for counter in self.counters]
        except (OSError, ValueError):
            self._joules = None
            return
        for counter, before, after in zip(self.counters, self._last, now, strict=False):
            self._joules += after - before if after >= before else after - before + counter.span
        self._last = now
        if math.isinf(self._joules):  # a counter without an end went back
            self._joules = None


def energy_on(device: torch.device, powercap: Path = POWERCAP) -> Energy:
    """Return what measures a training on ``device``; it knows nothing where a GPU's share would be missing."""
    if device.type != "cuda":
        return Energy(packages(powercap))
    gpu = gpu_counter(device)
    return Energy() if gpu is None else Energy([*packages(powercap), gpu])


def packages(powercap: Path) -> list[Counter]:
    """Return the counters of all CPU packages, or none where one of them is not to be read, as often without root.

    Zones within a package, and those of the whole platform, are parts or sums of what is counted already. One package
    may be there twice, by two interfaces.
    """
    zones: dict[str, Path] = {}
    try:
        for zone in sorted(powercap.glob("*:*")):
            name = (zone / "name").read_text().strip()
            if zone.name.count(":") == 1 and name.startswith("package"):
                zones.setdefault(name, zone)
        counters = [_package(name, zone) for name, zone in zones.items()]
        for counter in counters:
            counter.read()
    except (OSError, ValueError):
        return []
    return counters


def _package(name: str, zone: Path) -> Counter:
    path = zone / "energy_uj"
    return Counter(name, lambda: int(path.read_text()) / 1e6, int((zone / "max_energy_range_uj").read_text()) / 1e6)


def gpu_counter(device: torch.device) -> Counter | None:
    """Return the counter of an NVIDIA GPU; None without one, without nvidia-ml-py, or of a part of a GPU (MIG)."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        properties = torch.cuda.get_device_properties(device)
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None

    def read() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from None

    return Counter(properties.name, read)
