from __future__ import annotations

from typing import Any

import pytest

from raydistill.errors import ConfigError
from raydistill.methods.registry import METHODS, method_class
from raydistill.models.zoo import check_name
from raydistill.protocol_names import PROTOCOLS
from raydistill.reporting.layouts import Layout, Measure, layout_names, load_layout, parse_layout

LAYOUTS = {name: load_layout(name) for name in layout_names()}
MEASURED = {
    *PROTOCOLS,
    *("one_shot", "nn1@1%", "nn1@10%", "linear_top1@1%", "linear_top5@1%", "linear_top1@10%", "linear_top5@10%"),
    *(f"recall@{k}" for k in (1, 2, 4, 8)),
    *("parameters", "mult_adds", "latency_p50_ms"),
    *("detection_ap", "detection_ap50", "detection_ap75"),
    *("segmentation_miou", "segmentation_pixel_accuracy"),
    *("memory_mb", "memory_share"),
}

PUBLISHED_IN_PLACE = {
    "crd": set(range(1, 12)),
    "cocord": {1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12},
    "protocpc": set(range(1, 10)),
    "compress": set(range(1, 8)),
}

SMALL: dict[str, Any] = {
    "title": "a table",
    "source": {"paper": "P", "table": 1, "where": "a place"},
    "setting": "digits",
    "columns": [{"label": "a"}, {"label": "b"}],
    "rows": [{"label": "KD", "methods": ["kd"], "values": [1.0, None]}],
}


def values(name: str, row: str) -> tuple[float | None, ...]:
    return next(each.values for each in LAYOUTS[name].rows if each.label == row)


def needs_a_file(wanted: object) -> bool:
    return wanted == "pretrained"


def value(name: str, row: str, column: str) -> float:
    position = [each.label for each in LAYOUTS[name].columns].index(column)
    found = values(name, row)[position]
    assert found is not None
    return found


def test_every_table_that_can_be_read_is_there() -> None:
    expected = [f"{paper}-table{number}" for paper, numbers in PUBLISHED_IN_PLACE.items() for number in numbers]
    assert sorted(LAYOUTS) == sorted(expected)


def test_names_are_in_order_of_papers_and_numbers() -> None:
    ours = [name for name in layout_names() if name.startswith("crd")]
    assert ours[:2] == ["crd-table1", "crd-table2"] and ours[-2:] == ["crd-table10", "crd-table11"]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layouts_name_is_its_source(layout: Layout) -> None:
    paper = {"CompRes": "compress"}.get(layout.source.paper, layout.source.paper.lower())
    assert layout.name == f"{paper}-table{layout.source.table}"


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_asks_for_networks_methods_and_measures_that_exist(layout: Layout) -> None:
    for column in layout.columns:
        for model in filter(None, (column.teacher, column.student)):
            check_name(model)
    for row in layout.rows:
        assert {*(row.methods or ()), *layout.implied} <= set(METHODS)
        assert (row.methods is None) or row.role in ("distilled", "mutual", "peer")
    metrics = {part.metric for part in (*layout.rows, *layout.columns)} | {layout.metric}
    assert {metric.rpartition("/")[2] for metric in metrics if metric is not None} <= MEASURED


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_settings_are_keys_of_an_experiment(layout: Layout) -> None:
    for row in layout.rows:
        for key, wanted in row.settings.items():
            section, name, *field = key.split(".")
            if section == "methods":
                assert row.methods is not None and name in row.methods
                assert field[0] in method_class(name).model_fields
                assert needs_a_file(wanted) or method_class(name).model_validate({field[0]: wanted})
            else:
                assert key in {"student.model", "teacher.model", "train.epochs"}
    assert {key for column in layout.columns for key in column.settings} <= {"teacher.layout", "data.name"}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_no_two_rows_take_the_same_runs(layout: Layout) -> None:
    taken = [
        (row.role, row.methods, row.metric, str(sorted(row.settings.items())))
        for row in layout.rows
        if (row.methods is not None or row.role != "distilled") and (row.metric or layout.metric)
    ]
    assert len({*taken}) == len(taken)


@pytest.mark.parametrize("paper", PUBLISHED_IN_PLACE)
def test_accuracies_are_those_of_percent(paper: str) -> None:
    for name, layout in LAYOUTS.items():
        if name.startswith(paper) and name not in {f"cocord-table{number}" for number in (9, 10, 11, 12)}:
            shown = [value for row in layout.rows for value in row.values if value is not None]
            assert shown and all(5 < value < 100 for value in shown)


def test_what_papers_took_over_from_each_other_is_equal() -> None:
    for number in (1, 2):
        first = {row.label: row.values for row in LAYOUTS[f"crd-table{number}"].rows}
        with_std = {row.label: row.values for row in LAYOUTS[f"crd-table{number + 9}"].rows}
        assert first == with_std
        for other in ("cocord", "protocpc"):
            theirs = {row.label: row.values for row in LAYOUTS[f"{other}-table{number}"].rows}
            if "KD+CRD" in theirs:
                theirs["CRD+KD"] = theirs.pop("KD+CRD")
            assert {label: theirs[label] for label in first} == first


