"""The tables below experiments/papers/: what they expand to can run, and fills the layouts' cells."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.functional import pil_to_tensor

from raydistill.config import Experiment
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train
from raydistill.data.listed import path_id
from raydistill.errors import ConfigError, RunError
from raydistill.evaluation.card import Card
from raydistill.reporting.compare import pivot
from raydistill.reporting.layouts import Layout, layout_names, load_layout
from raydistill.reporting.runs import RunRecord
from tests.reporting.folders import make_run
from tests.test_experiments import images_of, setting_of, student_of, teacher_of

ROOT = Path(__file__).parents[1]
PAPERS = ROOT / "experiments" / "papers"
sys.path.insert(0, str(PAPERS))
sys.path.insert(0, str(ROOT / "experiments" / "downstream"))

import garments  # noqa: E402  a script's neighbour
import memory  # noqa: E402
import plan as plans  # noqa: E402
import run as script  # noqa: E402

SCALES = [(name, scale) for name in plans.table_names() for scale in plans.load_plan(name).scales]
TRAINED = [(name, scale) for name, scale in SCALES if not plans.load_plan(name).counted]


@cache
def expanded(
    name: str, scale: Any, seeds: int | None = None, methods: tuple[str, ...] | None = None
) -> list[Experiment]:
    return plans.students(plans.load_plan(name), scale, seeds, methods)


def asked(layout: Layout) -> set[str]:
    """Names that the cells of a layout show."""
    metrics = {layout.measure(row, column).metric for row in layout.rows for column in layout.columns}
    return {metric for metric in metrics if metric is not None}


def as_runs(experiments: list[Experiment], layout: Layout) -> list[RunRecord]:
    card = dict.fromkeys(asked(layout), 50.0)
    return [as_run(experiment, card) for experiment in experiments]


def as_run(experiment: Experiment, card: dict[str, float]) -> RunRecord:
    cards = {"student": card, "fresh": card} | ({"teacher": card} if experiment.teacher else {})
    record = memory.untrained(experiment, cards)
    return replace(record, top1=50.0, result={**record.result, "peer1_top1": 50.0})


def test_every_layout_has_a_table() -> None:
    assert {*plans.table_names()} == {*layout_names()}


def test_every_table_has_both_scales() -> None:
    for name in plans.table_names():
        plan = plans.load_plan(name)
        assert plan.layout == name and set(plan.scales) == {"paper", "mini"}


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_every_run_has_a_cell(name: str, scale: str) -> None:
    layout = plans.shown(plans.load_plan(name), scale)  # type: ignore[arg-type]
    table = pivot(as_runs(expanded(name, scale, seeds=2), layout), layout)
    assert not [note for note in table.notes if note.startswith("Not in the table")]
    if scale == "paper":
        assert table.columns == load_layout(name).columns
    ours = table.cells[(table.cells.n > 0) & ~table.cells.row.str.contains("Teacher")]
    assert {*ours.n} == {2}


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_data_that_cells_are_judged_on_is_there(name: str, scale: Any) -> None:
    plan = plans.load_plan(name)
    labels = {metric.rpartition("/")[0] for metric in asked(plans.shown(plan, scale))}
    there = {"", *plans.transfer(plan, scale), *(task.data for task in plan.tasks.get(scale, ()))}
    assert labels & there and (scale == "mini" or labels <= there)


FILLED = [
    *(f"crd-table{number}" for number in (1, 2, 4, 6, 7, 8, 10, 11)),
    *("crd-table5", "cocord-table3", "cocord-table6", "cocord-table8", "cocord-table12"),
    *(f"protocpc-table{number}" for number in (6, 7, 8, 9)),
]


@pytest.mark.parametrize("name", FILLED)
def test_the_papers_scale_fills_every_cell_of_its_table(name: str) -> None:
    layout = load_layout(name)
    cells = pivot(as_runs(expanded(name, "paper", seeds=2), layout), layout).cells
    cells = cells[cells.row.isin([row.label for row in layout.rows if row.role != "teacher"])]
    assert not cells.empty and (cells.n > 0).all()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("papers")


@pytest.mark.slow
@pytest.mark.parametrize("settings", sorted(path.stem for path in (PAPERS / "settings").glob("*.yaml")))
def test_every_method_finds_what_it_needs(settings: str, files: Path) -> None:
    sizes = [
        (name, scale)
        for name, scale in SCALES
        if settings in [part.settings for part in plans.load_plan(name).scales[scale]]
    ]
    # Tables share experiments.
    found = {each.name: each for name, scale in sizes for each in expanded(name, scale, seeds=1)}
    assert found
    for planned in found.values():
        if not planned.name.startswith(settings):
            continue  # another part's
        experiment = with_prototypes(planned, files)
        config, teacher = experiment.teacher, None
        if config is not None:
            teacher = teacher_of(config.model_dump_json(), *images_of(experiment.data), files)
        elif experiment.peers:  # each is the other's teacher
            teacher, _ = student_of(experiment.peers[0].model, *images_of(experiment.data))
        setting = setting_of(experiment, teacher)
        for names in experiment.all_needs.student.values():
            assert names <= set(setting.student)
        for method in experiment.methods.values():
            method.check(setting)


def with_prototypes(experiment: Experiment, files: Path) -> Experiment:
    """Return the experiment with random ones in the place of those that a teacher's file holds."""
    method: Any = experiment.methods.get("protocpc")
    if method is None or method.prototypes_file is None:
        return experiment
    assert experiment.teacher is not None
    width = {"swav": 128, "dino": 256, None: 64}[experiment.teacher.layout]
    path = files / f"{method.prototypes}.safetensors"
    save_file({method.prototypes_tensor: torch.randn(method.prototypes, width)}, path)
    return experiment.override({"methods.protocpc.prototypes_file": str(path)})


