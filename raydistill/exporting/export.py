"""From a finished run to a folder that can be given away: the artefact, its record and its model card."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydistill.errors import ConfigError, RaydistillError, RunError
from raydistill.exporting.formats import Format, chosen_format
from raydistill.exporting.model_card import render
from raydistill.exporting.parity import compare
from raydistill.exporting.quantise import FILE as QUANTISED_FILE
from raydistill.exporting.quantise import losses, quantise
from raydistill.exporting.quiet import quiet
from raydistill.exporting.subject import Subject, read_run
from raydistill.files import make_folders, move_folder, temporary_name
from raydistill.progress import Progress, unwatched

CARD = "README.md"
RECORD = "export.json"


@dataclass(frozen=True)
class Exported:
    """What ``export.json`` tells of an export; it marks the folder as one that may be replaced."""

    run: str
    format: str
    file: str
    bytes: int
    max_abs_diff: float
    differences: dict[str, float]
    compared_images: int
    compared_on: str
    quantised: dict[str, Any] | None = None


def export_run(
    run: str | Path,
    format: str,
    output: str | Path | None = None,
    *,
    quantised: str | None = None,
    progress: Progress = unwatched,
) -> dict[str, Any]:
    """Write a run's student as a file that others can run, once it was loaded back and found equal.

    Args:
        run: folder of a finished run of a student or a teacher.
        format: ``safetensors``, ``onnx`` or ``torch``.
        output: folder to write, ``RUN/export/<format>`` by default; an earlier export of the same run is replaced.
        quantised: ``int8`` for a second, quantised file.
        progress: is told of each step before it begins.

    Returns:
        ``path`` of the artefact, ``folder``, ``card``, ``format``, ``bytes``, ``max_abs_diff``, and with ``quantised``
        what that costs.

    Raises:
        InputError: where the run, the format or the folder is wrong; nothing is written.
        RunError: where the student cannot be written in that format, or the file computes something else.
    """
    run = Path(run)
    chosen = chosen_format(format, quantised)
    progress(0.0, "reading the run and its images")
    subject = read_run(run)
    name = subject.experiment.name
    folder = Path(output) if output is not None else run / "export" / format
    _refuse_other_content(folder, name, format)
    with _made(folder) as building:
        exported = _write(subject, format, chosen, building, quantised is not None, progress=progress)
        progress(0.95, "writing the model card")
        (building / RECORD).write_text(json.dumps(asdict(exported), indent=2) + "\n", encoding="utf-8")
        (building / CARD).write_text(
            render(subject, asdict(exported), chosen.lines(subject.description)), encoding="utf-8"
        )
    answer = {
        "path": str(folder / exported.file),
        "folder": str(folder),
        "card": str(folder / CARD),
        "format": format,
        "bytes": exported.bytes,
        "max_abs_diff": exported.max_abs_diff,
        "compared_images": exported.compared_images,
    }
    if exported.quantised is None:
        return answer
    return {**answer, "quantised": {**exported.quantised, "path": str(folder / QUANTISED_FILE)}}


def _write(
    subject: Subject, name: str, chosen: Format, folder: Path, quantised: bool, *, progress: Progress
) -> Exported:
    """Write artefacts into a folder and compare them, as they lie there, with the student."""
    path = folder / chosen.file
    progress(0.2, f"writing {chosen.file}")
    with _told(f"{subject.run}: the student cannot be exported as {name}"), quiet():
        chosen.write(subject.deployed, path)
    progress(0.4, f"comparing {chosen.file} with the student")
    with _told(f"{subject.run}: the student cannot be exported as {name}"), quiet():
        predict = chosen.load(path)
        parity = compare(subject.student, predict, subject.images, subject.description.outputs)
    parity.check(f"{subject.run}: exported as {name}")
    cost: dict[str, Any] | None = None
    if quantised:
        small = folder / QUANTISED_FILE
        progress(0.6, f"writing and measuring {QUANTISED_FILE}")
        with _told(f"{subject.run}: the student cannot be quantised"), quiet():
            quantise(path, small)
            cost = losses(subject, predict, chosen.load(small))
        sizes = {"bytes": small.stat().st_size, "bytes_float": path.stat().st_size}
        cost = {"file": QUANTISED_FILE, **sizes, **cost, "measured_on": subject.images_are}
    return Exported(
        run=subject.experiment.name,
        format=name,
        file=chosen.file,
        bytes=path.stat().st_size,
        max_abs_diff=parity.max_abs_diff,
        differences=dict(parity.differences),
        compared_images=parity.images,
        compared_on=subject.images_are,
        quantised=cost,
    )


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn whatever an exporter raises into one line."""
    try:
        yield
    except RaydistillError:
        raise
    except Exception as error:  # exporters raise errors of their own, hundreds of lines long
        reason = next(iter(str(error).strip().splitlines()), "")
        raise RunError(f"{what}: {type(error).__name__}: {reason}; nothing was written") from error


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """Give a folder to build in; it gets its name at the end, and an error leaves nothing behind."""
    absent = [parent for parent in folder.parents if not parent.exists()]
    building, old = (folder.with_name(temporary_name(folder.name)) for _ in range(2))
    try:
        make_folders(building)
        yield building
        if folder.exists():
            move_folder(folder, old)
        move_folder(building, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            move_folder(old, folder)
        shutil.rmtree(building, ignore_errors=True)
        for parent in absent:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _refuse_other_content(folder: Path, run: str, format: str) -> None:
    """Raise ``ConfigError`` where the folder holds anything but an earlier export of the same run and format."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"--output {folder}: is a file; name a folder")
    if not any(folder.iterdir()):
        return
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        holds = record["run"], record["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"--output {folder}: holds other files than an export; name a folder of its own") from None
    if holds != (run, format):
        raise ConfigError(
            f"--output {folder}: holds the export of {holds[0]} as {holds[1]}, not of {run} as {format}; name another"
        )
