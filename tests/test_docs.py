"""README, docs and the experiments' pages: every command can be typed, every name is there, every link leads somewhere.

Commands are parsed by what runs them, experiments are loaded with the overrides shown; the tutorials are run as they
stand.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import os
import re
import runpy
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import dropwhile
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import typer

from raydistill.cli import app
from raydistill.config import load_experiment
from raydistill.errors import ConfigError
from raydistill.methods.registry import METHODS
from raydistill.reporting.layouts import load_layout
from raydistill.submitting import parse_job
from tests.pages import ROOT, Block, Line, anchors, blocks, commands_of, follow, links, pages, saved_as

README = ROOT / "README.md"
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
EXPERIMENTS = ROOT / "experiments"
MADE_BY_COMMANDS = ("runs/",)
"""Folders of files that an earlier command leaves."""
PLACEHOLDERS = {"CONFIG", "FILE"}
DASH = "\N{EN DASH}"


class Parsed(BaseException):
    """Ends a script once it has understood its arguments."""


def invoke(words: list[str]) -> str:
    """Let the command line read its words without running anything; return the command's name."""
    command: Any = typer.main.get_command(app)
    name = "raydistill"
    while hasattr(command, "commands"):
        context = command.make_context(name, list(words))
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(name, list(words))
    return name


def experiment_in(words: list[str]) -> tuple[str, list[str]] | None:
    """The experiment's file among the words and the overrides behind it."""
    files = [number for number, word in enumerate(words) if word.endswith(".yaml") and "=" not in word]
    if not files:
        return None
    return words[files[0]], [word for word in words[files[0] + 1 :] if "=" in word and not word.startswith("-")]


def check_raydistill(line: Line, words: list[str]) -> None:
    name = invoke(words)
    found = experiment_in(words)
    if found is None or found[0] in PLACEHOLDERS or found[0].startswith(MADE_BY_COMMANDS):
        return
    if line.page in TUTORIALS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, found[0])
            path.write_text({saved_as(block): block.text for block in blocks(line.page)}[found[0]])
            load_experiment(path, found[1])
        return
    if line.output and line.output[0].startswith("raydistill: "):  # the page shows a mistake and what is said of it
        with pytest.raises(ConfigError) as told:
            load_experiment(*found)
        shown = "\n".join(line.output).removeprefix("raydistill: ")
        assert [text.partition(" (")[0] for text in shown.splitlines()] == [
            text.partition(" (")[0] for text in str(told.value).splitlines()
        ]
    elif name == "submit" and not line.is_abridged:
        parse_job([word for word in words if word != "submit"])
    else:
        load_experiment(*found)


@contextmanager
def as_script(path: Path, words: list[str]) -> Iterator[pytest.MonkeyPatch]:
    """Run things as if a script had been started, and forget its neighbours' modules and settings afterwards."""
    before, environment = dict(sys.modules), dict(os.environ)
    _forget_scripts()  # those of other folders have modules of the same names
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *words])
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        try:
            yield patch
        finally:
            _forget_scripts()
            sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})
            os.environ.clear()
            os.environ.update(environment)


def _forget_scripts() -> None:
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", "") or "").startswith(str(EXPERIMENTS)):
            del sys.modules[name]


def understand(path: Path, words: list[str]) -> None:
    """Let a script's own parser read its arguments; nothing behind that is run."""
    parse = argparse.ArgumentParser.parse_args

    def stop(*arguments: Any, **named: Any) -> Any:
        parse(*arguments, **named)
        raise Parsed

    with as_script(path, words) as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        runpy.run_path(str(path), run_name="__main__")


def check_python(line: Line, words: list[str]) -> None:
    first = words[0]
    if first == "-c":
        compile(words[1], "docs", "exec")
    elif first == "-m":
        assert words[1] == "build" or importlib.util.find_spec(words[1]) is not None
    elif first.startswith("docs/"):
        assert (ROOT / first).is_file() and words[1:] == []
    else:
        assert (ROOT / first).is_file()
        if not line.is_abridged:
            understand(ROOT / first, words[1:])


