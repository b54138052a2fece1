"""How commands that run elsewhere are sent there and watched."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from raydistill.commands.group import INTERRUPTED


def send(words: Sequence[str], address: str, *, python: str | None = None, wait: bool = True) -> tuple[str, int | None]:
    """Send a command, and watch it unless told not to; return its id and its exit code.

    Args:
        words: ``[COMMAND] CONFIG [key.path=value]... [--option]...``.
        address: of the head's dashboard or Ray Client.
        python: the cluster's interpreter.
        wait: hand on the log until the command has ended.

    Raises:
        typer.Exit: where the user stops watching.
    """
    from raydistill import display
    from raydistill.submitting import Submitted, parse_job

    job = parse_job(words)
    with display.working(f"submit to {address}") as progress:
        progress(0.0, "the code is sent, and the job accepted, which a new head takes two minutes for")
        submitted = Submitted(job, address, python=python)
    display.tell(f"{submitted.id}: submitted. {submitted.advice}")
    if not wait:
        return submitted.id, None
    try:
        return submitted.id, submitted.follow(lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        display.say(f"{submitted.id}: goes on without being watched. {submitted.advice}")
        raise typer.Exit(INTERRUPTED) from None
