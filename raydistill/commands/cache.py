"""The commands ``raydistill cache ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raydistill.commands.answers import finish
from raydistill.commands.group import Commands
from raydistill.commands.options import Address, Config, Json, Overrides, Quiet, load, send_by_client
from raydistill.errors import CacheError

app = typer.Typer(cls=Commands, help="Build, check and look after teacher caches.", rich_markup_mode=None)


@app.command(name="build")
def build(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    address: Address = None,
    *,
    quiet: Quiet = False,
) -> None:
    """Compute what is missing of the experiment's teacher cache.

    Example: raydistill cache build experiment.yaml cache.views=4
    """
    send_by_client(address, "cache build", config, overrides, as_json=as_json, quiet=quiet)
    from dataclasses import asdict

    from raydistill import display

    experiment = load(config, overrides, address)
    from raydistill.required import require_teachers

    require_teachers(experiment)
    from raydistill.teachers.cache.build import build_cache

    with display.rows("teacher") as progress:
        built = build_cache(experiment, progress=progress)
    finish({**asdict(built), "path": str(built.path)}, as_json)


@app.command(name="plan")
def plan(config: Config, overrides: Overrides = None, as_json: Json = False, *, quiet: Quiet = False) -> None:
    """Say size, time and break-even of the experiment's cache before anything is computed.

    Example: raydistill cache plan experiment.yaml cache.views=4
    """
    from dataclasses import asdict

    from raydistill import display

    experiment = load(config, overrides)
    from raydistill.required import require_teachers

    require_teachers(experiment)
    from raydistill.teachers.cache.planning import plan

    with display.working("plan") as progress:
        planned = plan(experiment, progress=progress)
    finish(asdict(planned), as_json)


@app.command(name="ls")
def ls(root: Annotated[str, typer.Argument()] = "cache", as_json: Json = False) -> None:
    """List the caches below a folder or a URL.

    Example: raydistill cache ls s3://bucket/cache
    """
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
    *,
    quiet: Quiet = False,
) -> None:
    """Look for damage; exit code 1 where there is some.

    Example: raydistill cache verify cache/0123456789abcdef --full
    """
    from raydistill import display
    from raydistill.teachers.cache.store import location
    from raydistill.teachers.cache.verify import verify

    folder = location(path)
    if not folder.is_dir():
        raise CacheError(f"{path}: no such folder; `raydistill cache ls ROOT` lists the caches")
    with display.working("verify") as progress:
        problems = verify(folder, full=full, progress=progress)
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
    *,
    quiet: Quiet = False,
) -> None:
    """Write a cache as plain numbers for other tools.

    Example: raydistill cache export cache/0123456789abcdef teacher.parquet
    """
    from raydistill import display
    from raydistill.teachers.cache.manage import export

    with display.working("export") as progress:
        written = export(path, out, progress=progress)
    finish({"path": str(written)}, as_json)


@app.command(name="rank")
def rank(
    config: Config,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Caches of the experiment's images.")],
    output: Annotated[str, typer.Option(help="Which of the teachers' outputs.")] = "embedding",
    as_json: Json = False,
    *,
    quiet: Quiet = False,
) -> None:
    """Rank teachers by their caches, before any student is trained; the experiment gives labels and split.

    Example: raydistill cache rank experiment.yaml cache/*
    """
    from dataclasses import asdict

    from raydistill import display

    experiment = load(config, None)
    from raydistill.chooser import rank

    with display.working("rank") as progress:
        found = rank(experiment, paths, output=output, progress=progress)
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
    *,
    quiet: Quiet = False,
) -> None:
    """Say how alike two teachers see the same images: common nearest neighbours and linear CKA, from 0 to 1.

    Example: raydistill cache diff cache/0123456789abcdef cache/fedcba9876543210
    """
    from dataclasses import asdict

    from raydistill import display
    from raydistill.chooser import difference

    with display.working("diff") as progress:
        found = difference(a, b, output=output, k=k, progress=progress)
    finish(asdict(found), as_json)


@app.command(name="rm")
def rm(path: Annotated[str, typer.Argument()], as_json: Json = False) -> None:
    """Remove a cache; refuses a folder that is none.

    Example: raydistill cache rm cache/0123456789abcdef
    """
    from raydistill.teachers.cache.manage import remove

    remove(path)
    finish({"removed": str(path)}, as_json)
