"""Who may import whom, and who may know a method's name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydistill.methods.registry import METHODS

PACKAGE = Path(__file__).parent.parent / "raydistill"
FILES = sorted(PACKAGE.rglob("*.py"))

LEAVES = {"errors", "lazy", "counter_rng", "files", "progress", "safe_yaml", "section", "threads"}
ROOMS = {
    "models": LEAVES | {"models"},
    "methods": LEAVES | {"methods"},
    "data": LEAVES | {"data"},
}
SECTIONS = {f"{name}_config" for name in ("train", "network", "cache", "scale", "track", "tune", "evaluate")}
BELOW_TEACHERS = LEAVES | {"models", "methods", "data", "config", "config_errors", "measures", "cluster"}
BELOW_TEACHERS |= SECTIONS | {"protocol_names", "reachable", "required"}
ROOMS |= {
    "starting": BELOW_TEACHERS | {"starting"},
    "teachers": BELOW_TEACHERS | {"teachers"},
    "evaluation": BELOW_TEACHERS | {"evaluation"},
    "training": BELOW_TEACHERS | {"teachers", "evaluation", "training"},
    "tuning": BELOW_TEACHERS | {"teachers", "evaluation", "training", "tuning"},
    "reporting": BELOW_TEACHERS | {"teachers", "evaluation", "training", "reporting"},
    "exporting": BELOW_TEACHERS | {"teachers", "evaluation", "training", "exporting"},
    "api": BELOW_TEACHERS
    | {"teachers", "evaluation", "training", "tuning", "reporting", "display", "sweep_display", "api"},
}
RAY_MAY_BE_IMPORTED_BY = {
    "api/handed.py",
    "api/pickling.py",
    "cluster.py",
    "doctor.py",
    "patience.py",
    "ray_client.py",
    "raylet.py",
    "reachable.py",
    "submitting.py",
    "teachers/cache/actors.py",
    "teachers/cache/build.py",
    "teachers/cache/counting.py",
    "teachers/cache/planning.py",
    "training/backend.py",
    "training/early.py",
    "training/streaming.py",
    "training/trainer.py",
    "training/worker.py",
    "tuning/judging.py",
    "tuning/population.py",
    "tuning/sweep.py",
    "tuning/trial.py",
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    if room not in ROOMS:
        return
    used = {module.split(".")[1] for module in imports(path) if module.startswith("raydistill.")}
    assert used <= ROOMS[room]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_commands_are_imported_by_the_command_line_alone(path: Path) -> None:
    if name_of(path) == "cli.py" or name_of(path).startswith("commands/"):
        return
    assert not [module for module in imports(path) if module.startswith(("raydistill.cli", "raydistill.commands"))]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_ray_is_imported_in_few_places(path: Path) -> None:
    uses = any(module.split(".")[0] == "ray" for module in imports(path))
    assert not uses or name_of(path) in RAY_MAY_BE_IMPORTED_BY


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_other_file_compares_with_a_methods_name(path: Path) -> None:
    if name_of(path).startswith("methods/"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            constants = {part.value for part in [node.left, *node.comparators] if isinstance(part, ast.Constant)}
            assert not constants & set(METHODS), f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_public_definition_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name}, line {node.lineno}"
