from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydistill.errors import ConfigError
from raydistill.reporting.compare import DOWN, UP, Table, pivot
from raydistill.reporting.layouts import Layout, layout_names, load_layout, parse_layout
from raydistill.reporting.rendering import FORMATS, chosen_format, filled, general, rendered
from raydistill.reporting.runs import RunRecord
from raydistill.reporting.tables import DASH

LAYOUT = parse_layout(
    "small",
    {
        "title": "Accuracy & more",
        "source": {"paper": "P", "table": 1, "where": "a place"},
        "setting": "digits",
        "metric": "top1",
        "implied": ["ce"],
        "baseline": "KD",
        "columns": [
            {"label": "A → B", "teacher": "wrn_16_2", "student": "resnet8"},
            {"label": "C → B", "teacher": "resnet56", "student": "resnet8"},
        ],
        "rows": [
            {"label": "Teacher", "role": "teacher", "values": [90.0, 91.0]},
            {"label": "Student", "role": "student", "values": [80.0, 80.0]},
            {"label": "KD", "methods": ["kd"], "values": [82.0, None]},
            {"label": "CRD", "methods": ["crd"], "values": [83.0, 84.0], "std": [0.1, None]},
            {"label": "CRD+KD", "methods": ["crd", "kd"], "values": [85.0, 86.0]},
            {"label": "Foreign", "values": [50.0, 51.0]},
        ],
        "remarks": ["a remark"],
    },
)


def run(top1: float | None, *methods: str, seed: int = 0, teacher: str | None = "wrn_16_2", **change: Any) -> RunRecord:
    values: dict[str, Any] = {
        "path": Path(f"runs/{'-'.join(methods)}-{teacher}-{seed}-{change.get('epochs', 8)}"),
        "kind": "train",
        "student": "resnet8",
        "settings": {},
        "epochs": 8,
        "card": {},
        "data": {"name": "digits", "root": f"somewhere{seed}"},
    } | change
    config = {
        "data": values["data"],
        "teacher": {"model": teacher, "weights": "w"} if teacher else None,
        "student": {"model": values["student"]},
        "methods": {method: values["settings"].get(method, {"weight": 1.0}) for method in methods},
        **values.get("sections", {}),
    }
    return RunRecord(
        path=values["path"],
        kind=values["kind"],
        name=values["path"].name,
        seed=seed,
        student=values["student"],
        methods=methods,
        top1=top1,
        config=config,
        environment={},
        result={"epochs": values["epochs"]},
        card=values["card"],
    )


def runs(values: list[float], *methods: str, **change: Any) -> list[RunRecord]:
    return [run(value, *methods, seed=seed, **change) for seed, value in enumerate(values)]


def cell(table: Table, row: str, column: str = "A → B") -> dict[str, Any]:
    found = table.cells[(table.cells.row == row) & (table.cells.column == column)].to_dict("records")
    return {str(key): value for key, value in found[0].items()} if found else {}


def unplaced(table: Table) -> list[str]:
    return [note for note in table.notes if note.startswith("Not in the table")]


def test_a_cell_has_mean_deviation_and_number_over_seeds_beside_the_published_value() -> None:
    table = pivot(runs([80.0, 81.0, 85.0], "ce", "crd"), LAYOUT)
    found = cell(table, "CRD")
    assert (found["mean"], found["n"]) == (82.0, 3)
    assert found["std"] == pytest.approx(math.sqrt(7.0))
    assert (found["published"], found["published_std"]) == (83.0, 0.1)
    assert not unplaced(table)


def test_a_published_value_stands_where_nothing_ran_and_empty_cells_are_left_out() -> None:
    table = pivot(runs([80.0], "ce", "crd"), LAYOUT)
    other = cell(table, "CRD", "C → B")
    assert (other["n"], other["published"]) == (0, 84.0) and math.isnan(other["mean"])
    assert not cell(table, "KD", "C → B")
    assert cell(table, "Foreign")["published"] == 50.0