def test_rows_of_smaller_tables_are_those_of_larger_ones() -> None:
    pairs = [column.label for column in LAYOUTS["crd-table6"].columns]
    assert list(values("crd-table6", "CRD, y_i ≠ y_j")) == [value("crd-table1", "CRD", pair) for pair in pairs]
    assert list(values("protocpc-table8", "CE, softmax")) == [value("crd-table1", "KD", pair) for pair in pairs]
    both = [value("protocpc-table1", "ProtoCPC", pair) for pair in pairs]
    assert list(values("protocpc-table8", "ProtoCPC, Sinkhorn-Knopp")) == both
    known = {column.label: n for n in (1, 2) for column in LAYOUTS[f"crd-table{n}"].columns}
    for row in ("Teacher", "Student", "KD", "CRD", "CRD+KD"):
        for column in LAYOUTS["crd-table7"].columns:
            expected = value(f"crd-table{known[column.label]}", row, column.label)
            assert value("crd-table7", row, column.label) == expected


def test_the_texts_claims_follow_from_the_numbers() -> None:
    errors = {row.label: row.values[0] for row in LAYOUTS["crd-table3"].rows}
    assert errors["Student"] - errors["CRD"] == pytest.approx(1.42)  # type: ignore[operator]
    assert errors["Student"] - errors["AT"] == pytest.approx(0.95)  # type: ignore[operator]
    ours = {row.label: row.values[0] for row in LAYOUTS["cocord-table4"].rows}
    gain = {label: ours["Student"] - error for label, error in ours.items()}  # type: ignore[operator]
    assert gain["CoCoRD"] / gain["CRD"] - 1 == pytest.approx(0.4043, abs=1e-4)
    assert gain["CoCoRD"] / gain["WCoRD"] - 1 == pytest.approx(0.1445, abs=1e-4)
    probes = {row.label: row.values for row in LAYOUTS["cocord-table3"].rows}
    over = [a - b for a, b in zip(probes["CoCoRD"], probes["CRD+KD"], strict=True)]  # type: ignore[operator]
    assert over == pytest.approx([2.04, 2.32])


def test_class_aware_negatives_are_better_by_what_crd_says() -> None:
    for objective, told in (("CRD", 0.81), ("InfoNCE", 0.62)):
        aware, blind = (values("crd-table6", f"{objective}, {rule}") for rule in ("y_i ≠ y_j", "i ≠ j"))
        mean = sum(a - b for a, b in zip(aware, blind, strict=True)) / 5  # type: ignore[operator]
        assert mean == pytest.approx(told, abs=0.005)


def test_protocpc_gains_what_its_table_6_has_in_brackets() -> None:
    ours, theirs = values("protocpc-table6", "ProtoCPC"), values("protocpc-table6", "DINO")
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]  # type: ignore[operator]
    assert gains == pytest.approx([0.9, 1.4, 1.0, 1.3])


def test_detectors_gain_what_cocords_table_8_has_in_brackets() -> None:
    told = {
        "CRD": [0.71, 0.4, 0.7, 1.2, 0.6, 0.7, 0.8],
        "CoCoRD": [1.42, 0.7, 1.5, 2.3, 1.0, 1.0, 1.4],
    }
    for row, gains in told.items():
        pairs = zip(values("cocord-table8", row), values("cocord-table8", "Student"), strict=True)
        assert [a - b for a, b in pairs] == pytest.approx(gains)  # type: ignore[operator]


@pytest.mark.parametrize("number", [9, 10, 11])
def test_speed_ups_follow_from_the_latencies(number: int) -> None:
    name = f"cocord-table{number}"
    latencies = zip(values(name, "Teacher, latency (ms)"), values(name, "Student, latency (ms)"), strict=True)
    for (teacher, student), told in zip(latencies, values(name, "Speed-up (%)"), strict=True):
        assert teacher is not None and student is not None
        assert (told is None) == (student > teacher)
        assert told is None or told == pytest.approx(100 * (1 - student / teacher), abs=0.02)


def test_parameters_are_our_networks() -> None:
    """METHODS: the table's ResNet50 alone is another network than the one of CIFAR."""
    from raydistill.evaluation.cost import parameter_count
    from raydistill.models.zoo import build_model

    for name in ("cocord-table9", "cocord-table10"):
        layout = LAYOUTS[name]
        for row, role in (("Teacher, parameters (K)", "teacher"), ("Student, parameters (K)", "student")):
            for column, told in zip(layout.columns, values(name, row), strict=True):
                model = getattr(column, role)
                if model != "resnet50_cifar":
                    assert told == round(parameter_count(build_model(model, 100)) / 1000)


def test_an_unknown_layout_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"crd-tabel1: unknown; did you mean 'crd-table1\d?'\? \(known: cocord-"):
        load_layout("crd-tabel1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"columns": [{"label": "a"}, {"label": "a"}]}, "columns: several are called 'a'"),
        ({"rows": [{"label": "KD", "values": [1.0]}]}, "row 'KD': 1 values, but the table has 2 columns"),
        ({"rows": [{"label": "KD", "values": [1.0, 2.0], "std": [1.0]}]}, "row 'KD': 1 std"),
        ({"baseline": "CRD"}, "baseline = 'CRD': no row is called so"),
        ({"titel": "x"}, "did you mean 'title'"),
    ],
)
def test_a_wrong_layout_is_told_in_a_line(change: dict[str, Any], said: str) -> None:
    parse_layout("small", SMALL)
    with pytest.raises(ConfigError, match=r"^layout small: ") as error:
        parse_layout("small", SMALL | change)
    assert said in str(error.value)


def test_an_error_is_what_an_accuracy_lacks_and_factors_change_units() -> None:
    assert Measure(error=True).shown(71.5) == 28.5 and Measure(error=True).lower_is_better
    assert Measure(factor=1e-3).shown(2255000) == 2255.0 and not Measure().lower_is_better
