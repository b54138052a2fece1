"""Makes a table of a paper: trains what is missing of it and prints it beside the published one.

    python experiments/papers/run.py crd-table1 --scale mini
    python experiments/papers/run.py crd-table1 --scale mini --methods student kd crd --seeds 5
    python experiments/papers/run.py crd-table1 --dry-run

`--scale paper`, the default, is as the paper has it. Finished runs are kept and only read, others are resumed; tables
of the same settings share theirs. Tables of other tasks hand them on to the scripts of experiments/downstream. The
table is written to runs/papers/ as Markdown too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import get_args

from garments import draw_garments
from memory import counted
from plan import RUNS, Plan, ScaleName, Task, caches, load_plan, shown, students, table_names, teachers, transfer

from raydistill import build_cache
from raydistill.config import Experiment
from raydistill.data.config import DataConfig
from raydistill.display import rows, say
from raydistill.errors import RaydistillError, RunError
from raydistill.evaluation.card_files import CARD
from raydistill.evaluation.downstream import FRESH, STUDENT
from raydistill.files import make_folders, write_atomically
from raydistill.protocol_names import PROTOCOLS
from raydistill.reporting.compare import pivot
from raydistill.reporting.layouts import Layout
from raydistill.reporting.rendering import filled, rendered
from raydistill.reporting.runs import RunRecord, load_runs

sys.path.append(str(Path(__file__).parents[1] / "fashion-mnist"))
from running import taught, trained

MEASURED = {
    "few_labels": (
        *("one_shot", "nn1@1%", "nn1@10%", "linear_top1@1%", "linear_top1@10%"),
        *("linear_top5@1%", "linear_top5@10%"),
    ),
    "retrieval": ("recall@1", "recall@2", "recall@4", "recall@8"),
    "cost": ("parameters", "mult_adds", "latency_p50_ms"),
}
"""What layouts ask for by another name than that of its protocol."""

DOWNSTREAM = Path(__file__).parents[1] / "downstream"
DRAWN: Mapping[str, Callable[[Path, DataConfig], None]] = {"garments": draw_garments}
"""Label of a data set -> what makes it below its root, out of the runs' own images."""


def main() -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help=f"one of {', '.join(table_names())}")
    parser.add_argument("--scale", choices=get_args(ScaleName), default="paper")
    parser.add_argument("--seeds", type=int, help="how many; the table's own number where not given")
    parser.add_argument("--methods", nargs="+", help="some of the table's")
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    arguments = parser.parse_args()
    try:
        plan = load_plan(arguments.table)
        teaching = teachers(plan, arguments.scale)
        learning = students(plan, arguments.scale, arguments.seeds, arguments.methods)
        if arguments.dry_run:
            print(described(plan, arguments.scale, teaching, learning))
            return
        make(plan, arguments.scale, teaching, learning)
    except RaydistillError as error:
        sys.exit(f"{parser.prog}: {error}")


def described(plan: Plan, scale: ScaleName, teaching: Sequence[Experiment], learning: Sequence[Experiment]) -> str:
    """Return one line for each run with its folder, epochs, and where the teacher's outputs come from."""
    if plan.counted:
        return f"{len(learning)} students to count, nothing to train"
    lines = [f"{each.folder}  teacher, {each.train.epochs} epochs{_done(each)}" for each in teaching]
    for each in learning:
        source = "no teacher" if each.teacher is None else f"teacher {each.teacher.source}"
        lines.append(f"{each.folder}  {', '.join(each.methods)}, {each.train.epochs} epochs, {source}{_done(each)}")
    lines += [f"each student: {task.script}.py --data {task.data}" for task in plan.tasks.get(scale, ())]
    return "\n".join([*lines, f"{len(teaching)} teachers, {len(caches(learning))} caches, {len(learning)} students"])


def _done(experiment: Experiment) -> str:
    return ", done" if (experiment.folder / "_SUCCESS").exists() else ""


