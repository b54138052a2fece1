"""What somebody would try who hands over a file: pickles with code, mutations of sound files; and who watches."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from raydistill.cli import app

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9))
"""YAML of nine lines that stands for a thousand million values."""


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.path, "code was run")


def files_below(folder: Path) -> dict[str, bytes]:
    """All files with their content, and links with their targets."""
    return {
        str(path.relative_to(folder)): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@contextmanager
def nothing_written(folder: Path) -> Iterator[None]:
    """No file below a folder is made, changed or removed; locks, which stay empty, are no files of anybody's."""

    def found() -> dict[str, bytes]:
        return {name: data for name, data in files_below(folder).items() if data or not name.endswith(".lock")}

    before = found()
    yield
    assert found() == before


def command(*arguments: str) -> Result:
    """Run the command line in this process; an error that would be a traceback is raised."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: str) -> str:
    """Return the one line with which a command refuses its input, with exit code 2."""
    result = command(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("raydistill: ")
    return line


_WORDS = (
    b"null ~ true .nan .inf -.inf -1 0 1e400 0x1 0b2 0o9 1:2:3 1_0 2020-01-01 [] {} ??? '' \" | > % @ ` = << <<: *a &a"
    b" ${name} ${data} ${ ${oc.env:HOME} ../.. /etc/passwd os:abort !!binary\xc2\xa0x !!timestamp\xc2\xa0x"
).split()
_WORDS += [
    b"!!bool x",
    b"!!int x",
    b"!!float x",
    b"!!timestamp x",
    b"!!set {a}",
    b'!!python/object/apply:os.system ["touch pwned"]',
    b"!!python/name:os.system",
    b"9" * 5000,
    b"a" * 5000,
    b"[" * 60,
    b"{a: " * 60,
    b"\x00",
    b"\xff\xfe",
    b'"\\ud800"',
    b'"\\0"',
    "\u2028".encode(),
    "\U0001f600".encode(),
    b"\t",
    b"- ",
    b"? ",
    b"\n",
]


def mutated_text(source: bytes, draw: random.Random) -> bytes:
    """Flip, delete, repeat and insert bytes; replace values of lines; lose lines."""
    data = bytearray(source)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + draw.choice((1, 1, 4, 20)))
        match draw.randrange(6):
            case 0:
                data[start : start + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[start:stop]
            case 2:
                data[start:start] = data[start:stop]
            case 3:
                data[start:stop] = draw.choice(_WORDS)
            case 4:
                lines = bytes(data).split(b"\n")
                number = draw.randrange(len(lines))
                lines[number] = lines[number].partition(b":")[0] + b": " + draw.choice(_WORDS)
                data = bytearray(b"\n".join(lines))
            case _:
                lines = bytes(data).split(b"\n")
                del lines[draw.randrange(len(lines))]
                data = bytearray(b"\n".join(lines))
    return bytes(data)


_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 2**31, 2**63, 10**30, -(10**30), math.nan, math.inf, "", "x", "../../x"),
    *("/etc/passwd", "\0", "\U0001f600", "\ud800", "9" * 5000, [], {}, [None], {"": 0}, [[[[]]]], {"a": {"b": {}}}),
)


def mutated_values(values: Any, draw: random.Random) -> Any:
    """Change one place of a tree of plain values: its type, its size, its keys."""
    if isinstance(values, list) and values and draw.random() > 0.1:
        pairs = _with_one_changed(list(enumerate(values)), draw)
        return [value for _, value in pairs]
    if isinstance(values, dict) and values and draw.random() > 0.1:
        return dict(_with_one_changed(list(values.items()), draw))
    if isinstance(values, int) and not isinstance(values, bool) and draw.random() < 0.5:
        return values * draw.choice((2, -1, 10, 10**9, 10**18)) + draw.choice((-1, 0, 1))
    return draw.choice(_VALUES)


def _with_one_changed(pairs: list[tuple[Any, Any]], draw: random.Random) -> list[tuple[Any, Any]]:
    """Lose one entry of a tree, add one, or change what stands there."""
    place = draw.randrange(len(pairs))
    before, (key, value), after = pairs[:place], pairs[place], pairs[place + 1 :]
    match draw.randrange(6):
        case 0:
            return [*before, *after]
        case 1:
            return [*pairs, (draw.choice(("extra", "", "../x")), draw.choice((value, *_VALUES)))]
        case _:
            return [*before, (key, mutated_values(value, draw)), *after]


def as_json(values: Any) -> bytes:
    """JSON as Python writes it, with NaN and halves of surrogate pairs."""
    return json.dumps(values).encode()