@pytest.mark.parametrize(("name", "scale"), TRAINED)
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


def test_parts_that_keep_different_rows_of_a_teacher_have_a_cache_each() -> None:
    (one, *_) = expanded("crd-table1", "mini", methods=("kd",))
    assert len(plans.caches([one, one.override({"data.subset": 500}), one.override({"train.epochs": 1})])) == 2


def test_settings_may_take_the_teachers_of_others() -> None:
    (own,), (others,) = (plans.teachers(plans.load_plan(f"protocpc-table{n}"), "mini") for n in (4, 5))
    assert own == others and others.data.subset == 12000


def test_networks_of_a_pair_are_trained_together_without_a_teacher() -> None:
    (together, *_) = expanded("crd-table9", "paper", methods=("at",))
    assert [peer.model for peer in together.peers] == ["wrn_40_2"] and together.teacher is None
    assert together.name != expanded("crd-table1", "paper", methods=("at",))[0].name
    (alone, *_) = expanded("crd-table9", "paper", methods=("student",))
    assert not alone.peers and alone == expanded("crd-table1", "paper", methods=("student",))[0]


def test_variants_change_their_keys_alone() -> None:
    base, other = (
        expanded("cocord-table7", "mini", methods=(m,), seeds=1)[0] for m in ("cocord", "cocord-no-contrast")
    )
    assert other == base.override({"methods.cocord.contrast_weight": 0.0, "name": other.name})
    assert base == expanded("cocord-table1", "mini", methods=("cocord",), seeds=1)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"variants": {"b": {"of": "kd", "set": {}}}},
        {"scales": {"mini": {"settings": "s", "seeds": 1, "methods": ["b"]}}},
    ],
)
def test_a_plan_names_the_methods_that_it_has(change: Mapping[str, Any]) -> None:
    part = {"settings": "s", "seeds": 1, "pairs": [["a", "b"]]}
    plan: dict[str, Any] = {"name": "n", "layout": "l", "methods": ["kd"], "scales": {"mini": part}}
    assert plans.Plan.model_validate(plan).scales["mini"][0].seeds == 1
    scales = {"mini": part | change.get("scales", {}).get("mini", {})}
    with pytest.raises(ValueError, match="b is none of the table's"):
        plans.Plan.model_validate(plan | change | {"scales": scales})


def test_data_sets_stand_in_for_others_at_a_scale() -> None:
    plan = plans.load_plan("crd-table4")
    assert asked(plans.shown(plan, "mini")) == {"digits/linear"}
    assert asked(plans.shown(plan, "paper")) == {"stl10/linear", "tiny_imagenet/linear"}


def test_memory_is_as_large_as_cocords_table_12_counts() -> None:
    layout = load_layout("cocord-table12")
    records = memory.counted(expanded("cocord-table12", "paper"), reference="crd")
    cells = pivot(records, layout).cells
    assert len(cells) == 6 and [*cells["mean"]] == pytest.approx([*cells.published], abs=0.005)