def check_tests(line: Line, words: list[str]) -> None:
    for word in words:
        assert not word.endswith(".py") or (ROOT / word).is_file()


def check_install(line: Line, words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert name in extras


def check_make(line: Line, words: list[str]) -> None:
    assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def check_slurm(line: Line, words: list[str]) -> None:
    assert (ROOT / words[0]).is_file()
    check_raydistill(line, words[1:])


def check_machines(line: Line, words: list[str]) -> None:
    check_raydistill(line, words[words.index("--") + 1 :])


def check_other(line: Line, words: list[str]) -> None:
    assert all((ROOT / word).exists() for word in words if word.startswith("experiments/"))


CHECKS: Mapping[str, Callable[[Line, list[str]], None]] = {
    "raydistill": check_raydistill,
    ".venv/bin/raydistill": check_raydistill,
    "python": check_python,
    "pytest": check_tests,
    "pip": check_install,
    "make": check_make,
    "sbatch": check_slurm,
    "experiments/cluster/machines.sh": check_machines,
    **dict.fromkeys(("aws", "docker", "export", "kubectl", "ray"), check_other),
}


def check_line(line: Line) -> None:
    """Check a line by the tool that it begins with, behind values that are set for it."""
    words = line.words
    words = [re.sub(r"^[A-Z_]+=\$\(", "", words[0]), *words[1:]]  # NAME=$(command
    words = list(dropwhile(re.compile(r"[A-Z_]+=").match, words))
    if words:
        assert words[0] in CHECKS, f"nobody checks '{words[0]}'"
        CHECKS[words[0]](line, words[1:])


@pytest.mark.parametrize("page", [page for page in pages() if any(blocks(page))], ids=lambda page: page.stem)
def test_every_command_is_understood_by_what_runs_it(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    failed = {}
    for line in commands_of(page):
        try:
            check_line(line)
        except (Exception, SystemExit) as error:  # all of them are told at once
            failed[str(line)] = f"{error!r} {capsys.readouterr().err[-300:]}"
    assert not failed


def test_commands_of_every_kind_are_found() -> None:
    tools = Counter(line.words[0] for page in pages() for line in commands_of(page))
    assert tools["raydistill"] > 30 and tools["python"] > 20 and tools["make"] > 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raydistill trian x.yaml", "no command .trian."),
        ("raydistill train experiments/fashion-mnist/kd.yaml --resum", "No such option"),
        ("raydistill train experiments/fashion-mnist/kd.yaml train.epochz=3", "unknown key"),
        ("raydistill train experiments/fashion-mnist/absent.yaml", "no such experiment file"),
        ("python experiments/benchmarks/costs.py --gpu-prize 3", "2"),
        ("make tests", "assert"),
    ],
)
def test_a_wrong_command_does_not_pass(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(BaseException, match=said):
        check_line(Line(README, 1, text))
    capsys.readouterr()


FILES = sorted(
    path for path in EXPERIMENTS.rglob("*") if path.is_file() and path.suffix not in (".md", ".pyc", ".so", ".o")
)
SCRIPTS = [path for path in FILES if path.suffix == ".py" and "__main__" in path.read_text("utf-8")]
OWN_COMMAND = re.compile(r"^(?:#   |    )((?:raydistill|python) .*?)(?:  +#.*)?$", re.MULTILINE)


def own_commands(path: Path) -> list[Line]:
    """The commands that a file tells about itself, in its docstring or its head."""
    text = path.read_text("utf-8")
    told = (ast.get_docstring(ast.parse(text), clean=False) or "") if path.suffix == ".py" else text
    return [Line(path, 0, command) for command in OWN_COMMAND.findall(told.replace("\\\n", " "))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_script_reads_the_arguments_that_it_tells(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    told = [line for line in own_commands(path) if path.relative_to(ROOT).as_posix() in line.text]
    assert told or path.parent.name == "cluster"
    for line in told:
        check_line(line)
    capsys.readouterr()


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.suffix == ".yaml" and path.parent.name not in ("cluster", "settings")],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_the_commands_in_the_head_of_an_experiment_are_understood(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    told = own_commands(path)
    assert told
    for line in told:
        check_line(line)


def test_the_index_has_every_experiment() -> None:
    index = EXPERIMENTS / "README.md"
    named = {target for target, _ in links(index)}
    assert [str(path.relative_to(ROOT)) for path in FILES if path not in named] == []


def test_the_index_tells_the_times_of_the_papers_tables() -> None:
    rows = _rows(EXPERIMENTS / "README.md", "The papers' tables")
    for path in EXPERIMENTS.glob("papers/*.yaml"):
        time = rows[f"[{path.stem}](papers/{path.name})"][1]
        head = " ".join(line.lstrip("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
        assert f"2 CPU cores, {time}, for" in head or f"both scales in {time}, for" in head


PYTHON = [block for page in pages() for block in blocks(page) if block.language == "python"]


def _names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, dotted name) of all that a piece of code takes from raydistill."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "raydistill":
            yield from ((node.module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and re.fullmatch(r"raydistill(\.\w+)+", dotted := ast.unparse(node)):
            yield "raydistill", dotted.partition(".")[2]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page.stem}-{block.line}")
def test_python_names_what_there_is(block: Block) -> None:
    for module, dotted in _names(ast.parse(block.text)):
        attrgetter(dotted)(importlib.import_module(module))


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target, anchor in links(page):
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(f"{target}#{anchor}")
    assert not broken


def test_every_page_can_be_reached() -> None:
    reached, waiting = {README}, [README]
    while waiting:
        for target, _ in links(waiting.pop()):
            if target.suffix == ".md" and target.is_file() and target not in reached:
                reached.add(target)
                waiting.append(target)
    assert {page for page in pages() if page not in reached} == set()


@pytest.fixture(scope="module")
def generate() -> dict[str, Callable[[], str]]:
    made: dict[str, Callable[[], str]] = runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"]
    return made


def test_reference_pages_are_what_code_says(generate: dict[str, Callable[[], str]]) -> None:
    folder = ROOT / "docs" / "reference"
    assert {path.name for path in folder.iterdir()} == {*generate}
    for name, page in generate.items():
        assert (folder / name).read_text("utf-8") == page(), f"{name} is out of date: python docs/generate.py"


def _rows(page: Path, heading: str) -> dict[str, list[str]]:
    """First cell -> the others, of all tables below a heading."""
    text = page.read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {name.strip("`"): cells for name, *cells in rows}


LABELS = {name: name.upper() for name in METHODS} | {"fitnet": "FitNet"}
"""Method -> its row in CRD's Table 1."""


def test_the_readme_has_every_method_with_its_file_and_numbers() -> None:
    rows = {name[2:].partition("`")[0]: cells for name, cells in _rows(README, "Methods").items()}
    made = _rows(ROOT / "docs" / "compare.md", "What came out here")
    published = {}
    for layout in ("crd-table1", "cocord-table1", "protocpc-table1"):
        table = load_layout(layout)
        (column,) = (n for n, each in enumerate(table.columns) if each.label == "WRN-40-2 → WRN-16-2")
        published |= {tuple(row.methods or ()): row.values[column] for row in table.rows}
    assert METHODS.keys() <= rows.keys()
    for name in METHODS:
        _, code, here, there = rows[name]
        assert f"(raydistill/methods/{name}.py)" in code
        assert here == made.get(LABELS[name], [DASH])[0]
        assert there == (f"{published[(name,)]:.2f}" if (name,) in published else DASH)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in TUTORIALS if page.stem != "demo"], ids=lambda page: page.stem)
def test_a_tutorial_can_be_followed(page: Path, tmp_path: Path) -> None:
    """The demo's is followed where the demo is tested."""
    follow(page, tmp_path)
    assert any((tmp_path / "runs").iterdir())
