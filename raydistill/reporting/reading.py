"""Reads the files of a run folder; every mistake that one can hold becomes one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from raydistill.errors import DataError
from raydistill.safe_yaml import plain_values

Metrics = Mapping[str, Any]
"""One epoch of ``metrics.jsonl``."""

_T = TypeVar("_T")


def read(path: Path, parse: Callable[[str], _T], otherwise: _T | None = None) -> _T:
    """Return what ``parse`` makes of a file; ``otherwise`` where there is none.

    Raises:
        DataError: one line that names the folder, where the file is missing or cannot be read.
    """
    if otherwise is not None and not path.is_file():
        return otherwise
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path.parent}: the run is damaged: {path.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path.parent}: the run is damaged: {path.name} cannot be read: {reason}") from None


def json_object(text: str) -> dict[str, Any]:
    """Return the mapping that a JSON file holds."""
    return mapping(json.loads(text))


def yaml_object(text: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds."""
    return mapping(plain_values(text))


def json_lines(text: str) -> tuple[Metrics, ...]:
    """Return the mappings of a file with one JSON object in a line."""
    return tuple(json_object(line) for line in text.splitlines() if line.strip())


def mapping(value: object) -> dict[str, Any]:
    """Return the value, which must be a mapping.

    Raises:
        ValueError: where it is something else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a mapping was expected, not {type(value).__name__}")
    return value


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a configuration; an empty one where there is none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}
