"""The formats that a student can be exported to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from raydistill.errors import ConfigError, did_you_mean
from raydistill.exporting import onnx_file, safetensors_file, torch_program
from raydistill.exporting.deployed import Deployed, Description
from raydistill.exporting.parity import Predictor


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        file: what the artefact is called.
        write: makes it.
        load: reads it back, to be compared.
        lines: Python that loads and runs it in its folder.
        packages: what must be installed beyond raydistill's own needs.
        quantises: whether there is an int8 version.
    """

    file: str
    write: Callable[[Deployed, Path], None]
    load: Callable[[Path], Predictor]
    lines: Callable[[Description], str]
    packages: tuple[str, ...] = ()
    quantises: bool = False


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "safetensors": Format(
            safetensors_file.FILE, safetensors_file.write, safetensors_file.load, safetensors_file.lines
        ),
        "onnx": Format(
            onnx_file.FILE, onnx_file.write, onnx_file.load, onnx_file.lines, onnx_file.PACKAGES, quantises=True
        ),
        "torch": Format(torch_program.FILE, torch_program.write, torch_program.load, torch_program.lines),
    }
)
PRECISIONS = ("int8",)


def chosen_format(name: str, quantise: str | None) -> Format:
    """Return a format whose packages are installed and that can be quantised if asked.

    Raises:
        ConfigError: where it is unknown, cannot be quantised or lacks a package.
    """
    if name not in FORMATS:
        raise ConfigError(f"--format {name}: unknown{did_you_mean(name, FORMATS)} (known: {', '.join(FORMATS)})")
    chosen = FORMATS[name]
    if quantise is not None and quantise not in PRECISIONS:
        hint = did_you_mean(quantise, PRECISIONS)
        raise ConfigError(f"--quantise {quantise}: unknown{hint} (known: {', '.join(PRECISIONS)})")
    if quantise is not None and not chosen.quantises:
        able = ", ".join(other for other, found in FORMATS.items() if found.quantises)
        raise ConfigError(f"--quantise {quantise}: not with --format {name}, whose files hold floats; with {able}")
    missing = [package for package in chosen.packages if find_spec(package) is None]
    if missing:
        raise ConfigError(f"--format {name}: {', '.join(missing)} is not installed; pip install 'raydistill[export]'")
    return chosen
