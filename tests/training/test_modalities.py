"""A student on one modality learns from a teacher on another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill.config import Experiment
from raydistill.data.datasets import load_train
from raydistill.data.views import render, scheduled_views
from raydistill.errors import CacheError, ConfigError
from raydistill.evaluation.card import evaluate_run
from raydistill.methods.base import Draw, Needs
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.teachers.cache.read import find_cache
from raydistill.teachers.cache.spot import spot_check
from raydistill.teachers.network import teacher_of
from raydistill.training.assembly import assemble
from raydistill.training.loop import fit
from raydistill.training.material import from_arrays, prepare, to_arrays
from raydistill.training.session import Session
from raydistill.training.teacher import train_teacher
from tests.conftest import digits
from tests.data_room.test_modalities import pairs, write_pairs

CRD = {"crd": {"negatives": 32, "dimension": 16, "exclude": "instance"}}
LOGITS = frozenset({"logits"})


@pytest.fixture(scope="module")
def luminance_teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The section of an untrained teacher of one channel and five classes."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("luminance") / "model.safetensors"
    save_weights(build_model("resnet14", 5, in_channels=1), path)
    return {"model": "resnet14", "weights": str(path), "source": "live"}


def crossing(folder: Path, teacher: dict[str, Any], **sections: Any) -> Experiment:
    """Chrominance learns from luminance of 120 made-up images, without labels unless ``sections`` say otherwise."""
    data = {
        "name": "synthetic",
        "synthetic_size": 120,
        "synthetic_classes": 5,
        "synthetic_image_size": 16,
        "validation": 0.2,
        "augment": {"crop": 2, "flip": 0.5},
        "modalities": {"student": "chrominance", "teacher": "luminance"},
    }
    return digits(folder, **({"data": data, "teacher": teacher, "methods": CRD} | sections))


def session_of(experiment: Experiment) -> Session:
    material = from_arrays(to_arrays(prepare(experiment)))
    return assemble(experiment, material, device=torch.device("cpu"))


def test_chrominance_learns_from_luminance(tmp_path: Path, luminance_teacher: dict[str, Any]) -> None:
    train = {"epochs": 4, "batch_size": 32, "optimizer": {"lr": 0.02}}
    session = session_of(crossing(tmp_path, luminance_teacher, train=train))
    step = session.draw(torch.arange(8), 0)
    assert step.views[0].shape == (8, 2, 16, 16)
    fit(session, lambda metrics, session: session.history.append(metrics))
    losses = [record["train/crd"] for record in session.history]
    assert losses[-1] < losses[0]
    assert session.teacher_forwards == 8 + 4 * 3 * 32


def test_a_live_teacher_sees_the_same_view_of_its_own_images(tmp_path: Path, luminance_teacher: dict[str, Any]) -> None:
    experiment = crossing(tmp_path, luminance_teacher, methods={"kd": {}})
    session = session_of(experiment)
    positions, epoch = torch.arange(40, 60), 2
    needs = Needs(student={0: LOGITS, 1: LOGITS}, teacher={1: LOGITS, 2: LOGITS}, draws={2: Draw(of=1, turns=1)})
    seen: list[torch.Tensor] = []
    network = session.teachers[0].network  # type: ignore[union-attr]
    network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    session.draw(positions, epoch, needs)
    images, ids = load_train(experiment.data.of_teacher), session.data.ids[positions]
    chosen = torch.tensor([images.ids.tolist().index(number) for number in ids.tolist()])
    expected = render(
        images.images[chosen],
        ids,
        torch.full_like(ids, 1 + epoch * 3 + 1),
        augment=experiment.data.augment,
        seed=experiment.seed,
        mean=(0.5,),
        std=(0.25,),
    )
    assert len(seen) == 2 and torch.equal(seen[0], expected)
    assert torch.equal(seen[1], expected.rot90(1, dims=(2, 3)))


def test_a_cache_is_of_the_teachers_modality(
    tmp_path: Path, luminance_teacher: dict[str, Any], ray_session: None
) -> None:
    from raydistill.teachers.cache.build import build_cache
    from raydistill.teachers.cache.planning import plan

    cache = {"root": str(tmp_path / "cache"), "views": 2, "dtype": "float32"}
    experiment = crossing(tmp_path, luminance_teacher | {"source": "cache"}, methods={"kd": {}}, cache=cache)
    report = build_cache(experiment)
    assert plan(experiment).missing_rows == 0
    teacher_images = load_train(experiment.data.of_teacher)
    found = find_cache(experiment, teacher_images)
    assert str(found.path) == report.path
    assert spot_check(found, teacher_of(experiment, teacher_images), teacher_images).min_cosine > 0.9999
    same = experiment.override({"data.modalities.student": "luminance"})
    prepare(same)  # the student's side decides nothing
    content = found.manifest.content
    assert (content.data.fingerprint, content.preprocessing.image_shape) == (teacher_images.fingerprint(), (1, 16, 16))
    plain = load_train(experiment.data.model_copy(update={"modalities": None}))
    assert content.data.fingerprint != plain.fingerprint()
    dimmed = experiment.override({"data.modalities.teacher_mean": [0.4], "data.modalities.teacher_std": [0.25]})
    with pytest.raises(CacheError, match=r"differs in preprocessing\.mean "):
        prepare(dimmed)
    session, position = session_of(experiment), torch.arange(24)
    step = session.draw(position, 1)
    assert session.teacher_data is None and step.views[0].shape[1] == 2
    live = session_of(experiment.override({"teacher.source": "live"}))
    assert live.teacher_data is not None
    ids = live.teacher_data.ids[position]
    pixels = render(
        live.teacher_data.images[position],
        ids,
        scheduled_views(ids, 1, 2, experiment.seed),
        augment=experiment.data.augment,
        seed=experiment.cache.seed,
        mean=live.teacher_data.mean,
        std=live.teacher_data.std,
    )
    computed = live.teachers[0].outputs(position, {}, {0: pixels})
    torch.testing.assert_close(step.teacher[0]["logits"], computed[0]["logits"], rtol=1e-4, atol=1e-5)


def test_the_teacher_is_trained_on_its_own_modality(
    tmp_path: Path, luminance_teacher: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = crossing(tmp_path, luminance_teacher)
    asked: list[Experiment] = []

    def note(alone: Experiment, **options: Any) -> dict[str, Any]:
        asked.append(alone)
        return {}

    monkeypatch.setattr("raydistill.training.teacher.train", note)
    train_teacher(experiment)
    (alone,) = asked
    session = session_of(alone)
    assert session.data.images.shape[1:] == (1, 16, 16)
    other = session_of(experiment)
    assert torch.equal(session.data.ids, other.data.ids)
    fit(session, lambda metrics, session: session.history.append(metrics))
    assert "val/top1" in session.history[-1]


def test_the_card_shows_each_network_its_own_modality(tmp_path: Path, luminance_teacher: dict[str, Any]) -> None:
    experiment = crossing(tmp_path, luminance_teacher, methods={"kd": {}})
    folder = experiment.folder
    save_weights(build_model("resnet8", 5, in_channels=2), folder / "student.safetensors")
    (folder / "config.yaml").write_text(experiment.to_yaml())
    (folder / "_SUCCESS").touch()
    card = evaluate_run(folder, ["top1", "nn1"])
    assert set(card) == {"student", "teacher"} and set(card["teacher"]) == {"top1", "nn1"}


def test_depth_without_labels_learns_from_colour(tmp_path: Path) -> None:
    write_pairs(tmp_path, classes=("",), each=20)
    save_weights(build_model("resnet14", 7, in_channels=3), tmp_path / "teacher.safetensors")
    teacher = {"model": "resnet14", "weights": str(tmp_path / "teacher.safetensors"), "source": "live"}
    data = pairs(tmp_path, num_classes=7, validation=0.2).model_dump(mode="json")
    methods = {"crd": CRD["crd"] | {"negatives": 8}, "kd": {}}
    experiment = crossing(tmp_path, teacher, data=data, methods=methods, train={"epochs": 1, "batch_size": 8})
    session = session_of(experiment)
    fit(session, lambda metrics, session: session.history.append(metrics))
    assert {"train/crd", "train/kd"} < set(session.history[0]) and "val/top1" not in session.history[0]
    with pytest.raises(ConfigError, match=r"images without labels need data\.num_classes"):
        session_of(experiment.override({"data.num_classes": None}))
