"""Comparisons of runs for the terminal, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from raydistill.errors import ConfigError, did_you_mean
from raydistill.reporting.compare import DOWN, UP, Table
from raydistill.reporting.runs import RunRecord
from raydistill.reporting.tables import cell, comparison, display, to_markdown

_LATEX = {
    "±": r"$\pm$",
    UP: r"$\uparrow$",
    DOWN: r"$\downarrow$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{NOT EQUAL TO}": r"$\neq$",
    "\N{EN DASH}": "--",
}
"""What our tables hold beside ASCII."""

_PIPED = 1000


@dataclass(frozen=True)
class Sheet:
    """A comparison as people read it and as programs do.

    Attributes:
        title: what it shows.
        shown: text for people, the first column naming the row.
        tidy: plain values, one line for each of what is compared.
        notes: sentences below it.
        facts: what JSON holds beside ``table`` and ``notes``.
    """

    title: str
    shown: pd.DataFrame
    tidy: pd.DataFrame
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def filled(table: Table) -> Sheet:
    """Return a filled layout, with what was published in square brackets behind our values."""
    texts = {(row["row"], row["column"]): _text(row) for row in table.cells.to_dict("records")}
    rows = [row.label for row in table.layout.rows]
    shown = {column.label: [texts.get((row, column.label), cell(None)) for row in rows] for column in table.columns}
    title = f"{table.layout.reference}: {table.layout.title}"
    return Sheet(title, pd.DataFrame({"": rows, **shown}), table.cells, table.notes, {"layout": table.layout.name})


def general(records: Sequence[RunRecord]) -> Sheet:
    """Return the comparison of runs with the student alone, which needs no layout."""
    compared = comparison(records)
    shown = display(compared).map(cell)
    return Sheet("Students, with and without a teacher", shown, compared, facts={"layout": None})


def chosen_format(name: str | None, output: Path | None = None) -> str:
    """Return the name of a format: the given one, that of the file's ending, or the terminal's.

    Raises:
        ConfigError: for an unknown format, a file whose ending names none, and a folder.
    """
    if output is not None and output.is_dir():
        raise ConfigError(f"{output}: is a folder; name the file to write")
    if name is None:
        if output is None:
            return TERMINAL
        if output.suffix not in ENDINGS:
            raise ConfigError(f"{output}: its ending tells no format; add --format ({', '.join(FORMATS)})")
        return ENDINGS[output.suffix]
    if name not in FORMATS:
        raise ConfigError(f"--format {name}: unknown{did_you_mean(name, FORMATS)} (known: {', '.join(FORMATS)})")
    return name


def rendered(sheet: Sheet, name: str) -> str:
    """Return a sheet in the format ``name``."""
    return FORMATS[name](sheet)


def terminal(sheet: Sheet) -> str:
    """Return a table that fits the terminal, or as wide as it is elsewhere; a published value has its own line."""
    table = RichTable(title=Text(sheet.title))
    for number, name in enumerate(sheet.shown.columns):
        table.add_column(Text(str(name)), justify="right" if number else "left")
    for row in sheet.shown.itertuples(index=False, name=None):
        table.add_row(*(Text(str(value).replace(" [", "\n[")) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED)
    with console.capture() as captured:
        console.print(table, *(Text(note) for note in sheet.notes), sep="\n")
    return captured.get()


def markdown(sheet: Sheet) -> str:
    """Return a table of GitHub's Markdown with its title and notes."""
    notes = "".join(f"\n{note}\n" for note in sheet.notes)
    return f"**{sheet.title}**\n\n{to_markdown(sheet.shown)}{notes}"


def latex(sheet: Sheet) -> str:
    """Return a ``table`` that needs the package booktabs; notes are comments above it."""
    escaped = sheet.shown.rename(columns=_escaped).map(lambda text: _escaped(str(text)))
    body = escaped.to_latex(
        index=False, escape=False, caption=_escaped(sheet.title), column_format="l" + "r" * (len(escaped.columns) - 1)
    )
    return "".join(f"% {note}\n" for note in sheet.notes) + body


def comma_separated(sheet: Sheet) -> str:
    """Return plain values as CSV: of a layout one line for each cell."""
    return sheet.tidy.to_csv(index=False)


def plain(sheet: Sheet) -> dict[str, Any]:
    """Return values that JSON has: ``table``, a list with an object for each line, ``notes`` and ``layout``."""
    records = [
        {str(key): None if isinstance(value, float) and math.isnan(value) else value for key, value in record.items()}
        for record in sheet.tidy.to_dict("records")
    ]
    return {**sheet.facts, "table": records, "notes": list(sheet.notes)}


def json_text(sheet: Sheet) -> str:
    """Return ``plain`` as JSON."""
    return json.dumps(plain(sheet), indent=2, ensure_ascii=False) + "\n"


TERMINAL = "terminal"

FORMATS: Mapping[str, Callable[[Sheet], str]] = {
    TERMINAL: terminal,
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
    "json": json_text,
}
"""Name of each format -> how a sheet looks in it."""

ENDINGS = {".txt": TERMINAL, ".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}
"""Ending of a file -> what it holds."""


def _text(values: Mapping[Any, Any]) -> str:
    parts = []
    if values["n"]:
        spread = f" ± {values['std']:.2f}" if pd.notna(values["std"]) else ""
        arrow = f" {values['arrow']}" if values["arrow"] else ""
        parts.append(f"{values['mean']:.2f}{spread} ({values['n']}){arrow}")
    if pd.notna(values["published"]):
        spread = f" ± {values['published_std']:.2f}" if pd.notna(values["published_std"]) else ""
        parts.append(f"[{values['published']:.2f}{spread}]")
    return " ".join(parts)


def _escaped(text: str) -> str:
    backslash = "\\"
    special = {backslash: r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {sign: backslash + sign for sign in "&%$#_{}"}
    return "".join(special.get(sign, _LATEX.get(sign, sign)) for sign in text)
