"""The command that writes a first experiment: ``raydistill init``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raydistill.commands import completing
from raydistill.commands.answers import finish
from raydistill.commands.options import Json
from raydistill.errors import ConfigError

if TYPE_CHECKING:
    from raydistill.starting.draft import Choices, Draft


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The experiment to write.")] = Path("experiment.yaml"),
    *,
    goal: Annotated[
        str | None, typer.Option(autocompletion=completing.goals, help="compress, unlabelled, tune or digits.")
    ] = None,
    data: Annotated[str | None, typer.Option(autocompletion=completing.datasets, help="A data set by name.")] = None,
    root: Annotated[str | None, typer.Option(help="The folder that holds its images.")] = None,
    labels: Annotated[bool | None, typer.Option("--labels/--no-labels", help="Whether images have labels.")] = None,
    teacher: Annotated[str | None, typer.Option(autocompletion=completing.models, help="The large network.")] = None,
    weights: Annotated[str | None, typer.Option(help="The file of its weights, if there is one.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="How a published checkpoint is laid out: moco_v2, swav, dino, simclr, ...")
    ] = None,
    student: Annotated[str | None, typer.Option(autocompletion=completing.models, help="The small network.")] = None,
    method: Annotated[
        str | None, typer.Option(autocompletion=completing.methods, help="What the student learns by.")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Add a sweep over the method's settings.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a first experiment, explained key by key; asks at a terminal what no option says.

    Example: raydistill init photos.yaml --goal compress --root photos --method kd
    """
    from raydistill.files import make_folders, write_atomically
    from raydistill.starting.draft import JUDGE_TRAINS, Choices, draft

    if file.suffix not in {".yaml", ".yml"}:
        raise ConfigError(
            f"{file}: names no experiment file, which ends in .yaml; a folder of images is told by --root"
        )
    if file.exists() and not force:
        raise ConfigError(f"{file}: is there already; name another file, or write over it with --force")
    given = Choices("", data, root, labels, teacher, weights, layout, student, method, tune)
    drafted = draft(_with_goal(given, goal), file)
    _check_space(drafted)
    make_folders(file.parent)
    write_atomically(file, drafted.text)
    answer = {"experiment": str(file), "missing": drafted.missing, "next": drafted.next}
    if not as_json:
        print(f"experiment: {file}", *(f"missing: {line}" for line in drafted.missing), "next:", sep="\n")
        print(*(f"  {command}" for command in drafted.next), sep="\n")
        if any(command.startswith("raydistill judge ") for command in drafted.next):
            print(f"({JUDGE_TRAINS})")
    finish(answer, as_json, printed=True)


def _with_goal(given: Choices, goal: str | None) -> Choices:
    """Return the choices with a goal, and with whatever else somebody who sits there has to be asked for."""
    from raydistill.starting.draft import goal_named

    if goal is not None:
        return _with_needed(replace(given, goal=goal), goal_named(goal).data)
    if _somebody_is_there():
        return _asked(given)
    if given.data is not None or given.root is not None:
        return _with_needed(replace(given, goal="compress"), "image_folder")
    raise ConfigError("init: nobody is there to be asked; say what you want by --goal compress|unlabelled|tune|digits")


def _with_needed(choices: Choices, data: str) -> Choices:
    """Return the choices with a folder of images where a data set needs one."""
    from raydistill.data.names import DATA_SETS

    known = DATA_SETS.get(choices.data or data)
    if known is None or not known.needs_root or choices.root is not None:
        return choices
    if not _somebody_is_there():
        raise ConfigError(f"--root: the data set '{choices.data or data}' needs the folder that holds it")
    return replace(choices, root=_prompt("Folder of the images", check=_require_there))


def _asked(given: Choices) -> Choices:
    """Ask for all that is not given; what is unknown is asked for again."""
    from raydistill.methods.registry import method_class
    from raydistill.models.zoo import check_name
    from raydistill.starting.draft import goal_named, goals

    for name, known in goals().items():
        print(f"  {name:<12}{known.about}", file=sys.stderr)
    name = _prompt("What do you want", default="digits", check=goal_named)
    goal = goal_named(name)
    choices = _with_needed(replace(given, goal=name), goal.data)
    questions: tuple[tuple[str, str, str, Callable[[str], Any]], ...] = (
        ("teacher", "The large network, of `raydistill list models`", goal.teacher, check_name),
        ("student", "The small network", goal.student, check_name),
        ("method", "What the student learns by, of `raydistill list methods`", goal.method, method_class),
    )
    for field, text, default, check in questions:
        if getattr(choices, field) is None:
            answer: Any = _prompt(text, default=default, check=check)
            choices = replace(choices, **{field: answer})
    if choices.weights is None:
        weights = _prompt("File of the teacher's weights, nothing where there is none yet", "", check=_require_there)
        choices = replace(choices, weights=weights or None)
    return choices


def _prompt(text: str, default: str | None = None, check: Callable[[str], Any] = lambda answer: None) -> str:
    """Ask on stderr, until the answer passes the check."""
    while True:
        answer = str(typer.prompt(text, default=default, err=True)).strip()
        try:
            check(answer)
        except ConfigError as error:
            print(f"  {error}", file=sys.stderr)
        else:
            return answer


def _require_there(path: str) -> None:
    if path and not Path(path).exists():
        raise ConfigError(f"{path}: is not there; paths count from {Path.cwd()}")


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _check_space(drafted: Draft) -> None:
    if drafted.experiment.tune is not None:
        from raydistill.tuning.space import check_space

        check_space(drafted.experiment)
