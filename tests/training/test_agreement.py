"""Validation beside the teacher: cached and live alike, only where asked, and errors before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raydistill import display
from raydistill.config import Experiment
from raydistill.data.datasets import load_train
from raydistill.errors import CacheError, ConfigError, WeightsError
from raydistill.evaluation.agreement import agreement
from raydistill.evaluation.features import extract
from raydistill.evaluation.similarity import linear_cka
from raydistill.teachers.cache.read import TeacherCache
from raydistill.teachers.network import teacher_of
from raydistill.training import agreement as compared_images
from raydistill.training.assembly import assemble
from raydistill.training.checkpoint import load_checkpoint
from raydistill.training.loop import fit
from raydistill.training.material import from_arrays, prepare, to_arrays
from raydistill.training.run import result_of
from raydistill.training.run_folder import RunFolder
from raydistill.training.session import Session
from raydistill.training.teacher import train_teacher
from tests.conftest import digits, teaching
from tests.teachers.stored import learnt, store
from tests.training.sessions import assert_equal_states, save_checkpoint, session_of, without_times
from tests.training.test_modalities import crossing, luminance_teacher  # noqa: F401  a fixture

MEASURES = ["neighbours@5", "cka"]
METRICS = {"val/neighbours@5", "val/cka"}
ALONE: dict[str, Any] = {"ce": {}}
TAUGHT: dict[str, Any] = {"ce": {}, "kd": {}}
SPACE = {"train.optimizer.lr": {"choice": [0.05]}}


@pytest.fixture(scope="module")
def good_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a resnet14 that has learnt something."""
    folder = tmp_path_factory.mktemp("learnt")
    path = folder / "model.safetensors"
    return learnt(digits(folder, teacher=teaching(path)), path)


def comparing(folder: Path, weights: Path, source: str = "cache", **sections: Any) -> Experiment:
    """An experiment that asks for both measures; ``sections`` replace whole sections."""
    values: dict[str, Any] = {
        "teacher": teaching(weights) | {"source": source},
        "train": {"epochs": 2, "batch_size": 48, "agreement": MEASURES},
        "cache": {"root": str(folder / "cache"), "dtype": "float32"},
    }
    return digits(folder, **(values | sections))


def trained(experiment: Experiment) -> Session:
    material = from_arrays(to_arrays(prepare(experiment)))
    session = assemble(experiment, material, device=torch.device("cpu"))
    fit(session, lambda metrics, session: session.history.append(metrics))
    return session


def silent(experiment: Experiment) -> Experiment:
    return experiment.override({"train.agreement": []})


@pytest.mark.parametrize("methods", [ALONE, TAUGHT], ids=["labels alone", "kd"])
def test_cached_and_live_teachers_give_the_same(methods: Any, tmp_path: Path, good_teacher: Path) -> None:
    """Whether or not a method asks for the teacher; and the run itself is that without the measures."""
    cached = comparing(tmp_path, good_teacher, methods=methods)
    store(cached)
    sessions = {name: trained(cached.override({"cache.read": name})) for name in ("resident", "shared")}
    sessions["live"] = trained(cached.override({"teacher.source": "live"}))
    histories = [[without_times(record) for record in session.history] for session in sessions.values()]
    for record in histories[0]:
        assert set(record) > METRICS
        assert 5 / 47 * 100 < record["val/neighbours@5"] < 100.0 and 0.0 < record["val/cka"] < 1.0
    assert histories[0] == histories[1]
    if methods is ALONE:  # live pixels teach differently from the cached evaluation view
        live = [{name: record[name] for name in METRICS} for record in histories[2]]
        assert live[-1] == pytest.approx({name: histories[0][-1][name] for name in METRICS}, rel=1e-4)
    plain = trained(silent(cached))
    assert_equal_states(plain, sessions["resident"])
    for before, after in zip(plain.history, histories[0], strict=True):
        assert without_times(before) == {name: value for name, value in after.items() if name not in METRICS}


