"""What a user can do wrong or meet, and the one line that says so.

Every error that the command line turns into an exit code is one of these. ``InputError`` and its children mean that
something given is wrong (exit code 2, nothing was written); ``RunError`` means that a run failed (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

GOES_ON = "the same command goes on (train and tune: with --resume)"
"""What to do where Ray was lost."""


class RaydistillError(Exception):
    """Base of all errors that are part of the interface; ``exit_code`` is what the process ends with."""

    exit_code = 1


class InputError(RaydistillError):
    """Something the user gave is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """The experiment file or an override is wrong; the message holds one line for each mistake."""


class DataError(InputError):
    """A data set is missing, damaged or not what it should be."""


class WeightsError(InputError):
    """A checkpoint is missing, unreadable or does not fit the network."""


class CacheError(InputError):
    """A teacher cache is missing, damaged or belongs to something else."""


class StorageError(InputError):
    """Where a cache lies cannot be reached, does not exist or refuses."""


class RunError(RaydistillError):
    """A run failed after it had started."""


class DivergedError(RunError):
    """A loss is not finite any more; all workers of the run raise it together.

    Attributes:
        found: what is known of it, in values that JSON has.
    """

    def __init__(self, message: str, found: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Keep both."""
        super().__init__(message)
        self.found = found


def named_error(kind: str, message: str) -> RaydistillError:
    """Rebuild an error that another process reported by its class's name; an unknown name becomes a ``RunError``."""
    kinds: dict[str, type[RaydistillError]] = {
        error.__name__: error for error in (*InputError.__subclasses__(), InputError, RunError)
    }
    return kinds.get(kind, RunError)(message)


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest allowed name, or an empty string where none is near."""
    near = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def first_line(error: object) -> str:
    """Return the first line of what an error says, or its class's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def last_line(error: object) -> str:
    """Return the last line of what an error says, where Ray says what went wrong, or its class's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
