"""Mixed views: student and teacher see the same pixels, live or cached, and labels are mixed with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from raydistill.config import Experiment
from raydistill.data.datasets import load_train
from raydistill.data.mixing import Partners, blend, draw_mixture
from raydistill.data.views import render, scheduled_views
from raydistill.errors import CacheError, ConfigError, DataError
from raydistill.files import make_folders
from raydistill.methods.registry import METHODS, method_class
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model
from raydistill.teachers.cache.manage import export
from raydistill.teachers.cache.planning import plan
from raydistill.teachers.cache.read import find_cache
from raydistill.teachers.cache.spot import spot_check
from raydistill.teachers.network import teacher_of
from raydistill.training.assembly import assemble
from raydistill.training.checkpoint import load_checkpoint
from raydistill.training.loop import fit
from raydistill.training.material import from_arrays, prepare, to_arrays
from raydistill.training.session import Session
from tests.conftest import digits, teaching
from tests.methods.cases import SMALL
from tests.teachers.stored import store
from tests.training.sessions import assert_equal_states, save_checkpoint

AUGMENT = {"crop": 1, "flip": 0.5, "mixup": {"probability": 0.4}, "cutmix": {"probability": 0.4}}
COLUMNS = ("partner_id", "own_share", "partner_top", "partner_left", "partner_height", "partner_width")
REFUSING = {"cluster_cls", "cocord", "crd", "dkd", "gckt", "info_nce", "one", "sskd", "wcord"}
"""Methods that need one class or one identity of an image, or several views of it."""
UNMIXED = {"dino", "moco_v2", "swav"}
"""Methods that draw all their views themselves."""


def mixing(folder: Path, weights: Path, **sections: Any) -> Experiment:
    """A teacher with two cached views of 100 digits that are mixed, crop and flip beside it."""
    values: dict[str, Any] = {
        "data": {"name": "digits", "subset": 100, "validation": 0.2, "augment": AUGMENT},
        "teacher": teaching(weights),
        "methods": {"ce": {}, "kd": {}},
        "train": {"epochs": 2, "batch_size": 16},
        "cache": {"root": str(folder / "cache"), "views": 2, "dtype": "float32"},
    }
    return digits(folder, **(values | sections))


def live(folder: Path, weights: Path, **sections: Any) -> Experiment:
    return mixing(folder, weights, **({"teacher": teaching(weights) | {"source": "live"}} | sections))


def session_of(experiment: Experiment, **options: Any) -> Session:
    material = from_arrays(to_arrays(prepare(experiment)))
    return assemble(experiment, material, device=torch.device("cpu"), **options)


def assert_taught_on_the_students_pixels(experiment: Experiment) -> None:
    session = session_of(experiment)
    other = session_of(experiment.override({"teacher.source": "live"})).teachers[0]
    positions = torch.arange(60)
    for epoch in (0, 1):
        step = session.draw(positions, epoch)
        assert bool((step.columns["mix"] < 1).float().mean() > 0.6)
        computed = other.outputs(positions, {}, step.views)
        torch.testing.assert_close(step.teacher[0]["logits"], computed[0]["logits"], rtol=1e-4, atol=1e-5)


def test_a_cache_is_planned_and_checked_on_mixed_images(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = mixing(tmp_path, teacher_weights)
    cache, images = store(experiment), load_train(experiment.data)
    planned = plan(experiment)
    assert (planned.missing_rows, planned.path) == (0, str(cache.path))
    assert cache.verify(full=True) == []
    assert spot_check(cache, teacher_of(experiment, images), images).max_difference < 1e-4
    alone = store(experiment.override({"data.augment.mixup": None, "data.augment.cutmix": None}))
    ids = images.ids
    assert torch.equal(cache.read(ids, 0)["logits"], alone.read(ids, 0)["logits"])
    assert not torch.equal(cache.read(ids, 1)["logits"], alone.read(ids, 1)["logits"])


def test_a_step_shows_what_was_drawn_for_both_sides(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = mixing(tmp_path, teacher_weights)
    store(experiment)
    assert_taught_on_the_students_pixels(experiment)
    session, positions = session_of(experiment), torch.arange(20, 50)
    step, data = session.draw(positions, 3), session.data
    ids, views = data.ids[positions], scheduled_views(data.ids[positions], 3, 2, experiment.seed)
    augment = experiment.data.augment
    how: dict[str, Any] = {"augment": augment, "seed": experiment.cache.seed, "mean": data.mean, "std": data.std}
    partners = Partners.within(data.ids, data.ids)
    mixture = draw_mixture(ids, positions, views, partners=partners, augment=augment, seed=0, size=(8, 8))
    own = render(data.images[positions], ids, views, **how)
    others = render(data.images[mixture.positions], mixture.ids, views, **how)
    assert torch.equal(step.views[0], blend(own, others, mixture))
    assert not torch.equal(step.views[0], own)
    assert data.labels is not None
    assert torch.equal(step.columns["partner_label"], data.labels[mixture.positions])
    assert torch.equal(step.columns["mix"], mixture.share)


def test_steps_depend_on_neither_batch_nor_worker(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = live(tmp_path, teacher_weights)
    alone = session_of(experiment)
    (whole, *_), workers = list(alone.batches(0)), [session_of(experiment, rank=rank, world_size=2) for rank in (0, 1)]
    step = alone.draw(whole, 0)
    parts = [worker.draw(next(iter(worker.batches(0))), 0) for worker in workers]
    assert torch.equal(torch.cat([part.views[0] for part in parts]), step.views[0])
    for name in ("index", "label", "partner_label", "mix"):
        assert torch.equal(torch.cat([part.columns[name] for part in parts]), step.columns[name])


def test_shards_tell_partner_share_and_box(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = mixing(tmp_path, teacher_weights)
    cache = store(experiment)
    frame = cache.to_pandas()
    view_zero, mixed = frame[frame["view_id"] == 0], frame[frame["own_share"].notna()]
    assert view_zero[list(COLUMNS)].isna().all(axis=None) and set(mixed["view_id"]) == {1, 2}
    assert 0.7 < len(mixed) / 200 < 0.9
    assert mixed["partner_id"].map(type).eq(int).all()
    training = set(prepare(experiment).train.ids.tolist())
    assert set(mixed["partner_id"]) <= training and len(training) == 80
    cut = mixed[mixed["partner_height"].notna()]
    area = cut["partner_height"] * cut["partner_width"] / 64
    np.testing.assert_allclose(1 - cut["own_share"], area, atol=1e-6)
    assert 0 < len(cut) < len(mixed)
    table = pq.read_table(export(cache.path, tmp_path / "plain.parquet"))
    assert set(COLUMNS) < set(table.column_names)
    assert table.column("partner_id").drop_null().to_pylist() == mixed["partner_id"].tolist()
    plain = store(experiment.override({"data.augment.mixup": None, "data.augment.cutmix": None}))
    assert not set(COLUMNS) & set(plain.to_pandas().columns)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("data.split_seed", 1, r"differs in augmentation\.partners\.ids .*, augmentation\.partners\.split_seed "),
        ("data.validation", 0.3, r"augmentation\.partners\.validation \(there 0\.2, wanted 0\.3\)"),
        ("data.augment.mixup.alpha", 0.4, r"augmentation\.operations\.mixup\.alpha \(there 0\.8, wanted 0\.4\)"),
        ("data.augment.cutmix", None, r"augmentation\.operations\.cutmix\.alpha \(there 1\.0, wanted nothing\)"),
    ],
)
def test_other_partners_make_another_cache(
    field: str, value: Any, named: str, tmp_path: Path, teacher_weights: Path
) -> None:
    experiment = mixing(tmp_path, teacher_weights)
    store(experiment)
    with pytest.raises(CacheError, match=named):
        prepare(experiment.override({field: value}))


def test_without_mixing_the_validation_images_decide_nothing(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = mixing(tmp_path, teacher_weights, data=_data(crop=1))
    path = store(experiment).path
    other = experiment.override({"data.validation": 0.3})
    assert find_cache(other, load_train(other.data)).path == path


def test_a_cache_of_other_labels_is_not_recomputed(tmp_path: Path, teacher_weights: Path) -> None:
    from dataclasses import replace

    experiment = mixing(tmp_path, teacher_weights)
    cache, images = store(experiment), load_train(experiment.data)
    assert images.labels is not None
    relabelled = replace(images, labels=images.labels.roll(31))
    with pytest.raises(CacheError, match=r"augmentation\.partners: validation = 0\.2 and split_seed = 0 leave other"):
        spot_check(cache, teacher_of(experiment, images), relabelled)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_mixed_images_or_says_why_not(name: str, tmp_path: Path, teacher_weights: Path) -> None:
    values = {"methods": {name: SMALL.get(name, {})}}
    if name in REFUSING | UNMIXED:
        line = (
            r"data\.augment\.mixup: would mix nothing"
            if name in UNMIXED
            else rf"methods\.{name} cannot take the images that data\.augment\.mixup mixes: .*; leave out one"
        )
        with pytest.raises(ConfigError, match=line) as caught:
            live(tmp_path, teacher_weights, **values)
        assert "\n" not in str(caught.value)
        assert (method_class(name)().refuses_mixing() is None) == (name in UNMIXED)
        return
    session = session_of(live(tmp_path, teacher_weights, **values))
    step = session.draw(torch.arange(16), 0)
    assert session.model(step).total.isfinite() and bool((step.columns["mix"] < 1).any())


def test_modes_with_several_views_refuse(tmp_path: Path, teacher_weights: Path) -> None:
    compress = {"mode": "compress", "prototypes": 11, "hidden": 9}
    assert method_class("protocpc").model_validate(compress | {"local_crops": 0}).refuses_mixing() is None
    with pytest.raises(ConfigError, match=r"methods\.protocpc cannot take .*: it compares several views of an image"):
        live(tmp_path, teacher_weights, methods={"protocpc": compress | {"local_crops": 2}})


def test_views_that_a_method_draws_are_not_mixed(tmp_path: Path, teacher_weights: Path) -> None:
    methods = {"ce": {}, "seed": {"queue": 12}, "protocpc": {"mode": "self", **SMALL["dino"]}}
    with pytest.raises(ConfigError, match=r"data\.augment\.mixup: would mix nothing, as the methods draw all"):
        live(tmp_path, teacher_weights, methods=methods)


def test_the_evaluation_view_cannot_answer_for_mixed_images(tmp_path: Path, teacher_weights: Path) -> None:
    cache = {"root": str(tmp_path / "cache"), "views": 0}
    with pytest.raises(ConfigError, match=r"data\.augment\.mixup: with cache\.views = 0 .* or teacher\.source=live"):
        mixing(tmp_path, teacher_weights, cache=cache)
    assert live(tmp_path, teacher_weights, cache=cache).data.augment.mixing == "mixup"
    assert mixing(tmp_path, teacher_weights, cache=cache, methods={"ce": {}}).needs.teacher == {}


def test_one_training_image_is_told_before_anything_starts(tmp_path: Path, teacher_weights: Path) -> None:
    data = _data() | {"subset": 4, "validation": 0.7}
    with pytest.raises(DataError, match=r"data\.augment\.mixup: needs 2 training images or more, but there is 1"):
        prepare(live(tmp_path, teacher_weights, data=data))


def test_a_resumed_run_is_the_same(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = mixing(tmp_path, teacher_weights)
    store(experiment)
    whole, resumed = session_of(experiment), session_of(experiment)

    def stop(metrics: Any, session: Session) -> None:
        make_folders(tmp_path / str(session.epoch))
        save_checkpoint(session, tmp_path / str(session.epoch))

    fit(whole, stop)
    load_checkpoint(resumed, tmp_path / "1")
    fit(resumed, lambda metrics, session: None)
    assert_equal_states(whole, resumed)


def test_peers_learn_from_mixed_images(tmp_path: Path) -> None:
    data = {"name": "digits", "subset": 60, "validation": 0.2, "augment": AUGMENT}
    methods: dict[str, Any] = {"ce": {}, "dml": {}}
    session = session_of(digits(tmp_path, data=data, methods=methods, peers=[{"model": "resnet8"}]))
    fit(session, lambda metrics, session: session.history.append(metrics))
    assert {"train/ce", "train/peer1/dml"} < set(session.history[0])


def test_an_ensemble_of_caches_saw_the_same_pixels(tmp_path: Path, teacher_weights: Path) -> None:
    torch.manual_seed(9)
    save_weights(build_model("resnet8", 10, in_channels=1), tmp_path / "second.safetensors")
    second = {"model": "resnet8", "weights": str(tmp_path / "second.safetensors")}
    experiment = mixing(tmp_path, teacher_weights, ensemble=[second], methods={"kd": {}})
    for number in (0, 1):
        store(experiment.for_teacher(number))
    everything_live = {"teacher.source": "live", "ensemble": [second | {"source": "live"}]}
    session, other = session_of(experiment), session_of(experiment.override(everything_live))
    step = session.draw(torch.arange(30), 0)
    for outputs, teacher in zip(step.teachers, other.teachers, strict=True):
        computed = teacher.outputs(torch.arange(30), {}, step.views)
        torch.testing.assert_close(outputs[0]["logits"], computed[0]["logits"], rtol=1e-4, atol=1e-5)


def test_both_modalities_are_mixed_by_the_same_draws(tmp_path: Path) -> None:
    save_weights(build_model("resnet14", 5, in_channels=1), tmp_path / "luminance.safetensors")
    data = {
        "name": "synthetic",
        "synthetic_size": 60,
        "synthetic_classes": 5,
        "synthetic_image_size": 16,
        "validation": 0.2,
        "augment": AUGMENT,
        "modalities": {"student": "chrominance", "teacher": "luminance"},
    }
    experiment = live(tmp_path, tmp_path / "luminance.safetensors", data=data)
    session = session_of(experiment)
    seen: list[torch.Tensor] = []
    session.teachers[0].network.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda module, given: seen.append(given[0])
    )
    positions = torch.arange(30)
    session.draw(positions, 1)
    side = session.teacher_data
    assert side is not None
    ids, views = side.ids[positions], torch.full((30,), 2)
    augment = experiment.data.augment
    how: dict[str, Any] = {"augment": augment, "seed": experiment.seed, "mean": side.mean, "std": side.std}
    partners = Partners.within(side.ids, side.ids)
    mixture = draw_mixture(ids, positions, views, partners=partners, augment=augment, seed=0, size=(16, 16))
    own, others = (
        render(side.images[where], numbers, views, **how)
        for where, numbers in ((positions, ids), (mixture.positions, mixture.ids))
    )
    assert torch.equal(seen[0], blend(own, others, mixture)) and not torch.equal(seen[0], own)


def _data(**augment: Any) -> dict[str, Any]:
    return {"name": "digits", "subset": 100, "validation": 0.2, "augment": augment or AUGMENT}
