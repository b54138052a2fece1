"""The tables below experiments/papers/: what they expand to can run, and fills the layouts' cells."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import Experiment
from raydistill.errors import ConfigError
from raydistill.evaluation.card import Card
from raydistill.reporting.compare import pivot
from raydistill.reporting.layouts import layout_names, load_layout
from raydistill.reporting.runs import RunRecord
from tests.reporting.folders import make_run
from tests.test_experiments import _images, _setting, _teacher

PAPERS = Path(__file__).parents[1] / "experiments" / "papers"
sys.path.insert(0, str(PAPERS))

import plan as plans  # noqa: E402  a script's neighbour
import run as script  # noqa: E402

SCALES = [(name, scale) for name in plans.table_names() for scale in plans.load_plan(name).scales]
CARD = dict.fromkeys(["top1", "top5", "linear", "knn", "nn1"], 50.0)


@cache
def expanded(
    name: str, scale: Any, seeds: int | None = None, methods: tuple[str, ...] | None = None
) -> list[Experiment]:
    return plans.students(plans.load_plan(name), scale, seeds, methods)


def as_run(experiment: Experiment) -> RunRecord:
    return RunRecord(
        path=experiment.folder,
        kind="train",
        name=experiment.name,
        seed=experiment.seed,
        student=experiment.student.model,
        methods=tuple(experiment.methods),
        top1=50.0,
        config=experiment.to_dict(),
        environment={},
        result={"epochs": experiment.train.epochs},
        card={"student": CARD},
    )


def test_every_table_has_a_layout_and_both_scales() -> None:
    assert plans.table_names() and {*plans.table_names()} <= {*layout_names()}
    for name in plans.table_names():
        plan = plans.load_plan(name)
        assert plan.layout == name and set(plan.scales) == {"paper", "mini"}


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_every_run_has_a_cell(name: str, scale: str) -> None:
    layout = load_layout(name)
    table = pivot([as_run(experiment) for experiment in expanded(name, scale, seeds=2)], layout)
    assert not [note for note in table.notes if note.startswith("Not in the table")]
    if scale == "paper":
        assert table.columns == layout.columns
    assert {*table.cells[table.cells.n > 0].n} == {2}


@pytest.mark.parametrize("name", ["crd-table1", "crd-table2", "crd-table6", "crd-table7", "protocpc-table8"])
def test_the_papers_scale_fills_every_cell_of_its_table(name: str) -> None:
    layout = load_layout(name)
    cells = pivot([as_run(experiment) for experiment in expanded(name, "paper", seeds=2)], layout).cells
    ours = {(row, column) for row, column, n in zip(cells.row, cells.column, cells.n, strict=True) if n}
    students = [row.label for row in layout.rows if row.role != "teacher"]
    published = {(row, column) for row, column in zip(cells.row, cells.column, strict=True) if row in students}
    assert ours == published


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("papers")


@pytest.mark.slow
@pytest.mark.parametrize("settings", sorted(path.stem for path in (PAPERS / "settings").glob("*.yaml")))
def test_every_method_finds_what_it_needs(settings: str, files: Path) -> None:
    sizes = [(name, scale) for name, scale in SCALES if plans.load_plan(name).scales[scale].settings == settings]
    # Tables share experiments.
    found = {each.name: each for name, scale in sizes for each in expanded(name, scale, seeds=1)}
    assert found
    for experiment in found.values():
        config, teacher = experiment.teacher, None
        if config is not None:
            teacher = _teacher(config.model_dump_json(), *_images(experiment.data), files)
        setting = _setting(experiment, teacher)
        for names in experiment.all_needs.student.values():
            assert names <= set(setting.student)
        for method in experiment.methods.values():
            method.check(setting)


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_teachers_are_trained_where_students_look_for_them(name: str, scale: Any) -> None:
    plan = plans.load_plan(name)
    made = {str(each.teacher and each.teacher.weights): each for each in plans.teachers(plan, scale)}
    for student in expanded(name, scale, seeds=2):
        if student.teacher is not None and student.teacher.layout is None:
            assert made[str(student.teacher.weights)].student.model == student.teacher.model
    for teacher in made.values():
        assert (
            list(teacher.methods) == ["ce"]
            and teacher.folder == Path(str(teacher.teacher and teacher.teacher.weights)).parent
        )


def test_weights_are_those_of_crds_list() -> None:
    told = {
        "fitnet": 100, "at": 1000, "sp": 3000, "cc": 0.02, "vid": 1, "rkd": 1, "pkt": 30000,
        "ab": 0, "ft": 500, "fsp": 0, "nst": 50, "crd": 0.8, "kd": 0.9,
    }  # fmt: skip
    for scale in ("paper", "mini"):
        for method, weight in told.items():
            (experiment, *_) = expanded("crd-table1", scale, methods=(method,), seeds=1)
            assert experiment.weights == {"ce": 0.1 if method == "kd" else 1.0, method: weight}


def test_schedules_are_those_of_the_papers() -> None:
    (wide, *_), (narrow, *_) = (expanded(f"crd-table{n}", "paper", methods=("kd",), seeds=1) for n in (1, 2))
    assert (wide.train.epochs, wide.train.schedule.milestones) == (240, (150, 180, 210))
    assert (wide.train.optimizer.lr, narrow.train.optimizer.lr) == (0.05, 0.01)
    assert wide.train.batch_size == 64 and wide.train.optimizer.weight_decay == 5e-4


def test_maps_make_the_teacher_live_and_embeddings_come_from_the_cache() -> None:
    sources = {
        method: expanded("crd-table1", "mini", methods=(method,), seeds=1)[0].teacher for method in ("at", "kd", "crd")
    }
    assert [each and each.source for each in sources.values()] == ["live", "cache", "cache"]
    assert len(plans.caches(expanded("crd-table1", "mini"))) == 1


def test_tables_of_the_same_settings_share_their_runs() -> None:
    first, second = ({each.name: each for each in expanded(f"{paper}-table1", "mini")} for paper in ("crd", "cocord"))
    shared = first.keys() & second.keys()
    assert len(shared) == 3 * 15 and all(first[name] == second[name] for name in shared)


@pytest.mark.parametrize(
    ("name", "methods", "said"),
    [("crd-tabel1", None, "did you mean 'crd-table1'"), ("crd-table1", ("kdd",), "did you mean 'kd'")],
)
def test_unknown_names_are_told(name: str, methods: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        expanded(name, "mini", methods=methods)


def test_the_head_tells_the_commands() -> None:
    for name in plans.table_names():
        head = (PAPERS / f"{name}.yaml").read_text("utf-8")
        assert f"#   python experiments/papers/run.py {name}\n" in head
        assert f"#   python experiments/papers/run.py {name} --scale mini\n" in head
        counted = len(expanded(name, "mini"))
        assert f", for {counted} students and a teacher." in head


@dataclass
class Built:
    computed_rows: int = 0
    reused_rows: int = 0
    seconds: float = 0.0


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Leave made runs behind in place of training; the names of what was asked for, in order."""
    asked: list[str] = []
    monkeypatch.chdir(tmp_path)

    def leave(experiment: Experiment, kind: str) -> Path:
        asked.append(experiment.name)
        folder, top1 = experiment.folder, 80.0 + experiment.seed
        return make_run(
            folder, top1, list(experiment.methods), seed=experiment.seed, model=experiment.student.model, kind=kind
        )

    monkeypatch.setattr(script, "taught", lambda experiment: str(leave(experiment, "teacher")))
    monkeypatch.setattr(script, "trained", lambda experiment: {"run": str(leave(experiment, "train"))})
    monkeypatch.setattr(script, "build_cache", lambda experiment, progress: asked.append("cache") or Built())
    yield asked