def test_one_seed_has_no_deviation_and_no_arrow() -> None:
    table = pivot([*runs([80.0], "ce", "kd"), *runs([99.0], "ce", "crd")], LAYOUT)
    assert math.isnan(cell(table, "CRD")["std"]) and cell(table, "CRD")["arrow"] == ""


@pytest.mark.parametrize(
    ("values", "arrow"), [([84.0, 85.0], UP), ([74.0, 75.0], DOWN), ([80.4, 81.4], ""), ([81.0, 82.0], UP)]
)
def test_arrows_are_for_differences_beyond_their_deviation(values: list[float], arrow: str) -> None:
    # Both deviations are sqrt(1/2), that of the difference is 1: exactly 1 is no more than it.
    table = pivot([*runs([79.5, 80.5], "ce", "kd"), *runs(values, "ce", "crd")], LAYOUT)
    assert cell(table, "CRD")["arrow"] == arrow
    assert cell(table, "KD")["arrow"] == ""


def test_an_arrow_needs_the_same_data_and_epochs() -> None:
    table = pivot([*runs([70.0, 70.1], "ce", "kd", epochs=2), *runs([80.0, 80.1], "ce", "crd")], LAYOUT)
    assert cell(table, "CRD")["arrow"] == ""


def test_lower_errors_are_better() -> None:
    errors = parse_layout(
        "errors",
        LAYOUT.model_dump(exclude={"name", "metric"})
        | {"columns": [{**c.model_dump(), "metric": "top1", "error": True} for c in LAYOUT.columns]},
    )
    table = pivot([*runs([70.0, 70.1], "ce", "kd"), *runs([80.0, 80.1], "ce", "crd")], errors)
    assert cell(table, "KD")["mean"] == pytest.approx(29.95)
    assert cell(table, "CRD")["mean"] == pytest.approx(19.95) and cell(table, "CRD")["arrow"] == UP


def test_runs_of_one_seed_count_once() -> None:
    again = run(90.0, "ce", "kd", seed=0, path=Path("runs/again"))
    found = cell(pivot([*runs([80.0, 81.0], "ce", "kd"), again], LAYOUT), "KD")
    assert (found["mean"], found["n"]) == (83.0, 2)


def test_the_student_alone_stands_in_every_column_of_its_network() -> None:
    table = pivot(runs([70.0, 72.0], "ce", teacher=None), LAYOUT)
    assert [cell(table, "Student", column.label)["mean"] for column in LAYOUT.columns] == [71.0, 71.0]


def test_the_teacher_is_known_by_its_run_or_by_its_students_cards() -> None:
    own = run(90.5, "ce", kind="teacher", student="wrn_16_2", teacher=None)
    seen = runs([80.0, 81.0], "ce", "kd", teacher="resnet56", card={"teacher": {"top1": 92.0}})
    table = pivot([own, *seen], LAYOUT)
    assert (cell(table, "Teacher")["mean"], cell(table, "Teacher")["n"]) == (90.5, 1)
    assert (cell(table, "Teacher", "C → B")["mean"], cell(table, "Teacher", "C → B")["n"]) == (92.0, 1)


def test_labels_of_ones_own_are_known_by_the_method_behind_them() -> None:
    named = run(80.0, "ce", "again", settings={"again": {"name": "kd", "weight": 1.0}})
    assert cell(pivot([named], LAYOUT), "KD")["mean"] == 80.0


def test_a_pair_that_the_paper_does_not_have_gets_a_column() -> None:
    table = pivot(runs([80.0, 81.0], "ce", "crd", teacher="resnet20"), LAYOUT)
    assert [column.label for column in table.columns] == ["A → B", "C → B", "resnet20 → resnet8"]
    found = cell(table, "CRD", "resnet20 → resnet8")
    assert (found["mean"] == 80.5 and found["published"] is None) or math.isnan(found["published"])
    assert not unplaced(table)


