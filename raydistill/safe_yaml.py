"""YAML from anybody: plain values alone, and no small text that stands for a huge or endless one.

The loaders are omegaconf's and PyYAML's safe ones, which know no tag that makes anything but plain values. What is
checked here before they begin: size, depth, and what aliases (``*name``) and references (``${name}``) would grow to.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raydistill.errors import first_line

MOST_BYTES = 1 << 18
MOST_DEPTH = 50
MOST_PARTS = 100_000
"""Values that a text may stand for, long ones counted by their length; the largest experiment has some hundreds."""
MOST_LETTERS = 1 << 26
"""Letters that references may grow a text to."""
_LETTERS_A_PART = 64
_OF_LISTS = "one is a list [...], the other a mapping {key: value}; give the kind that the experiment has"
_RAISED_BY_VALUES = (AttributeError, KeyError, OverflowError, RecursionError, TypeError)
"""What PyYAML's constructors raise beside its own errors and ``ValueError``, of which those of unicode are a kind."""


def read_text(path: Path) -> str:
    """Return a YAML file's text once it was found harmless.

    Raises:
        ValueError: saying what is wrong with it; of what is no YAML the same in one line.
        OSError: where it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"longer than the {MOST_BYTES >> 10} KiB that an experiment may have")
    text = data.decode("utf-8")
    check(text)
    return text


def check(text: str) -> None:
    """Raise ``ValueError`` for a text that is no YAML, too deep, or stands for more than it should."""
    import yaml

    references = text.count("${")
    # n references, sensibly nested, make a text at most 3^(n/3) times as long.
    if references and len(text) * 3 ** min(references / 3, 100) > MOST_LETTERS:
        raise ValueError(f"{references} references ${{...}}, which may grow beyond all bounds; write the values out")
    try:
        _weigh(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise ValueError(_invalid(error)) from None


def _invalid(error: Exception) -> str:
    reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
    return f"not valid YAML: {reason}"


def plain_values(text: str) -> Any:
    """Return what a text holds, as PyYAML reads it. Raises ``ValueError``."""
    import yaml

    check(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(_invalid(error)) from None
    except _RAISED_BY_VALUES as error:
        raise ValueError(f"holds a value that is none ({type(error).__name__}: {error})") from None


def merged_values(text: str, overrides: list[str]) -> dict[str, Any]:
    """Return what omegaconf makes of a text that was checked and of dotted overrides, all references followed.

    Raises:
        ValueError: with the reason in one line.
    """
    from omegaconf import OmegaConf

    with _in_one_line():
        given = OmegaConf.load(io.StringIO(text))
    if not OmegaConf.is_dict(given):
        raise ValueError("an experiment is a mapping of sections (name, data, student, methods, ...)")
    return overridden(given, overrides)


def overridden(values: Any, overrides: list[str]) -> dict[str, Any]:
    """Return a mapping with dotted overrides merged in and all references followed.

    Raises:
        ValueError: with the reason in one line.
    """
    from omegaconf import OmegaConf

    for override in overrides:
        try:
            with _in_one_line():
                values = OmegaConf.merge(values, OmegaConf.from_dotlist([override]))
        except ValueError as error:
            raise ValueError(f"{override}: {_OF_LISTS if 'incompatible container' in str(error) else error}") from None
    with _in_one_line():
        merged = OmegaConf.to_container(OmegaConf.merge(values), resolve=True)
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Turn whatever omegaconf and PyYAML raise into a ``ValueError`` of one line."""
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        yield
    except YAMLError as error:
        raise ValueError(_invalid(error)) from None
    except (OmegaConfBaseException, ValueError, *_RAISED_BY_VALUES) as error:
        raise ValueError(first_line(error)) from None


def _weigh(events: Iterator[Any]) -> None:
    """Count what a text stands for, an alias as all that it repeats. Raises ``ValueError`` where that is too much."""
    from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    anchored: dict[str | None, int] = {}
    under_way: list[tuple[str | None, int]] = []
    total = 0
    for event in events:
        if isinstance(event, CollectionStartEvent):
            under_way.append((event.anchor, total))
            total += 1
        elif isinstance(event, CollectionEndEvent):
            anchor, before = under_way.pop()
            anchored[anchor] = total - before
        elif isinstance(event, ScalarEvent):
            anchored[event.anchor] = 1 + len(event.value) // _LETTERS_A_PART
            total += anchored[event.anchor]
        elif isinstance(event, AliasEvent):
            if any(event.anchor == anchor for anchor, _ in under_way):
                raise ValueError(f"*{event.anchor} stands within what it stands for")
            total += anchored.get(event.anchor, 0)
        _check_measure(total, len(under_way))


def _check_measure(parts: int, depth: int) -> None:
    if parts > MOST_PARTS:
        raise ValueError(f"stands for more than {MOST_PARTS} values; write fewer, or repeat (*) fewer")
    if depth > MOST_DEPTH:
        raise ValueError(f"nested more than {MOST_DEPTH} deep")
