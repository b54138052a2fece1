"""The command line: its commands stand in ``raydistill/commands``, a file for each group of them."""

from __future__ import annotations

import os
from importlib import metadata
from typing import Annotated

import typer

from raydistill.commands import cache, init, listing, looking, moving, training
from raydistill.commands.group import Commands

app = typer.Typer(cls=Commands, rich_markup_mode=None)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"raydistill {metadata.version('raydistill')}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turn a large vision model into a small one: teacher once, students trained and tuned from its cache, on Ray."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures memory, else tells of each start


app.command()(init.init)
app.command()(training.demo)
app.command()(training.teacher)
app.command()(training.train)
app.command()(training.tune)
app.command(context_settings={"ignore_unknown_options": True})(moving.submit)
app.command(name="eval")(looking.evaluate)
app.command()(looking.judge)
app.command()(training.finetune)
app.command()(looking.report)
app.command()(moving.pull)
app.command()(moving.export)
app.command()(looking.compare)
app.command(name="list")(listing.list_names)
app.command()(listing.doctor)
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Entry point of the ``raydistill`` command."""
    app(prog_name="raydistill")


if __name__ == "__main__":
    main()
