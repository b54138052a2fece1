"""Commands that tell what there is: list, doctor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from raydistill.commands import completing
from raydistill.commands.answers import finish
from raydistill.commands.options import Json, Quiet
from raydistill.errors import ConfigError, did_you_mean


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(autocompletion=completing.kinds, help="methods, models, datasets, protocols or layouts"),
    ] = None,
    method: Annotated[
        str | None, typer.Argument(autocompletion=completing.listed, help="a method, to be told all about it")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the names that an experiment or `compare` can use, or tell all about one method.

    Example: raydistill list methods kd
    """
    from raydistill.catalogue import ABOUT, KINDS, NOTES

    if kind is None:
        _print_names(ABOUT, as_json)
        return
    if method is not None:
        _tell_method(kind, method, as_json)
        return
    if kind not in KINDS:
        raise ConfigError(f"cannot list '{kind}'{did_you_mean(kind, KINDS)} (known: {', '.join(KINDS)})")
    _print_names(KINDS[kind](), as_json, NOTES.get(kind))


def _print_names(names: Mapping[str, str], as_json: bool, note: str | None = None) -> None:
    for name, about in names.items():
        print(f"{name:<24}{about}".rstrip())
    if note is not None:
        print(note)
    finish({"names": list(names)}, as_json, printed=True)


def _tell_method(kind: str, name: str, as_json: bool) -> None:
    from dataclasses import asdict

    from raydistill.methods.describe import describe, lines

    if kind != "methods":
        raise ConfigError(f"list {kind} {name}: only methods can be told about one by one; leave out {name}")
    about = describe(name)
    print("\n".join(lines(about)))
    finish(asdict(about), as_json, printed=True)


def doctor(as_json: Json = False, *, quiet: Quiet = False) -> None:
    """Check the installation, devices, Ray, who can reach it, and the disk.

    Example: raydistill doctor --json
    """
    from raydistill import display
    from raydistill.doctor import examine

    with display.working("doctor") as progress:
        progress(0.0, "torch, torchvision and a Ray are started")
        checks = examine()
    for check in checks:
        print(f"{'ok ' if check['ok'] else 'BAD'}  {check['name']}: {check['found']}")
    passed = all(check["ok"] for check in checks)
    finish({"ok": passed, "checks": checks}, as_json, printed=True)
    if not passed:
        raise typer.Exit(1)
