"""Commands that take work or results elsewhere: submit, pull, export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from raydistill.commands.answers import finish
from raydistill.commands.options import Json, Quiet
from raydistill.commands.sending import send


def submit(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[COMMAND] CONFIG [key.path=value]... [--resume]...",
            help="teacher, train, tune or cache build as you would run it there; train where only a file is named.",
        ),
    ],
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS", help="The dashboard of the cluster's head, or ray://HOST:PORT of it."
        ),
    ] = "http://127.0.0.1:8265",
    python: Annotated[
        str | None,
        typer.Option(help="The cluster's interpreter; python, or with ray:// that of the head.", show_default=False),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once the job is accepted.")] = False,
    as_json: Json = False,
    *,
    quiet: Quiet = False,
) -> None:
    """Run a command on a cluster; its log comes here, and its exit code. Ctrl-C leaves it running.

    Example: raydistill submit train experiment.yaml output=/shared/runs --no-wait
    """
    job, code = send(words, address, python=python, wait=not no_wait)
    finish({"submission_id": job, "exit_code": code}, as_json, printed=True)
    if code:
        raise typer.Exit(code)


def pull(
    url: Annotated[str, typer.Argument(metavar="URL", help="The copy that `backup` kept: s3://bucket/runs/NAME.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Where to put it; runs/NAME by default.")
    ] = None,
    as_json: Json = False,
    *,
    quiet: Quiet = False,
) -> None:
    """Bring a run, sweep or teacher here from its copy, checked, to be looked at or gone on with.

    Example: raydistill pull s3://bucket/runs/kd
    """
    from raydistill import display
    from raydistill.training.backup.restoring import pull as run

    with display.working("pull") as progress:
        found, index = run(url, folder, progress=progress)
    total = sum(stored.bytes for stored in index.files.values())
    finish({"run": str(found), "files": len(index.files), "bytes": total}, as_json)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    format: Annotated[str, typer.Option("--format", help="safetensors, onnx or torch.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; RUN/export/FORMAT by default.")
    ] = None,
    quantise: Annotated[
        str | None, typer.Option("--quantise", help="int8: a second, quantised file, with what it costs (onnx).")
    ] = None,
    as_json: Json = False,
    *,
    quiet: Quiet = False,
) -> None:
    """Write a run's student for deployment, compared with the student once loaded back, with a model card.

    Example: raydistill export runs/kd --format onnx --quantise int8
    """
    from raydistill import display
    from raydistill.exporting.export import export_run

    with display.working("export") as progress:
        exported = export_run(run, format, output, quantised=quantise, progress=progress)
    print(
        f"{exported['path']}: {exported['bytes']:,} bytes, differs from the student by {exported['max_abs_diff']:.1e} "
        f"at most on {exported['compared_images']} images"
    )
    if small := exported.get("quantised"):
        print(f"{small['path']}: {small['bytes']:,} bytes, {_cost_of_quantising(small)}")
    print(f"{exported['card']}: the model card")
    finish(exported, as_json, printed=True)


def _cost_of_quantising(found: Mapping[str, Any]) -> str:
    cosine = f"embeddings' mean cosine {found['embedding_cosine']:.5f}"
    for name, title in (("top1", "top-1"), ("knn", "k-NN")):
        if name in found:
            return f"{title} {found[name]:.2f} instead of {found[f'{name}_float']:.2f}, {cosine}"
    return cosine