def test_the_metrics_are_those_of_the_definition(
    tmp_path: Path, good_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of evenly spread held-out images, joined with the cache's rows by id; of the averaged student."""
    monkeypatch.setattr(compared_images, "MOST_IMAGES", 30)
    experiment = comparing(tmp_path, good_teacher, cache={"root": str(tmp_path / "cache"), "views": 2})
    experiment = experiment.override({"train.ema": {"decay": 0.9}})
    cache: TeacherCache = store(experiment)
    session = trained(experiment)
    chosen = torch.arange(30) * len(session.validation) // 30
    teacher = cache.read(session.validation.ids[chosen], view=0)["embedding"]
    student = extract(session.student, session.validation, "embedding")[chosen]
    expected = agreement(student, teacher, MEASURES)
    assert {name: session.history[-1][name] for name in METRICS} == pytest.approx(expected)
    assert session.student is not session.distiller.student


def test_a_live_teacher_sees_the_held_out_images_once(tmp_path: Path, good_teacher: Path) -> None:
    """48 of them, beside 192 training images an epoch where a method wants these; checkpoints keep the number."""
    alone, taught = (comparing(tmp_path, good_teacher, "live", methods=methods) for methods in (ALONE, TAUGHT))
    session = trained(taught)
    assert [record["teacher_forwards"] for record in session.history] == [192 + 48, 2 * 192 + 48]
    only = trained(alone)
    assert only.teachers == () and result_of(only)["teacher_forwards"] == 48
    assert [record["teacher_forwards"] for record in only.history] == [48, 48]
    (tmp_path / "checkpoint").mkdir()
    save_checkpoint(only, tmp_path / "checkpoint")
    resumed = session_of(alone)
    load_checkpoint(resumed, tmp_path / "checkpoint")
    assert resumed.teacher_forwards == 48


def test_nothing_is_loaded_where_nobody_asks(tmp_path: Path, teacher_weights: Path) -> None:
    """The teacher's section may name files that are not there, as long as no method wants them."""
    experiment = silent(comparing(tmp_path, tmp_path / "absent.safetensors"))
    material = prepare(experiment)
    assert material.held_out_rows is None and material.teacher_held_out is None
    session = session_of(experiment)
    assert session.agreement is None and session.sources == ()
    store(cached := comparing(tmp_path, teacher_weights))
    assert prepare(cached).tables == ()  # rows of held-out images, but none of those that are trained on


def test_a_live_teacher_sees_its_own_modality(tmp_path: Path, luminance_teacher: dict[str, Any]) -> None:  # noqa: F811
    train = {"epochs": 1, "batch_size": 32, "agreement": ["neighbours@5", "cka"]}
    live = crossing(tmp_path, luminance_teacher, methods=ALONE, train=train)
    session = trained(live)
    assert session.validation.shape == (2, 16, 16) and session.teacher_forwards == 24
    images = load_train(live.data.of_teacher)
    network = teacher_of(live, images)
    order = {number: place for place, number in enumerate(images.ids.tolist())}
    places = torch.tensor([order[number] for number in session.validation.ids.tolist()])
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (images.mean, images.std))
    pixels = (images.images[places].float() / 255 - mean) / std
    with torch.no_grad():
        teacher = network(pixels, outputs=("embedding",))["embedding"]
    student = extract(session.student, session.validation, "embedding")
    assert session.history[-1]["val/cka"] == pytest.approx(linear_cka(student, teacher), rel=1e-4)


def test_of_several_teachers_it_is_the_first(tmp_path: Path, good_teacher: Path, teacher_weights: Path) -> None:
    """The other one has no cache, nor does any method want it."""
    single = comparing(tmp_path, good_teacher)
    store(single)
    both = comparing(tmp_path, good_teacher, ensemble=[teaching(teacher_weights)])
    assert trained(both).history[-1]["val/cka"] == trained(single).history[-1]["val/cka"]