def test_a_pairs_own_column_tells_what_it_shows_where_columns_differ_in_that() -> None:
    columns = [{"label": "A → B", "teacher": "wrn_16_2", "student": "resnet8", "metric": "stl10/linear"}]
    rows = [{"label": "KD", "methods": ["kd"], "values": [70.0]}]
    layout = parse_layout("elsewhere", LAYOUT.model_dump(exclude={"name"}) | {"columns": columns, "rows": rows})
    record = run(80.0, "ce", "kd", teacher="resnet20", card={"student": {"stl10/linear": 60.0}})
    table = pivot([record], layout)
    assert cell(table, "KD", "resnet20 → resnet8, stl10/linear")["mean"] == 60.0


def test_a_network_without_a_teacher_gets_a_column_where_the_paper_has_none_either() -> None:
    layout = load_layout("protocpc-table6")
    table = pivot([run(None, "dino", teacher=None, card={"student": {"knn": 60.0}})], layout)
    assert cell(table, "DINO", "resnet8, knn")["mean"] == 60.0 and not unplaced(table)


def test_networks_that_learned_together_have_rows_of_their_own() -> None:
    layout = load_layout("crd-table9")
    together = run(70.0, "ce", "kd", student="wrn_16_2", teacher=None, sections={"peers": [{"model": "wrn_40_2"}]})
    together.result["peer1_top1"] = 75.0  # type: ignore[index]
    apart = run(60.0, "ce", "kd", student="wrn_16_2", teacher="wrn_40_2")
    table = pivot([together, apart], layout)
    pair = "WRN-40-2 → WRN-16-2"
    assert (cell(table, "KD, student", pair)["mean"], cell(table, "KD, teacher", pair)["mean"]) == (70.0, 75.0)
    (told,) = unplaced(table)
    assert str(apart.path) in told and "no row has the methods ce + kd" in told
    other = pivot([together], load_layout("crd-table1"))
    assert not other.cells["n"].any() and len(unplaced(other)) == 1


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (run(80.0, "ce", "pkt"), "no row has the methods ce + pkt"),
        (run(80.0, "kd"), "no row has the methods kd"),
        (run(80.0, "ce", "kd", "kd2", settings={"kd2": {"name": "kd"}}), "no row has the methods ce + kd + kd"),
        (run(80.0, "ce", "kd", kind="tune"), "it is of the kind 'tune'"),
        (run(80.0, "ce", kind="teacher", student="vgg13"), "no column has the teacher vgg13"),
        (run(80.0, "ce", student="vgg8", teacher=None), "no column has the pair None → vgg8"),
        (run(80.0, "ce", "kd", sections={"ensemble": [{"model": "vgg13"}]}), "it has several teachers or peers"),
        (run(None, "ce", "kd"), "its card has no top1"),
    ],
)
def test_a_run_without_a_place_is_told_of(odd: RunRecord, said: str) -> None:
    table = pivot([odd, *runs([80.0], "ce", "crd")], LAYOUT)
    (told,) = unplaced(table)
    assert str(odd.path) in told and said in told
    assert table.cells["n"].sum() == 1


def test_a_cell_never_mixes_settings() -> None:
    short = runs([10.0], "ce", "kd", epochs=1)
    table = pivot([*short, *runs([80.0, 82.0], "ce", "kd")], LAYOUT)
    assert (cell(table, "KD")["mean"], cell(table, "KD")["n"]) == (81.0, 2)
    (told,) = unplaced(table)
    assert str(short[0].path) in told and "another setting than that of the cell KD, A → B" in told


def test_settings_tell_variants_of_a_method_apart() -> None:
    layout = load_layout("compress-table2")
    shared: dict[str, Any] = {
        "teacher": "torchvision/resnet50",
        "student": "torchvision/resnet18",
        "sections": {"teacher": {"model": "torchvision/resnet50", "layout": "swav"}},
    }
    of = {queues: {"compress": {"weight": 1.0, "queues": queues}} for queues in ("1q", "2q")}
    records = [
        run(None, "compress", settings=of["1q"], card={"student": {"nn1": 55.0, "linear_compress": 64.0}}, **shared),
        run(None, "compress", settings=of["2q"], seed=1, card={"student": {"nn1": 52.0}}, **shared),
    ]
    table = pivot(records, layout)
    label = "SwAV ResNet-50 → ResNet-18, "
    assert cell(table, "Ours-1q", label + "NN")["mean"] == 55.0
    assert cell(table, "Ours-1q", label + "Linear")["mean"] == 64.0
    assert cell(table, "Ours-2q", label + "NN")["mean"] == 52.0
    assert cell(table, "Ours-2q", label + "Linear")["n"] == 0
    assert not unplaced(table)


