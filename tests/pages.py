"""What the pages of the documentation hold: fenced blocks, commands, links and headings; and how one is followed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)")
SAVED = re.compile(r"Save this as `([\w.]+)`:\s*$")
OPERATORS = {"&", "&&", ";", "|", ">", "<", "2>"}


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its fence, ``before`` the text above it."""

    page: Path
    language: str
    text: str
    line: int
    before: str


@dataclass(frozen=True)
class Line:
    """A command as it is typed, comment and all, and what the page shows behind it."""

    page: Path
    number: int
    text: str
    output: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The words of the first command of the line, with all that may be left out and the first of alternatives."""
        plain = re.sub(r"(?<= )\[([^]]*)\]", r"\1", self.text)
        words = shlex.split(re.sub(r"(\w)\|\w+", r"\1", plain).replace("--seed N", "--seed 0"), comments=True)
        end = next((n for n, word in enumerate(words) if word in OPERATORS), len(words))
        return [word for word in words[:end] if word != "..."]

    @property
    def is_abridged(self) -> bool:
        """Whether the page leaves the rest to the reader."""
        return " ..." in self.text

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.number}: {self.text}"


def pages() -> list[Path]:
    """All Markdown pages that are written for readers."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")]
    return sorted(found)


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in FENCED.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, found["language"], dedent(found["text"]), line, text[: found.start()])


def commands(block: Block) -> Iterator[Line]:
    """Yield the commands of a block: of ``console`` the lines behind a prompt, of ``sh`` all of them."""
    lines = block.text.splitlines()
    number = 0
    while number < len(lines):
        first, text = number, lines[number]
        number += 1
        if block.language == "console" and not text.startswith("$ "):
            continue
        while text.endswith("\\"):
            text = text[:-1] + lines[number].strip()
            number += 1
        shown = []
        for following in lines[number:]:
            if following.startswith("$ "):
                break
            shown.append(following)
        if text.strip():
            yield Line(block.page, block.line + 1 + first, text.removeprefix("$ "), tuple(shown))


def commands_of(page: Path) -> list[Line]:
    shown = (block for block in blocks(page) if block.language in ("console", "sh"))
    return [line for block in shown for line in commands(block)]


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of the page's links to what lies in the repository; an anchor may be empty."""
    found = []
    for target in LINK.findall(FENCED.sub("", page.read_text("utf-8"))):
        path, _, anchor = target.partition("#")
        found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


def anchors(page: Path) -> set[str]:
    """What a forge makes of the page's headings."""
    text = FENCED.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def saved_as(block: Block) -> str | None:
    """Return the name under which a reader is told to save a block."""
    found = SAVED.search(block.before)
    return found[1] if found else None


def follow(page: Path, folder: Path, *, done: Collection[str] = ()) -> None:
    """Do in a folder what a page tells its reader to do, but for commands that are done already."""
    program = Path(sys.executable).with_name("raydistill")
    alias = [str(program)] if program.is_file() else [sys.executable, "-m", "raydistill.cli"]
    for block in blocks(page):
        if saved := saved_as(block):
            (folder / saved).write_text(block.text)
        elif block.language == "python":
            subprocess.run([sys.executable, "-c", block.text], cwd=folder, check=True)
        for line in commands(block) if block.language == "console" else ():
            if " ".join(line.words) not in done:
                ended = subprocess.run(
                    [*alias, *line.words[1:]], cwd=folder, capture_output=True, text=True, check=False
                )
                assert ended.returncode == 0, f"{line}\n{ended.stderr[-3000:]}"
