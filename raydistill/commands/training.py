"""Commands that train: teacher, student, sweep, other data, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raydistill.commands.answers import finish
from raydistill.commands.options import Address, Config, Json, Overrides, Quiet, Resume, join, load, send_by_client


def demo(
    as_json: Json = False,
    output: Annotated[str, typer.Option(help="Folder of the runs.")] = "runs",
    quiet: Quiet = False,
) -> None:
    """Show the whole idea on embedded images: teacher, cache, sweep, best student, report. Takes minutes.

    Example: raydistill demo --output runs
    """
    from raydistill.demo import run_demo

    finish(run_demo(output), as_json)


def teacher(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    resume: Resume = False,
    address: Address = None,
    *,
    quiet: Quiet = False,
) -> None:
    """Train the experiment's teacher by cross entropy.

    Example: raydistill teacher experiment.yaml teacher.train.epochs=20
    """
    send_by_client(address, "teacher", config, overrides, as_json=as_json, resume=resume, quiet=quiet)
    from raydistill import display

    experiment = load(config, overrides, address)
    from raydistill.training.teacher import train_teacher

    epochs = ((experiment.teacher and experiment.teacher.train) or experiment.train).epochs
    with display.training(experiment, epochs) as watch:
        result = train_teacher(experiment, resume=resume, watch=watch)
    finish(result, as_json)


def train(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    resume: Resume = False,
    *,
    address: Address = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record some steps with torch's profiler, in logs/profile of the run.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train one student.

    Example: raydistill train experiment.yaml seed=1 train.epochs=30
    """
    send_by_client(address, "train", config, overrides, as_json=as_json, resume=resume, profile=profile, quiet=quiet)
    from raydistill import display

    experiment = load(config, overrides, address)
    from raydistill.training.run_folder import RunFolder
    from raydistill.training.trainer import STUDENT_WEIGHTS
    from raydistill.training.trainer import train as run

    if resume and RunFolder(experiment.folder).succeeded:
        display.tell(f"{experiment.folder}: is finished; nothing is trained again")
    with display.training(experiment, experiment.train.epochs) as watch:
        result = run(experiment, resume=resume, watch=watch, profile=profile)
    if profile and "profile" not in result:
        display.say("nothing was profiled: no step of distillation was left")
    finish({**result, "student": str(Path(result["run"]) / STUDENT_WEIGHTS), "model": result["student"]}, as_json)


def tune(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    resume: Resume = False,
    address: Address = None,
    *,
    quiet: Quiet = False,
) -> None:
    """Sweep over the keys of `tune.space`; ends with the best configuration as a file.

    Example: raydistill tune experiment.yaml tune.samples=32
    """
    send_by_client(address, "tune", config, overrides, as_json=as_json, resume=resume, quiet=quiet)
    from raydistill.sweep_display import sweep

    experiment = load(config, overrides, address)
    from raydistill.tuning.space import check_space

    check_space(experiment)
    from raydistill.tuning.sweep import tune as run

    with sweep(experiment) as watch:
        result = run(experiment, resume=resume, watch=watch)
    finish(result, as_json)


def finetune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished student.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key.path=value...", help="The new data, and training: data.name=... train.epochs=..."),
    ] = None,
    *,
    linear: Annotated[bool, typer.Option("--linear", help="Train the head alone, on frozen features.")] = False,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Train the same student from fresh weights, too, to compare with.")
    ] = False,
    as_json: Json = False,
    resume: Resume = False,
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Train a student on other labelled data, from its weights on with a fresh head, and probe its features there.

    Example: raydistill finetune runs/kd data.name=image_folder data.root=photos --scratch
    """
    join(address)
    from raydistill.finetune import finetune_run
    from raydistill.training.trainer import STUDENT_WEIGHTS

    result = finetune_run(run, overrides or (), linear=linear, scratch=scratch, resume=resume)
    result |= {"student": str(Path(result["run"]) / STUDENT_WEIGHTS), "model": result["student"]}
    shown = ("run", "linear_top1", "top1", "scratch_run", "scratch_top1", "test_problem")
    finish(result if as_json else {name: result[name] for name in shown if name in result}, as_json)