def test_costs_are_those_of_any_student_in_the_tables_unit() -> None:
    card = {"student": {"parameters": 278_324, "mult_adds": 41e6}, "teacher": {"parameters": 861_620}}
    shared: dict[str, Any] = {"student": "resnet20", "teacher": "resnet56", "card": card}
    table = pivot([run(80.0, "ce", "kd", **shared), run(80.0, "ce", "at", **shared)], load_layout("cocord-table9"))
    pair = "resnet56 → resnet20"
    assert cell(table, "Student, parameters (K)", pair)["mean"] == pytest.approx(278.324)
    assert cell(table, "Teacher, parameters (K)", pair)["mean"] == pytest.approx(861.62)
    assert cell(table, "Student, mult-adds (M)", pair)["mean"] == pytest.approx(41.0)


def test_what_a_student_was_worth_for_other_tasks_stands_beside_the_published_value() -> None:
    """Detection and segmentation, from the files that experiments/downstream leaves."""
    pair = {"teacher": "torchvision/resnet101", "student": "torchvision/resnet50"}
    detectors = {"voc/detection_ap": 51.0, "voc/detection_ap50": 79.0}
    table = pivot(runs([75.0], "ce", "cocord", card={"student": detectors}, **pair), load_layout("cocord-table8"))
    found = {
        column: cell(table, "CoCoRD", column) for column in ("ImageNet, top-1", "VOC, AP", "VOC, AP50", "COCO, AP")
    }
    assert [(each["n"], each["published"]) for each in found.values()] == [(1, 77.57), (1, 55.0), (1, 82.0), (0, 41.0)]
    assert (found["VOC, AP"]["mean"], found["VOC, AP50"]["mean"]) == (51.0, 79.0)
    card = {"student": {"nyu_depth_v2/segmentation_miou": 37.0}}
    made = runs([20.0], "at", "kd", card=card, teacher="torchvision/resnet18")
    table = pivot(made, load_layout("crd-table5"))
    assert cell(table, "KD+AT", "mIoU")["mean"] == 37.0 and cell(table, "KD+AT", "mIoU")["published"] == 39.5
    assert cell(table, "KD+AT", "Pix. Acc.")["n"] == 0


def test_layouts_show_what_a_run_spent() -> None:
    layout = parse_layout("spent", LAYOUT.model_dump(exclude={"name", "metric"}) | {"metric": "energy_j"})
    spent = [replace(each, result={**each.result, "energy_j": 500.0}) for each in runs([80.0, 81.0], "ce", "kd")]
    assert cell(pivot(spent, layout), "KD", "A → B")["mean"] == 500.0
    assert cell(pivot(runs([80.0], "ce", "kd"), layout), "KD", "A → B")["n"] == 0


def test_random_weights_have_a_row_of_their_own_whatever_run_noted_them() -> None:
    pair = {"teacher": "torchvision/resnet101", "student": "torchvision/resnet50"}
    one, other = runs([75.0, 75.5], "ce", "cocord", card={"fresh": {"voc/detection_ap": 30.0}}, **pair)
    unknown = run(74.0, "ce", "pkt", card={"fresh": {"voc/detection_ap": 90.0}}, **{**pair, "student": "resnet8"})
    table = pivot([one, other, unknown], load_layout("cocord-table8"))
    found = cell(table, "scratch", "VOC, AP")
    assert (found["mean"], found["n"], found["published"], found["arrow"]) == (30.0, 2, 33.8, "")
    assert any("no row has the methods ce + pkt" in note for note in table.notes)


def test_notes_tell_source_and_setting_of_both_sides() -> None:
    notes = " ".join(pivot(runs([80.0, 81.0], "ce", "kd", data={"name": "digits", "subset": 900}), LAYOUT).notes)
    assert "P, Table 1 of a place; digits." in notes
    assert "Ours: digits, 900 training images, 8 epochs." in notes and notes.endswith("a remark")