def test_a_counted_table_trains_nothing(
    trained: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "cocord-table12", "--scale", "mini"])
    script.main()
    assert not trained and "68.27 (1)" in Path("runs/papers/cocord-table12-mini.md").read_text()


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
        counted, taught = len(expanded(name, "mini")), plans.teachers(plans.load_plan(name), "mini")
        learning = "a student" if counted == 1 else f"{counted} students"
        assert f", for {learning}{' and a teacher' if taught else ''}." in head


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
    asked: list[tuple[list[str], list[str]]] = []
    gives = {"top5": {"top5": 95.0}, "linear": {"linear": 70.0, "digits/linear": 60.0}}

    def measured(run: Path, protocols: list[str], overrides: list[str]) -> Card:
        asked.append((protocols, overrides))
        return Card({"student": {name: value for each in protocols for name, value in gives[each].items()}}, {})

    def written(run: Path, card: Card) -> None:
        (run / "card.json").write_text(json.dumps(card.values))

    monkeypatch.setattr("raydistill.evaluation.card.examine_run", measured)
    monkeypatch.setattr("raydistill.evaluation.card.write_card", written)
    (experiment, *_) = expanded("crd-table1", "mini", methods=("kd",))
    experiment = experiment.model_copy(update={"output": str(tmp_path)})
    make_run(experiment.folder, 80.0)
    plan = plans.load_plan("crd-table4")
    data = plans.transfer(plan, "mini")
    script.measure([experiment], load_layout("crd-table1"), data)
    assert not asked
    for _ in range(2):
        script.measure([experiment], load_layout("crd-table3"), data)
        script.measure([experiment], plans.shown(plan, "mini"), data)
    (first, nothing), (second, digits) = asked
    assert (first, nothing) == (["top5"], ["evaluate.transfer={}"])
    assert second == ["linear"] and load_override(digits) == {"digits": data["digits"]}
    card = json.loads((experiment.folder / "card.json").read_text())
    assert card == {"student": gives["top5"] | gives["linear"]}


def load_override(overrides: list[str]) -> dict[str, DataConfig]:
    """Return the data sets of an override, read as the command line is."""
    read = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
    assert isinstance(read, dict)
    return {label: DataConfig.model_validate(data) for label, data in read["evaluate"]["transfer"].items()}


TASKS = [
    pytest.param(task, id=f"{name}-{scale}-{task.data}")
    for name in plans.table_names()
    for scale, tasks in plans.load_plan(name).tasks.items()
    for task in tasks
]


@pytest.mark.parametrize("task", TASKS)
def test_scripts_of_other_tasks_know_their_arguments(task: plans.Task, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__(task.script)
    monkeypatch.setattr(sys, "argv", [f"{task.script}.py", "RUN", "--data", task.data, *task.arguments, "--seed", "1"])
    assert module._arguments().data == task.data


def test_other_tasks_begin_with_each_run_and_once_for_a_seed_with_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def note(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        folder, role = Path(command[2]), "fresh" if command[-1] == "--fresh" else "student"
        begun.append(shlex.join([folder.name, *command[3:]]))
        path = folder / Path(command[1]).with_suffix(".json").name
        found = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**found, role: {"synthetic/detection_ap": 50.0}}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", note)
    (task,) = plans.load_plan("cocord-table8").tasks["mini"]
    alone, crd, *_ = [
        each.model_copy(update={"output": str(tmp_path)}) for each in expanded("cocord-table8", "mini", seeds=1)
    ]
    for each in (alone, crd):
        make_run(each.folder, 80.0)
    given = "--data synthetic --seed 0 --channels 32 --levels 2 --train-batch-norm"
    script.hand_on([crd], task, with_control=False)
    assert begun == [f"{crd.name} {given}"]
    for _ in range(2):
        script.hand_on([alone, crd], task, with_control=True)
    assert begun[1:] == [f"{alone.name} {given}", f"{alone.name} {given} --fresh"]
    monkeypatch.setattr(subprocess, "run", lambda command, **given: subprocess.CompletedProcess(command, 2))
    with pytest.raises(RunError, match="detection ended with code 2"):
        script.hand_on([crd], task.model_copy(update={"data": "voc"}), with_control=False)


def test_pictures_of_garments_show_what_their_lists_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garments, "PICTURES", {"trainval": 12, "test": 5})
    described = plans.transfer(plans.load_plan("compress-table7"), "mini")["garments"]
    config = described.model_copy(update={"root": str(tmp_path), "image_size": 16})
    source = DataConfig.model_validate({"name": "digits"})
    garments.draw_garments(tmp_path, source)
    train, test = load_train(config), load_test(config)
    assert (len(train), len(test), train.shape) == (12, 5, (1, 16, 16))
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    garments.draw_garments(tmp_path, source)
    assert written == {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    # Each quarter is the digit that looks most like it, and the picture shows the classes of its quarters.
    digits = load_test(source)
    known = digits.images.flatten(1).float()
    names = sorted(tmp_path.glob("JPEGImages/*.jpg"))[-5:]
    targets = {int(each): row for each, row in zip(test.ids, test.targets.tolist(), strict=True)}
    for path in names:
        pixels = pil_to_tensor(Image.open(path))[0].float()
        quarters = pixels.unfold(0, 8, 8).unfold(1, 8, 8).reshape(4, 64)
        nearest = torch.cdist(quarters, known).argmin(dim=1)
        classes = {int(label) for label in digits.labels[nearest]}
        row = targets[path_id(f"JPEGImages/{path.name}")]
        assert {number for number, value in enumerate(row) if value == 1} == classes
        assert {*row} == {-1, 1}