def test_a_table_is_made_of_its_teacher_its_cache_and_its_students(
    trained: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ["crd-table1", "--scale", "mini", "--methods", "student", "kd", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["run.py", *chosen])
    script.main()
    pair = "fashion-mnist-resnet20-resnet8-kd"
    assert trained == [
        "fashion-mnist-teacher-resnet20",
        "cache",
        "fashion-mnist-resnet8-student-seed0",
        f"{pair}-seed0",
        "fashion-mnist-resnet8-student-seed1",
        f"{pair}-seed1",
    ]
    written = Path("runs/papers/crd-table1-mini.md").read_text()
    assert "80.50 ± 0.71 (2)" in written and "80.50 ± 0.71" in capsys.readouterr().out


def test_a_dry_run_trains_nothing(
    trained: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "crd-table1", "--scale", "mini", "--dry-run"])
    script.main()
    assert not trained and "1 teachers, 1 caches, 45 students" in capsys.readouterr().out


def test_cards_are_measured_only_where_a_layout_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def measured(run: Path, protocols: list[str]) -> Card:
        asked.append(protocols)
        return Card({"student": {}}, {})

    def written(run: Path, card: Card) -> None:
        (run / "card.json").write_text(json.dumps(card.values))

    monkeypatch.setattr("raydistill.evaluation.card.examine_run", measured)
    monkeypatch.setattr("raydistill.evaluation.card.write_card", written)
    run = make_run(tmp_path / "run", 80.0)
    script.measure([run], load_layout("crd-table1"))
    assert not asked
    for _ in range(2):
        script.measure([run], load_layout("crd-table3"))
    assert asked == [["top5"]] and json.loads((run / "card.json").read_text()) == {"student": {}}