@pytest.fixture
def table() -> Table:
    students = [*runs([79.5, 80.5], "ce", "kd"), *runs([84.5, 85.5], "ce", "crd")]
    return pivot([*students, *runs([70.0], "ce", "pkt")], LAYOUT)


def test_markdown_shows_ours_arrow_and_published(table: Table) -> None:
    text = rendered(filled(table), "markdown")
    assert "| CRD | 85.00 ± 0.71 (2) ↑ [83.00 ± 0.10] | [84.00] |" in text
    assert f"| KD | 80.00 ± 0.71 (2) [82.00] | {DASH} |" in text
    assert text.startswith("**P, Table 1: Accuracy & more**") and "runs/ce-pkt" in text


def test_latex_needs_booktabs_and_escapes(table: Table) -> None:
    text = rendered(filled(table), "latex")
    assert r"CRD & 85.00 $\pm$ 0.71 (2) $\uparrow$ [83.00 $\pm$ 0.10] & [84.00] \\" in text
    assert r"Accuracy \& more" in text and r"A $\rightarrow$ B" in text and r"\toprule" in text
    assert r"\begin{tabular}{lrr}" in text


def test_latex_of_every_layout_is_ascii_but_for_its_comments() -> None:
    for name in layout_names():
        text = rendered(filled(pivot([], load_layout(name))), "latex")
        assert "".join(line for line in text.splitlines() if not line.startswith("% ")).isascii(), name


def test_csv_is_tidy(table: Table) -> None:
    lines = list(csv.DictReader(io.StringIO(rendered(filled(table), "csv"))))
    (crd,) = [line for line in lines if (line["row"], line["column"]) == ("CRD", "A → B")]
    assert (float(crd["mean"]), int(crd["n"]), float(crd["published"]), crd["arrow"]) == (85.0, 2, 83.0, UP)
    assert list(crd) == ["row", "column", "mean", "std", "n", "published", "published_std", "arrow"]


def test_json_has_cells_layout_and_notes(table: Table) -> None:
    values = json.loads(rendered(filled(table), "json"))
    assert values["layout"] == "small" and len(values["notes"]) == len(table.notes)
    (kd,) = [line for line in values["table"] if (line["row"], line["column"]) == ("KD", "A → B")]
    assert (kd["mean"], kd["published"], kd["published_std"]) == (80.0, 82.0, None)


def test_the_terminal_shows_every_row(table: Table) -> None:
    text = rendered(filled(table), "terminal")
    assert all(row.label in text for row in LAYOUT.rows) and "85.00 ± 0.71" in text and "[83.00 ± 0.10]" in text


def test_without_a_layout_there_is_the_comparison_with_the_student_alone() -> None:
    sheet = general([*runs([70.0, 71.0], "ce"), *runs([80.0, 81.0], "ce", "kd")])
    for name in FORMATS:
        assert "resnet8: ce + kd" in rendered(sheet, name)
    values = json.loads(rendered(sheet, "json"))
    assert values["layout"] is None and values["table"][-1]["verdict"] == "better"


def test_a_files_ending_tells_the_format(tmp_path: Path) -> None:
    assert chosen_format(None) == "terminal" and chosen_format("csv", tmp_path / "a.tex") == "csv"
    assert chosen_format(None, tmp_path / "a.tex") == "latex"
    with pytest.raises(ConfigError, match="tells no format"):
        chosen_format(None, tmp_path / "a.docx")
    with pytest.raises(ConfigError, match="did you mean 'latex'"):
        chosen_format("latx")
    with pytest.raises(ConfigError, match="is a folder"):
        chosen_format(None, tmp_path)


def test_every_layout_without_runs_shows_what_was_published() -> None:
    for name in layout_names():
        layout: Layout = load_layout(name)
        table = pivot([], layout)
        published = sum(value is not None for row in layout.rows for value in row.values)
        assert len(table.cells) == published and not table.cells["n"].any()