def make(plan: Plan, scale: ScaleName, teaching: Sequence[Experiment], learning: Sequence[Experiment]) -> None:
    """Train or count, fill the layout and print it."""
    layout = shown(plan, scale)
    records = counted(learning, reference="crd") if plan.counted else made(plan, scale, layout, teaching, learning)
    table = filled(pivot(records, layout))
    make_folders(Path(RUNS))
    written = Path(RUNS) / f"{plan.name}-{scale}.md"
    write_atomically(written, rendered(table, "markdown"))
    print(rendered(table, "terminal"))
    print(f"table: {written}", file=sys.stderr)


def made(
    plan: Plan, scale: ScaleName, layout: Layout, teaching: Sequence[Experiment], learning: Sequence[Experiment]
) -> list[RunRecord]:
    """Train what is missing, measure what the layout shows, and return all runs."""
    runs = [Path(taught(each)) for each in teaching]
    for each in caches(learning):
        with rows("teacher") as progress:
            built = build_cache(each, progress=progress)
        say(f"cache: {built.computed_rows} rows computed, {built.reused_rows} reused, {built.seconds:.0f} s")
    runs += [Path(trained(each)["run"]) for each in learning]
    measure([*teaching, *learning], layout, transfer(plan, scale))
    with_control = any(row.role == FRESH for row in layout.rows)
    for task in plan.tasks.get(scale, ()):
        hand_on(learning, task, with_control=with_control)
    return load_runs(runs)


def measure(experiments: Sequence[Experiment], layout: Layout, transfer: Mapping[str, DataConfig]) -> None:
    """Add to the report cards of finished runs what a layout asks for and they do not have."""
    from raydistill.evaluation.card import Card, examine_run, write_card

    asked = {layout.measure(row, column).metric for row in layout.rows for column in layout.columns} - {"top1", None}
    for run in [each.folder for each in experiments]:
        known = json.loads((run / CARD).read_text()) if (run / CARD).is_file() else {}
        missing = [str(metric).rpartition("/") for metric in asked - known.get("student", {}).keys()]
        data = {label: transfer[label].model_dump(mode="json") for label, _, _ in missing if label in transfer}
        wanted = protocols_of([name for label, _, name in missing if not label or label in data])
        if wanted:
            for label in data.keys() & DRAWN:
                DRAWN[label](Path(str(transfer[label].root)), experiments[0].data)
            say(f"{run.name}: measuring {', '.join(wanted)}{' on ' * bool(data)}{', '.join(data)}")
            found = examine_run(run, wanted, overrides=[f"evaluate.transfer={json.dumps(data)}"])
            values = {role: known.get(role, {}) | found.values.get(role, {}) for role in {**known, **found.values}}
            write_card(run, Card(values, found.subjects))


def hand_on(experiments: Sequence[Experiment], task: Task, *, with_control: bool) -> None:
    """Begin another task with each finished run, and once for each network and seed with random weights."""
    controlled = {_control(each) for each in experiments if _known(each, task, FRESH)}
    for each in experiments:
        if not _known(each, task, STUDENT):
            _begin(each, task)
        if with_control and _control(each) not in controlled:
            _begin(each, task, "--fresh")
            controlled.add(_control(each))


def _control(experiment: Experiment) -> tuple[str, int]:
    return experiment.student.model, experiment.seed


def _known(experiment: Experiment, task: Task, role: str) -> bool:
    path = experiment.folder / f"{task.script}.json"
    found = json.loads(path.read_text()).get(role, {}) if path.is_file() else {}
    return any(name.startswith(f"{task.data}/{task.script}_") for name in found)


def _begin(experiment: Experiment, task: Task, *more: str) -> None:
    say(f"{experiment.name}: {' '.join([task.script, 'on', task.data, *more])}")
    given = ["--data", task.data, "--seed", str(experiment.seed), *task.arguments, *more]
    command = [sys.executable, str(DOWNSTREAM / f"{task.script}.py"), str(experiment.folder), *given]
    if code := subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise RunError(f"{experiment.folder}: {task.script} ended with code {code}; what is finished is kept")


def protocols_of(measures: Collection[str]) -> list[str]:
    """Return the protocols that give some measures."""
    return [name for name in PROTOCOLS if {*measures} & {name, *MEASURED.get(name, ())}]


if __name__ == "__main__":
    main()
