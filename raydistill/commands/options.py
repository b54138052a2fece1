"""Arguments and options that several commands have, and the experiment that they name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from raydistill.config import Experiment

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key.path=value]...", help="Values to set instead of the file's."),
]


def _hush(quiet: bool) -> bool:
    from raydistill.manner import be_quiet

    be_quiet(quiet)
    return quiet


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_hush, help="No progress on stderr, only warnings and errors."),
]
"""Takes effect when it is read, so that commands need not hand it on."""
Json = Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run of this name.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="auto|HOST:PORT|ray://HOST:PORT",
        help="Join the Ray there, of which this machine is a node, instead of starting one; with ray:// the command is "
        "sent there, as submit does. RAY_ADDRESS by default.",
    ),
]


def load(config: Path, overrides: list[str] | None, address: str | None = None) -> Experiment:
    """Read the experiment; joins the Ray at ``address`` if one is given."""
    from raydistill.config import load_experiment

    join(address)
    return load_experiment(config, overrides or ())


def join(address: str | None) -> None:
    """Join the Ray at an address, if one is given."""
    if address is not None:
        from raydistill.cluster import join

        join(address)


def send_by_client(address: str | None, command: str, config: Path, overrides: list[str] | None, **flags: bool) -> None:
    """Send a command away, watch it, and exit as it does, where it is to run at an address of Ray Client.

    Args:
        address: of the command line; RAY_ADDRESS where it is None.
        command: such as ``cache build``.
        config: of the command.
        overrides: of the command.
        flags: of the command, as they were given.
    """
    from raydistill.access import CLIENT

    if (address := address or os.environ.get("RAY_ADDRESS", "")).startswith(CLIENT):
        from raydistill.commands.sending import send

        options = [f"--{name.removeprefix('as_')}" for name, given in flags.items() if given]
        _, code = send([command, str(config), *(overrides or ()), *options], address)
        raise typer.Exit(code or 0)
