"""The table of protocols, and each of them on a real network."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from raydistill.config import parse_experiment
from raydistill.data.config import DataConfig
from raydistill.errors import ConfigError
from raydistill.evaluate_config import EvaluateConfig
from raydistill.evaluation.images import own_images
from raydistill.evaluation.panels import panels_of
from raydistill.evaluation.protocols import PROTOCOLS
from raydistill.evaluation.subject import Subject
from raydistill.models.zoo import build_model
from raydistill.protocol_names import PROTOCOLS as NAMES
from tests.data_room.published import halves, write_voc

PERCENT = ("top", "knn", "nn1", "linear", "clusters", "one_shot", "recall", "agreement", "neighbours", "worst", "ece")


def digits_subject(model: str, teacher: Subject | None = None) -> Subject:
    torch.manual_seed(len(model))
    images = own_images(DataConfig(name="digits", subset=400), torch.device("cpu"))
    network = build_model(model, 10, in_channels=1).eval()
    return Subject(network, images.bank, images.test, True, EvaluateConfig(), 0, teacher=teacher)


def voc_subject(root: Path, teacher: Subject | None = None) -> Subject:
    torch.manual_seed(0)
    data = {"name": "voc07", "root": str(root), "image_size": 16, "validation": 0.2}
    images = own_images(DataConfig.model_validate(data), torch.device("cpu"))
    network = build_model("resnet8", 20).eval()
    return Subject(network, images.bank, images.test, True, EvaluateConfig(), 0, teacher=teacher)


@pytest.fixture(scope="module")
def student() -> Subject:
    return digits_subject("resnet8", digits_subject("resnet14"))


def test_every_name_has_a_way_to_measure_it() -> None:
    assert list(NAMES) == list(PROTOCOLS)


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name not in ("linear_stages", "map")])
def test_each_gives_finite_numbers_from_the_outputs_that_it_names(student: Subject, name: str) -> None:
    protocol = PROTOCOLS[name]
    student.see(protocol.needs)
    found = protocol.measure(student)
    assert found
    for key, value in found.items():
        assert math.isfinite(value)
        if key.startswith(PERCENT):
            assert 0.0 <= value <= 100.0


def test_stages_are_probed_one_by_one() -> None:
    subject = digits_subject("resnet8")
    found = PROTOCOLS["linear_stages"].measure(subject)
    assert list(found) == [f"linear_stage{index}" for index in range(4)]
    assert subject.stage("test", "features/0").shape == (len(subject.test), 16 * 8 * 8)
    assert not subject.seen("test/features/0")


def test_a_network_sees_its_images_once_whatever_is_measured(student: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, seen = digits_subject("resnet8"), 0
    forward = type(subject.network).forward

    def counted(self: object, images: torch.Tensor, *args: object, **options: object) -> object:
        nonlocal seen
        seen += len(images)
        return forward(self, images, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(type(subject.network), "forward", counted)
    names = [name for name in PROTOCOLS if name not in ("cost", "linear_stages") and PROTOCOLS[name].applies(subject)]
    subject.see({output for name in names for output in PROTOCOLS[name].needs})
    for name in names:
        PROTOCOLS[name].measure(subject)
    assert seen == len(subject.bank) + len(subject.test)


def test_what_a_network_lacks_is_not_measured(student: Subject) -> None:
    untrained = digits_subject("resnet8")
    untrained.classifies = False
    assert not PROTOCOLS["top1"].applies(untrained)
    assert PROTOCOLS["knn"].applies(untrained)
    assert not PROTOCOLS["cka"].applies(untrained)
    assert PROTOCOLS["cka"].applies(student)
    headless = digits_subject("resnet8", untrained)
    assert PROTOCOLS["cka"].applies(headless)
    assert not PROTOCOLS["correlation"].applies(headless)


def test_images_of_several_classes_are_judged_by_targets_alone(tmp_path: Path) -> None:
    write_voc(tmp_path, *halves(16))
    subject = voc_subject(tmp_path, voc_subject(tmp_path))
    applicable = [name for name in PROTOCOLS if PROTOCOLS[name].applies(subject)]
    assert applicable == ["map", "agreement", "correlation", "neighbours", "cka", "cost"]
    assert PROTOCOLS["map"].measure(subject) == {"map": pytest.approx(100.0)}


def test_what_is_marked_difficult_is_neither_fitted_on_nor_judged_by(tmp_path: Path) -> None:
    """Most images to fit on say the contrary of the others; as difficult they do not count."""
    found = {}
    for name, factor in (("contrary", -1), ("difficult", 0)):
        targets, values = halves(16)
        for number, row in enumerate(targets["trainval"]):
            targets["trainval"][number] = row if number % 4 == 0 else [factor * value for value in row]
        write_voc(tmp_path / name, targets, values)
        found[name] = PROTOCOLS["map"].measure(voc_subject(tmp_path / name))["map"]
    assert found["contrary"] < 75.0
    assert found["difficult"] == pytest.approx(100.0)


def test_a_network_agrees_with_itself() -> None:
    subject = digits_subject("resnet8")
    subject.teacher = subject
    found = {
        key: value
        for name in ("agreement", "correlation", "neighbours", "cka")
        for key, value in PROTOCOLS[name].measure(subject).items()
    }
    assert found == pytest.approx(
        {"agreement": 100.0, "correlation_discrepancy": 0.0, "neighbours@10": 100.0, "cka": 1.0}, abs=1e-5
    )


def test_panels_show_the_nearest_and_the_clusters(student: Subject) -> None:
    assert student.teacher is not None
    roles = {"student": student, "teacher": student.teacher}
    for subject in roles.values():
        subject.see({"bank/embedding", "test/embedding"})
    PROTOCOLS["clusters"].measure(student)
    panels = panels_of(roles)
    bank = set(student.bank.ids.tolist())
    assert [set(query.nearest) for query in panels.neighbours] == [{"student", "teacher"}] * 8
    assert all(set(ids) <= bank for query in panels.neighbours for ids in query.nearest.values())
    embedding = torch.nn.functional.normalize(student.output("test", "embedding"), dim=1)
    position = student.test.ids.tolist().index(panels.neighbours[3].query)
    cosines = torch.nn.functional.normalize(student.output("bank", "embedding"), dim=1) @ embedding[position]
    assert panels.neighbours[3].nearest["student"][0] == int(student.bank.ids[cosines.argmax()])
    assert student.clusters is not None
    of_id = dict(zip(student.bank.ids.tolist(), student.clusters.tolist(), strict=True))
    assert len(panels.clusters) == 6
    assert all(len({of_id[number] for number in ids}) == 1 for ids in panels.clusters)
    assert panels == panels_of(roles)


def test_wrong_sections_are_told() -> None:
    values = {"name": "x", "data": {"name": "digits"}, "student": {"model": "resnet8"}, "methods": {"ce": {}}}
    for section, told in (
        ({"protocols": ["knm"]}, r"evaluate\.protocols\.0 = 'knm': must be one of top1, .*did you mean 'knn'"),
        ({"transfer": {"a/b": {"name": "digits"}}}, r"evaluate\.transfer"),
        ({"transfer": {"stl": {"name": "stl10"}}}, "needs the folder that holds it"),
        ({"transfer": {"stl": {"name": "stl11"}}}, r"evaluate\.transfer\.stl\.name = 'stl11': unknown data set"),
    ):
        with pytest.raises(ConfigError, match=told):
            parse_experiment(values | {"evaluate": section})
