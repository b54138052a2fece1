"""The command line: parsing and printing only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from raydistill.errors import CacheError, ConfigError, RaydistillError, did_you_mean, last_line

if TYPE_CHECKING:
    from raydistill.config import Experiment

INTERRUPTED = 130


class Commands(TyperGroup):
    """Turns our errors into one message on stderr and the exit codes of the interface."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except RaydistillError as error:
            print(f"raydistill: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("raydistill: interrupted; the same command with --resume goes on", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if not _is_rays(error):
                raise
            reason = f"Ray was lost: {last_line(error)}"
            print(f"raydistill: {reason}; the same command goes on (train and tune: with --resume)", file=sys.stderr)
            raise typer.Exit(RaydistillError.exit_code) from None


def _is_rays(error: Exception) -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and isinstance(error, ray.exceptions.RayError)


app = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode=None)
cache_app = typer.Typer(no_args_is_help=True, help="Build, check and look after teacher caches.", rich_markup_mode=None)
app.add_typer(cache_app, name="cache")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key.path=value]...", help="Values to set instead of the file's."),
]
Json = Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run of this name.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="auto|HOST:PORT",
        help="Join the Ray there, of which this machine is a node, instead of starting one; RAY_ADDRESS by default.",
    ),
]


@app.callback()
def _main() -> None:
    """Turn a large vision model into a small one: teacher once, students trained and tuned from its cache, on Ray."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures memory, else tells of each start


@app.command()
def demo(as_json: Json = False, output: Annotated[str, typer.Option(help="Folder of the runs.")] = "runs") -> None:
    """Show the whole idea on embedded images: teacher, cache, sweep, best student, report. Takes minutes."""
    from raydistill.demo import run_demo

    _finish(run_demo(output), as_json)


@app.command()
def teacher(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    resume: Resume = False,
    address: Address = None,
) -> None:
    """Train the experiment's teacher by cross entropy."""
    from raydistill import display

    experiment = _load(config, overrides, address)
    from raydistill.training.trainer import train_teacher

    epochs = ((experiment.teacher and experiment.teacher.train) or experiment.train).epochs
    with display.training(experiment, epochs) as watch:
        result = train_teacher(experiment, resume=resume, watch=watch)
    _finish(result, as_json)


@app.command()
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
) -> None:
    """Train one student."""
    from raydistill import display

    experiment = _load(config, overrides, address)
    from raydistill.training.trainer import STUDENT_WEIGHTS
    from raydistill.training.trainer import train as run

    with display.training(experiment, experiment.train.epochs) as watch:
        result = run(experiment, resume=resume, watch=watch, profile=profile)
    if profile and "profile" not in result:
        display.say("nothing was profiled: no step of distillation was left")
    _finish({**result, "student": str(Path(result["run"]) / STUDENT_WEIGHTS), "model": result["student"]}, as_json)


@app.command()
def tune(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    resume: Resume = False,
    address: Address = None,
) -> None:
    """Sweep over the keys of `tune.space`; ends with the best configuration as a file."""
    from raydistill.sweep_display import sweep

    experiment = _load(config, overrides, address)
    from raydistill.tuning.space import check_space

    check_space(experiment)
    from raydistill.tuning.sweep import tune as run

    with sweep(experiment) as watch:
        result = run(experiment, resume=resume, watch=watch)
    _finish(result, as_json)


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[COMMAND] CONFIG [key.path=value]... [--resume]...",
            help="teacher, train, tune or cache build as you would run it there; train where only a file is named.",
        ),
    ],
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The dashboard of the cluster's head.")
    ] = "http://127.0.0.1:8265",
    python: Annotated[str, typer.Option(help="The cluster's interpreter.")] = "python",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once the job is accepted.")] = False,
    as_json: Json = False,
) -> None:
    """Run a command on a cluster; its log comes here, and its exit code. Ctrl-C leaves it running."""
    from raydistill import display
    from raydistill.submitting import Submitted, parse_job

    submitted = Submitted(parse_job(words), address, python=python)
    display.say(f"{submitted.id}: submitted. {submitted.advice}")
    code = None
    if not no_wait:
        try:
            code = submitted.follow(lambda text: print(text, end="", flush=True))
        except KeyboardInterrupt:
            display.say(f"{submitted.id}: goes on without being watched. {submitted.advice}")
            raise typer.Exit(INTERRUPTED) from None
    _finish({"submission_id": submitted.id, "exit_code": code}, as_json, quiet=True)
    if code:
        raise typer.Exit(code)


