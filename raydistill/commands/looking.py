"""Commands that look at runs: eval, judge, report, compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from raydistill.commands import completing
from raydistill.commands.answers import finish
from raydistill.commands.options import Json, Quiet
from raydistill.errors import ConfigError


def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN... [key.path=value]...", help="Run folders, and values of evaluate.*.")
    ],
    protocol: Annotated[
        list[str] | None,
        typer.Option(autocompletion=completing.protocols, help="Measure this only, or all; may be repeated."),
    ] = None,
    as_json: Json = False,
    *,
    quiet: Quiet = False,
) -> None:
    """Measure students and their teachers on the test images; writes card.json into each run.

    Example: raydistill eval runs/kd runs/alone --protocol top1 --protocol knn
    """
    overrides = [text for text in runs if "=" in text and not Path(text).exists()]
    folders = [Path(text) for text in runs if text not in overrides]
    if not folders:
        raise ConfigError("eval: name the folder of a run to measure, such as runs/kd")
    for run in folders:
        if (run / "manifest.json").is_file():
            raise ConfigError(
                f"{run}: a teacher cache, not a run; rank teachers by `raydistill cache rank CONFIG {run}`"
            )
    from raydistill import display
    from raydistill.evaluation.card import examine_run, write_card

    cards = {}
    for number, run in enumerate(folders, start=1):
        with display.working(f"eval {number} of {len(folders)}" if len(folders) > 1 else "eval") as progress:
            card = examine_run(run, protocol or (), overrides=overrides, progress=progress)
        write_card(run, card)
        cards[str(run)] = card.values
        _print_card(str(run), card.values)
    finish({"card": cards[str(folders[0])] if len(folders) == 1 else cards}, as_json, printed=True)


def _print_card(run: str, card: Mapping[str, Mapping[str, float]]) -> None:
    print(run)
    names = list(dict.fromkeys(name for values in card.values() for name in values))
    width = max(map(len, names), default=0) + 2
    print(" " * width + "".join(f"{role:>14}" for role in card))
    for name in names:
        cells = [f"{values[name]:,.2f}".removesuffix(".00") if name in values else "-" for values in card.values()]
        print(f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells))


def judge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished students.")],
    seeds: Annotated[int, typer.Option(help="How many runs there shall be of each, from the run's own seed on.")] = 3,
    output: Annotated[Path, typer.Option("--output", "-o", help="The report to write.")] = Path("report.html"),
    as_json: Json = False,
    *,
    quiet: Quiet = False,
) -> None:
    """Say whether students are better than themselves trained alone; trains what is missing for that.

    Example: raydistill judge runs/kd --seeds 3 --output report.html
    """
    from raydistill.judge import judge_runs

    found = judge_runs(runs, seeds=seeds, output=output)
    print("\n".join(found["verdict"]))
    finish(found, as_json, printed=True)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs and sweeps.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    as_json: Json = False,
    *,
    quiet: Quiet = False,
) -> None:
    """Write one self-contained page about runs and sweeps.

    Example: raydistill report runs/teacher runs/kd runs/sweep -o page.html
    """
    from raydistill import display
    from raydistill.reporting.page import write_report

    with display.working("report") as progress:
        page = write_report(runs, output, progress=progress)
    finish({"report": str(page)}, as_json)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    layout: Annotated[
        str | None,
        typer.Option(autocompletion=completing.layouts, help="A paper's table, of `raydistill list layouts`."),
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="markdown, latex, csv or json, not a terminal's.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write instead.")] = None,
    as_json: Json = False,
    *,
    quiet: Quiet = False,
) -> None:
    """Compare runs over seeds: with the student alone, or in the shape of a paper's table.

    Example: raydistill compare runs/* --layout crd-table1 --format markdown
    """
    from raydistill import display
    from raydistill.files import make_folders, write_atomically
    from raydistill.reporting import rendering
    from raydistill.reporting.compare import pivot
    from raydistill.reporting.layouts import load_layout
    from raydistill.reporting.runs import load_runs

    shape = None if layout is None else load_layout(layout)
    chosen = rendering.chosen_format(form, output)
    with display.working("compare") as progress:
        records = load_runs(runs, progress=progress)
    sheet = rendering.general(records) if shape is None else rendering.filled(pivot(records, shape))
    text = rendering.rendered(sheet, chosen)
    if output is not None:
        make_folders(output.parent)
        write_atomically(output, text)
    else:
        print(text.rstrip("\n"))
    finish(rendering.plain(sheet) | ({"output": str(output)} if output else {}), as_json, printed=True)
