"""Which rows and columns of a paper's table a run belongs to, by its methods, networks and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raydistill.config import flatten
from raydistill.evaluation.downstream import FRESH
from raydistill.reporting.layouts import Column, Layout, Row
from raydistill.reporting.runs import RunRecord

MUTUAL = ("mutual", "peer")
"""Roles of networks that learned from each other."""


@dataclass(frozen=True)
class TableRun:
    """A run, as rows and columns ask for it."""

    record: RunRecord

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Names, not labels, of the methods, sorted."""
        return tuple(sorted(self._name(label) for label in self.record.methods))

    @cached_property
    def teacher(self) -> str | None:
        """The model of the teacher, or of the peer, where there is just one."""
        if not self.is_one_pair:
            return None
        others = self.record.config.get("peers") or [section_of(self.record.config, "teacher")]
        model: str | None = others[0].get("model")
        return model

    @cached_property
    def is_one_pair(self) -> bool:
        """Whether no more than one teacher or peer and one student are in it."""
        return not self.record.config.get("ensemble") and len(self.record.config.get("peers") or ()) <= 1

    @cached_property
    def is_mutual(self) -> bool:
        """Whether its networks learned from each other."""
        return bool(self.record.config.get("peers"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration with dotted keys, its methods by their names."""
        methods = section_of(self.record.config, "methods")
        named = {self._name(label): section_of(methods, label) for label in methods}
        return flatten({**self.record.config, "methods": named})

    def has(self, wanted: Mapping[str, Any]) -> bool:
        """Whether its settings have all these values by their dotted keys."""
        return all(self.settings.get(key) == value for key, value in wanted.items())

    def _name(self, label: str) -> str:
        return str(section_of(section_of(self.record.config, "methods"), label).get("name", label))


def in_row(run: TableRun, row: Row, layout: Layout) -> bool:
    """Whether a student's run has the row's methods, those the layout implies, and the row's settings."""
    if run.record.kind != "train" or not run.is_one_pair or row.role in ("teacher", FRESH):
        return False
    if run.is_mutual != (row.role in MUTUAL):
        return False
    if row.role == "any":
        return run.has(row.settings)
    methods = () if row.role == "student" else row.methods
    return methods is not None and run.methods == tuple(sorted((*methods, *layout.implied))) and run.has(row.settings)


def in_column(run: TableRun, column: Column, *, any_teacher: bool = False) -> bool:
    """Whether a run has the column's networks and settings; with ``any_teacher`` the teacher's do not count."""
    wanted = {key: value for key, value in column.settings.items() if not (any_teacher and key.startswith("teacher."))}
    right_teacher = any_teacher or column.teacher in (None, run.teacher)
    return right_teacher and column.student in (None, run.record.student) and run.has(wanted)


def unplaced(run: TableRun, layout: Layout) -> str:
    """Say why a run fits no cell."""
    if run.record.kind not in ("train", "teacher"):
        return f"it is of the kind '{run.record.kind}', not a student or a teacher"
    if run.record.kind == "teacher":
        return f"no column has the teacher {run.record.student}, or nothing of it was measured"
    if not run.is_one_pair:
        return "it has several teachers or peers"
    if any(in_row(run, row, layout) for row in layout.rows):
        return f"no column has the pair {run.teacher} \N{RIGHTWARDS ARROW} {run.record.student}"
    return f"no row has the methods {' + '.join(run.methods)} with its settings"


def section_of(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a configuration; one that is null or not there is empty."""
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}
