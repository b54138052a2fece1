"""What a run's student is worth as the beginning of another task, in files of their own beside the report card.

``raydistill eval`` writes the card anew; what took hours to train stays where it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydistill.errors import DataError
from raydistill.files import write_atomically

STUDENT, FRESH = "student", "fresh"
"""Whose values they are: of the run's student, or of the same network trained with as much from random weights."""


def write_downstream(
    path: Path, role: str, data: str, values: Mapping[str, float], settings: Mapping[str, Any]
) -> None:
    """Add what was measured to a file such as ``detection.json``; other roles and data in it stay.

    The file maps a role to names and numbers, as ``card.json`` does, and ``settings`` to what they were made with. The
    student's are the card's, too, where runs are compared.

    Args:
        path: the file, in the run's folder.
        role: ``STUDENT`` or ``FRESH``.
        data: label that the names begin with, and a slash.
        values: name -> number.
        settings: a section of what JSON has for each task.

    Raises:
        DataError: where the file is there and cannot be read.
        RunError: where it cannot be written.
    """
    found = _read(path)
    found.setdefault(role, {}).update({f"{data}/{name}": value for name, value in values.items()})
    found.setdefault("settings", {}).setdefault(f"{data}, {role}", {}).update(settings)
    write_atomically(path, json.dumps(found, indent=2) + "\n")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}; move it away") from None