def test_the_metric_of_a_sweep_is_measured_by_itself(tmp_path: Path, good_teacher: Path) -> None:
    """Without a word in ``train``; a trial has no section ``tune`` any more and still measures it."""
    tune = {"metric": "val/neighbours@5", "space": SPACE}
    sweep = silent(comparing(tmp_path, good_teacher, tune=tune))
    assert sweep.agreement == ("neighbours@5",) and silent(sweep.override({"tune.metric": "val/top1"})).agreement == ()
    assert sweep.override({"train.agreement": ["cka", "neighbours@5"]}).agreement == ("cka", "neighbours@5")
    store(sweep)
    material = from_arrays(to_arrays(prepare(sweep)))
    trial = sweep.as_trial().override({"train.optimizer.lr": 0.1, "name": "0001"})
    assert trial.tune is None and trial.agreement == ("neighbours@5",)
    session = assemble(trial, material, device=torch.device("cpu"))
    fit(session, lambda metrics, session: session.history.append(metrics))
    assert session.history[-1]["val/neighbours@5"] > 5 / 47 * 100
    assert "val/cka" not in session.history[-1]


def test_they_are_shown_while_the_run_goes_on(
    tmp_path: Path, teacher_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = trained(comparing(tmp_path, teacher_weights, "live", methods=ALONE))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_history(session.history)
    with display.training(session.experiment, 2) as watch:
        watch(folder)
    neighbours, cka = (session.history[-1][name] for name in ("val/neighbours@5", "val/cka"))
    assert f"neighbours@5 {neighbours:.1f} %  cka {cka:.3f}  " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"agreement": ["cca"]}}, "train.agreement.0 = 'cca': unknown measure; did you mean 'cka'?"),
        ({"train": {"agreement": ["cka"]}}, "train.agreement: val/cka compares the student with a teacher"),
        ({"tune": {"metric": "val/cka", "space": SPACE}}, "tune.metric: val/cka compares the student with a teacher"),
        ({"tune": {"metric": "val/neighbors@3", "space": SPACE}}, "did you mean 'neighbours@3'?"),
        ({"tune": {"metric": "val/acc", "space": SPACE}}, "'val/acc': no run reports it"),
        ({"tune": {"metric": "val/topp1", "space": SPACE}}, "did you mean 'val/top1'?"),
        ({"tune": {"metric": "val/cka", "mode": "min", "space": SPACE}}, "val/cka is better where it is higher"),
    ],
)
def test_what_the_experiment_cannot_mean(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as failure:
        digits(tmp_path, **sections)
    assert message in str(failure.value) and "\n" not in str(failure.value)


def test_the_teacher_itself_is_trained_without(
    tmp_path: Path, teacher_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Experiment] = []
    monkeypatch.setattr("raydistill.training.teacher.train", lambda alone, **options: asked.append(alone) or {})
    train_teacher(comparing(tmp_path, teacher_weights, tune={"metric": "val/cka", "space": SPACE}))
    assert [alone.agreement for alone in asked] == [()]


def test_what_is_missing_is_said_before_anything_starts(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = comparing(tmp_path, teacher_weights)
    store(experiment)
    with pytest.raises(ConfigError, match=r"val/neighbours@48 needs 49 held-out images or more, but 48 of 48"):
        prepare(experiment.override({"train.agreement": ["neighbours@48"]}))
    with pytest.raises(CacheError, match=r"cache\.outputs lacks 'embedding'"):
        prepare(experiment.override({"cache.outputs": ["logits"]}))
    with pytest.raises(CacheError, match="no teacher cache for this teacher and data"):
        prepare(experiment.override({"cache.root": str(tmp_path / "empty")}))
    absent = {"teacher.source": "live", "teacher.weights": "absent.safetensors"}
    with pytest.raises(WeightsError, match=r"teacher\.weights = absent\.safetensors: no such file"):
        prepare(experiment.override(absent))
