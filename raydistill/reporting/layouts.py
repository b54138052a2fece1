"""The papers' tables as data: which runs make their rows and columns, and what was published.

A layout is a file in ``papers/``, such as ``crd-table1.yaml``. It holds the published numbers with their source, and
says of each row and column which runs belong there.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from raydistill.config_errors import explain
from raydistill.errors import ConfigError, did_you_mean
from raydistill.section import Count, Positive, Section


class Measure(Section):
    """What a cell shows: ``metric`` of a run's report card, ``top1`` of its result; nothing where it is not given.

    ``error`` turns an accuracy in percent into an error, ``factor`` changes the unit; ``lower`` values are better where
    it says so, and errors are.
    """

    metric: str | None = None
    factor: Positive = 1.0
    error: bool = False
    lower: bool = False

    @property
    def lower_is_better(self) -> bool:
        """Whether the smaller of two values is the better one."""
        return self.lower or self.error

    def shown(self, value: float) -> float:
        """Return a run's value in the table's unit."""
        return 100.0 - value if self.error else value * self.factor


class Source(Section):
    """Where the numbers were published."""

    paper: str
    table: Count
    where: str
    url: str | None = None


class Column(Measure):
    """Runs of one pair of networks; a network that is not given may be any.

    ``settings`` are dotted keys of the runs' configuration with the values that they must have.
    """

    label: str
    teacher: str | None = None
    student: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class Row(Measure):
    """Runs of one set of methods, by the names of ``raydistill list methods``; without methods, published only.

    Other roles than ``distilled``: the ``teacher``, the ``student`` that learns without one, and ``any`` student of a
    column, whatever taught it, and the same network with random weights, ``fresh``, where it began another task. Of the
    networks of a column that were trained together, as peers, ``mutual`` is the student and ``peer`` the other one.
    """

    label: str
    role: Literal["teacher", "student", "distilled", "any", "fresh", "mutual", "peer"] = "distilled"
    methods: tuple[str, ...] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    values: tuple[float | None, ...]
    std: tuple[float | None, ...] = ()


class Layout(Section):
    """A table of a paper.

    ``metric`` is that of all cells whose row and column name none. ``implied`` are methods that every distilled run and
    the student alone have beside those of their row; arrows compare with the row that ``baseline`` names. ``remarks``
    tell what was left out, and where the paper contradicts itself.
    """

    name: str
    title: str
    source: Source
    setting: str
    metric: str | None = None
    implied: tuple[str, ...] = ()
    baseline: str | None = None
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    remarks: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """Paper and table, in words."""
        return f"{self.source.paper}, Table {self.source.table}"

    def measure(self, row: Row, column: Column) -> Measure:
        """Return what the cells of a row and a column show: the row's word counts before the column's."""
        named = next((part for part in (row, column) if part.metric is not None), None)
        measure: Measure = named if named is not None else Measure(metric=self.metric, lower=row.lower)
        return measure

    @model_validator(mode="after")
    def _is_a_table(self) -> Layout:
        for part, labels in {
            "columns": [column.label for column in self.columns],
            "rows": [row.label for row in self.rows],
        }.items():
            if doubled := [label for label, count in Counter(labels).items() if count > 1]:
                raise ValueError(f"{part}: several are called '{doubled[0]}'")
        for row in self.rows:
            for field, values in {"values": row.values, "std": row.std}.items():
                if len(values) != len(self.columns) and (field == "values" or values):
                    raise ValueError(
                        f"row '{row.label}': {len(values)} {field}, but the table has {len(self.columns)} columns"
                    )
        if self.baseline is not None and self.baseline not in [row.label for row in self.rows]:
            raise ValueError(f"baseline = '{self.baseline}': no row is called so")
        return self


def layout_names() -> tuple[str, ...]:
    """Names of all layouts: by paper, and there by table."""
    return tuple(sorted(_files(), key=_paper_and_number))


def load_layout(name: str) -> Layout:
    """Return a layout by its name.

    Raises:
        ConfigError: where there is none of that name, or its file is wrong.
    """
    known = layout_names()
    if name not in known:
        raise ConfigError(f"--layout {name}: unknown{did_you_mean(name, known)} (known: {', '.join(known)})")
    return parse_layout(name, yaml.safe_load(_files()[name].read_text("utf-8")))


def parse_layout(name: str, values: dict[str, Any]) -> Layout:
    """Validate plain values. Raises ``ConfigError`` with one line for each mistake."""
    try:
        return Layout.model_validate({"name": name, **values})
    except ValidationError as error:
        raise ConfigError("\n".join(f"layout {name}: {line}" for line in explain(error, Layout))) from None


@cache
def _files() -> dict[str, Traversable]:
    found = (files("raydistill.reporting") / "papers").iterdir()
    return {path.name.removesuffix(".yaml"): path for path in found if path.name.endswith(".yaml")}


def _paper_and_number(name: str) -> tuple[str, int]:
    paper, _, number = name.partition("-table")
    return paper, int(number)
