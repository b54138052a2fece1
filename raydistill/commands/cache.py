"""The commands ``raydistill cache ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raydistill.commands.answers import finish
from raydistill.commands.options import Address, Config, Json, Overrides, load
from raydistill.errors import CacheError

app = typer.Typer(no_args_is_help=True, help="Build, check and look after teacher caches.", rich_markup_mode=None)


@app.command(name="build")
def build(config: Config, overrides: Overrides = None, as_json: Json = False, address: Address = None) -> None:
    """Compute what is missing of the experiment's teacher cache."""
    from dataclasses import asdict

    from raydistill import display

    experiment = load(config, overrides, address)
    from raydistill.teachers.cache.build import build_cache

    with display.rows("teacher") as progress:
        built = build_cache(experiment, progress=progress)
    finish({**asdict(built), "path": str(built.path)}, as_json)


@app.command(name="plan")
def plan(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Say size, time and break-even of the experiment's cache before anything is computed."""
    from dataclasses import asdict

    experiment = load(config, overrides)
    from raydistill.teachers.cache.planning import plan

    finish(asdict(plan(experiment)), as_json)


@app.command(name="ls")
def ls(root: Annotated[str, typer.Argument()] = "cache", as_json: Json = False) -> None:
    """List the caches below a folder or a URL."""
    from dataclasses import asdict

    from raydistill.teachers.cache.manage import list_caches

    caches = list_caches(root)
    for found in caches:
        state = "" if found.finished else "  unfinished"
        outputs = ", ".join(found.outputs)
        print(f"{found.path}  {found.images} images x {found.views} views of {outputs}  {found.bytes:,} bytes{state}")
    finish({"caches": [asdict(found) for found in caches]}, as_json, printed=True)


@app.command(name="verify")
def verify(
    path: Annotated[str, typer.Argument()],
    full: Annotated[bool, typer.Option("--full", help="Also recompute all hashes and look at every value.")] = False,
    as_json: Json = False,
) -> None:
    """Look for damage; exit code 1 where there is some."""
    from raydistill.teachers.cache.store import location
    from raydistill.teachers.cache.verify import verify

    folder = location(path)
    if not folder.is_dir():
        raise CacheError(f"{path}: no such folder")
    problems = verify(folder, full=full)
    for problem in problems:
        print(problem)
    finish({"ok": not problems, "problems": problems}, as_json, printed=bool(problems))
    if problems:
        raise typer.Exit(1)


@app.command(name="export")
def export(
    path: Annotated[str, typer.Argument()],
    out: Annotated[Path, typer.Argument(help="A .parquet (plain lists), .npz or .pt (torch) file.")],
    as_json: Json = False,
) -> None:
    """Write a cache as plain numbers for other tools."""
    from raydistill.teachers.cache.manage import export

    finish({"path": str(export(path, out))}, as_json)


@app.command(name="rank")
def rank(
    config: Config,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Caches of the experiment's images.")],
    output: Annotated[str, typer.Option(help="Which of the teachers' outputs.")] = "embedding",
    as_json: Json = False,
) -> None:
    """Rank teachers by their caches, before any student is trained; the experiment gives labels and split."""
    from dataclasses import asdict

    experiment = load(config, None)
    from raydistill.chooser import rank

    found = rank(experiment, paths, output=output)
    print(f"{'score':>7}{'knn':>8}{'linear':>8}{'clusters':>10}  held-out images: {found.held_out}")
    for one in found.candidates:
        print(f"{one.score:7.2f}{one.knn:8.2f}{one.linear:8.2f}{one.clusters:10.2f}  {one.path}")
    finish(asdict(found), as_json, printed=True)


@app.command(name="diff")
def diff(
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    output: Annotated[str, typer.Option(help="Which of the teachers' outputs.")] = "embedding",
    k: Annotated[int, typer.Option("-k", help="Neighbours of each image.")] = 10,
    as_json: Json = False,
) -> None:
    """Say how alike two teachers see the same images: common nearest neighbours and linear CKA, from 0 to 1."""
    from dataclasses import asdict

    from raydistill.chooser import difference

    finish(asdict(difference(a, b, output=output, k=k)), as_json)


@app.command(name="rm")
def rm(path: Annotated[str, typer.Argument()], as_json: Json = False) -> None:
    """Remove a cache; refuses a folder that is none."""
    from raydistill.teachers.cache.manage import remove

    remove(path)
    finish({"removed": str(path)}, as_json)