@app.command(name="eval")
def evaluate(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN... [key.path=value]...", help="Run folders, and values of evaluate.*.")
    ],
    protocol: Annotated[list[str] | None, typer.Option(help="Measure this only, or all; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Measure students and their teachers on the test images; writes card.json into each run."""
    overrides = [text for text in runs if "=" in text and not Path(text).exists()]
    folders = [Path(text) for text in runs if text not in overrides]
    if not folders:
        raise ConfigError("name the folder of a run to measure")
    for run in folders:
        if (run / "manifest.json").is_file():
            raise ConfigError(
                f"{run}: a teacher cache, not a run; rank teachers by `raydistill cache rank CONFIG {run}`"
            )
    from raydistill import display
    from raydistill.evaluation.card import examine_run, write_card

    cards = {}
    for run in folders:
        card = examine_run(run, protocol or (), overrides=overrides, watch=display.say)
        write_card(run, card)
        cards[str(run)] = card.values
        _print_card(str(run), card.values)
    _finish({"card": cards[str(folders[0])] if len(folders) == 1 else cards}, as_json, quiet=True)


@app.command()
def judge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished students.")],
    seeds: Annotated[int, typer.Option(help="How many runs there shall be of each, from the run's own seed on.")] = 3,
    output: Annotated[Path, typer.Option("--output", "-o", help="The report to write.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Say whether students are better than themselves trained alone; trains what is missing for that."""
    from raydistill.judge import judge_runs

    found = judge_runs(runs, seeds=seeds, output=output)
    print("\n".join(found["verdict"]))
    _finish(found, as_json, quiet=True)


@app.command()
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
) -> None:
    """Train a student on other labelled data, from its weights on with a fresh head, and probe its features there."""
    _join(address)
    from raydistill.finetune import finetune_run
    from raydistill.training.trainer import STUDENT_WEIGHTS

    result = finetune_run(run, overrides or (), linear=linear, scratch=scratch, resume=resume)
    result |= {"student": str(Path(result["run"]) / STUDENT_WEIGHTS), "model": result["student"]}
    shown = ("run", "linear_top1", "top1", "scratch_run", "scratch_top1", "test_error")
    _finish(result if as_json else {name: result[name] for name in shown if name in result}, as_json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Write one self-contained page about runs and sweeps."""
    from raydistill.reporting.page import write_report

    _finish({"report": str(write_report(runs, output))}, as_json)


@app.command()
def pull(
    url: Annotated[str, typer.Argument(metavar="URL", help="The copy that `backup` kept: s3://bucket/runs/NAME.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Where to put it; runs/NAME by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring a run, sweep or teacher here from its copy, checked, to be looked at or gone on with."""
    from raydistill.training.backup.restoring import pull as run

    found, index = run(url, folder)
    total = sum(stored.bytes for stored in index.files.values())
    _finish({"run": str(found), "files": len(index.files), "bytes": total}, as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    format: Annotated[str, typer.Option("--format", help="safetensors, onnx or torch.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; RUN/export/FORMAT by default.")
    ] = None,
    quantise: Annotated[
        str | None, typer.Option("--quantise", help="int8: a second, quantised file, with what it costs (onnx).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's student for deployment, compared with the student once loaded back, with a model card."""
    from raydistill.exporting.export import export_run

    exported = export_run(run, format, output, quantised=quantise)
    print(
        f"{exported['path']}: {exported['bytes']:,} bytes, differs from the student by {exported['max_abs_diff']:.1e} "
        f"at most on {exported['compared_images']} images"
    )
    if small := exported.get("quantised"):
        print(f"{small['path']}: {small['bytes']:,} bytes, {_cost_of_quantising(small)}")
    print(f"{exported['card']}: the model card")
    _finish(exported, as_json, quiet=True)


def _cost_of_quantising(found: Mapping[str, Any]) -> str:
    cosine = f"embeddings' mean cosine {found['embedding_cosine']:.5f}"
    for name, title in (("top1", "top-1"), ("knn", "k-NN")):
        if name in found:
            return f"{title} {found[name]:.2f} instead of {found[f'{name}_float']:.2f}, {cosine}"
    return cosine


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    layout: Annotated[str | None, typer.Option(help="A paper's table, of `raydistill list layouts`.")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="markdown, latex, csv or json, not a terminal's.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write instead.")] = None,
    as_json: Json = False,
) -> None:
    """Compare runs over seeds: with the student alone, or in the shape of a paper's table."""
    from raydistill.files import make_folders, write_atomically
    from raydistill.reporting import rendering
    from raydistill.reporting.compare import pivot
    from raydistill.reporting.layouts import load_layout
    from raydistill.reporting.runs import load_runs

    shape = None if layout is None else load_layout(layout)
    chosen = rendering.chosen_format(form, output)
    records = load_runs(runs)
    sheet = rendering.general(records) if shape is None else rendering.filled(pivot(records, shape))
    text = rendering.rendered(sheet, chosen)
    if output is not None:
        make_folders(output.parent)
        write_atomically(output, text)
    else:
        print(text.rstrip("\n"))
    _finish(rendering.plain(sheet) | ({"output": str(output)} if output else {}), as_json, quiet=True)


@app.command(name="list")
def list_names(
    kind: Annotated[str, typer.Argument(help="methods, models, datasets, protocols or layouts")],
    method: Annotated[str | None, typer.Argument(help="a method, to be told all about it")] = None,
    as_json: Json = False,
) -> None:
    """List the names that an experiment or `compare` can use, or tell all about one method."""
    from raydistill.catalogue import KINDS, NOTES

    if method is not None:
        _tell_method(kind, method, as_json)
        return
    if kind not in KINDS:
        raise ConfigError(f"cannot list '{kind}'{did_you_mean(kind, KINDS)} (known: {', '.join(KINDS)})")
    names = KINDS[kind]()
    for name, about in names.items():
        print(f"{name:<24}{about}".rstrip())
    if kind in NOTES:
        print(NOTES[kind])
    _finish({"names": list(names)}, as_json, quiet=True)


def _tell_method(kind: str, name: str, as_json: bool) -> None:
    from dataclasses import asdict

    from raydistill.methods.describe import describe, lines

    if kind != "methods":
        raise ConfigError(f"list {kind} {name}: only methods can be told about one by one")
    about = describe(name)
    print("\n".join(lines(about)))
    _finish(asdict(about), as_json, quiet=True)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the installation, devices, Ray, who can reach it, and the disk."""
    from raydistill.doctor import examine

    checks = examine()
    for check in checks:
        print(f"{'ok ' if check['ok'] else 'BAD'}  {check['name']}: {check['found']}")
    passed = all(check["ok"] for check in checks)
    _finish({"ok": passed, "checks": checks}, as_json, quiet=True)
    if not passed:
        raise typer.Exit(1)


@cache_app.command(name="build")
def cache_build(config: Config, overrides: Overrides = None, as_json: Json = False, address: Address = None) -> None:
    """Compute what is missing of the experiment's teacher cache."""
    from dataclasses import asdict

    from raydistill import display

    experiment = _load(config, overrides, address)
    from raydistill.teachers.cache.build import build_cache

    with display.rows("teacher") as progress:
        built = build_cache(experiment, progress=progress)
    _finish({**asdict(built), "path": str(built.path)}, as_json)


@cache_app.command(name="plan")
def cache_plan(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Say size, time and break-even of the experiment's cache before anything is computed."""
    from dataclasses import asdict

    experiment = _load(config, overrides)
    from raydistill.teachers.cache.planning import plan

    _finish(asdict(plan(experiment)), as_json)


@cache_app.command(name="ls")
def cache_ls(root: Annotated[str, typer.Argument()] = "cache", as_json: Json = False) -> None:
    """List the caches below a folder or a URL."""
    from dataclasses import asdict

    from raydistill.teachers.cache.manage import list_caches

    caches = list_caches(root)
    for found in caches:
        state = "" if found.finished else "  unfinished"
        outputs = ", ".join(found.outputs)
        print(f"{found.path}  {found.images} images x {found.views} views of {outputs}  {found.bytes:,} bytes{state}")
    _finish({"caches": [asdict(found) for found in caches]}, as_json, quiet=True)


@cache_app.command(name="verify")
def cache_verify(
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
    _finish({"ok": not problems, "problems": problems}, as_json, quiet=bool(problems))
    if problems:
        raise typer.Exit(1)


@cache_app.command(name="export")
def cache_export(
    path: Annotated[str, typer.Argument()],
    out: Annotated[Path, typer.Argument(help="A .parquet (plain lists), .npz or .pt (torch) file.")],
    as_json: Json = False,
) -> None:
    """Write a cache as plain numbers for other tools."""
    from raydistill.teachers.cache.manage import export

    _finish({"path": str(export(path, out))}, as_json)


@cache_app.command(name="rank")
def cache_rank(
    config: Config,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Caches of the experiment's images.")],
    output: Annotated[str, typer.Option(help="Which of the teachers' outputs.")] = "embedding",
    as_json: Json = False,
) -> None:
    """Rank teachers by their caches, before any student is trained; the experiment gives labels and split."""
    from dataclasses import asdict

    experiment = _load(config, None)
    from raydistill.chooser import rank

    found = rank(experiment, paths, output=output)
    print(f"{'score':>7}{'knn':>8}{'linear':>8}{'clusters':>10}  held-out images: {found.held_out}")
    for one in found.candidates:
        print(f"{one.score:7.2f}{one.knn:8.2f}{one.linear:8.2f}{one.clusters:10.2f}  {one.path}")
    _finish(asdict(found), as_json, quiet=True)


@cache_app.command(name="diff")
def cache_diff(
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    output: Annotated[str, typer.Option(help="Which of the teachers' outputs.")] = "embedding",
    k: Annotated[int, typer.Option("-k", help="Neighbours of each image.")] = 10,
    as_json: Json = False,
) -> None:
    """Say how alike two teachers see the same images: common nearest neighbours and linear CKA, from 0 to 1."""
    from dataclasses import asdict

    from raydistill.chooser import difference

    _finish(asdict(difference(a, b, output=output, k=k)), as_json)


@cache_app.command(name="rm")
def cache_rm(path: Annotated[str, typer.Argument()], as_json: Json = False) -> None:
    """Remove a cache; refuses a folder that is none."""
    from raydistill.teachers.cache.manage import remove

    remove(path)
    _finish({"removed": str(path)}, as_json)


def _load(config: Path, overrides: list[str] | None, address: str | None = None) -> Experiment:
    from raydistill.config import load_experiment

    _join(address)
    return load_experiment(config, overrides or ())


def _join(address: str | None) -> None:
    if address is not None:
        from raydistill.cluster import join

        join(address)


def _finish(values: Mapping[str, Any], as_json: bool, *, quiet: bool = False) -> None:
    """Print a result: as lines for people, or as the last line of stdout for scripts."""
    if as_json:
        print(json.dumps(dict(values), default=str))
    elif not quiet:
        for name, value in values.items():
            print(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")


def _print_card(run: str, card: Mapping[str, Mapping[str, float]]) -> None:
    print(run)
    names = list(dict.fromkeys(name for values in card.values() for name in values))
    width = max(map(len, names), default=0) + 2
    print(" " * width + "".join(f"{role:>14}" for role in card))
    for name in names:
        cells = [f"{values[name]:,.2f}".removesuffix(".00") if name in values else "-" for values in card.values()]
        print(f"{name:<{width}}" + "".join(f"{cell:>14}" for cell in cells))


def main() -> None:
    """Entry point of the ``raydistill`` command."""
    app()


if __name__ == "__main__":
    main()
