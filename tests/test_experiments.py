"""The files below experiments/: all that can be known of them without data, weights or a download.

Networks live on torch's meta device, which knows shapes and no numbers: teachers are loaded, strictly, from checkpoints
that have the names and shapes of the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from raydistill.config import Experiment, load_experiment
from raydistill.data.config import DataConfig
from raydistill.evaluation.cost import mult_adds
from raydistill.methods.base import Setting, Shapes
from raydistill.models.taps import Tapped
from raydistill.models.zoo import build_model
from raydistill.network_config import TeacherConfig
from raydistill.teachers.cache.manifest import Augmentation, Content, DataContent, Preprocessing, TeacherContent
from raydistill.teachers.cache.request import needing_every_logit
from raydistill.teachers.cache.shards import row_bytes
from raydistill.teachers.network import load_teacher, output_shapes
from raydistill.teachers.source import check_coverage
from raydistill.tuning.space import check_space
from tests.models.published import dino, dino_head, moco, swav, timm, without_classifier

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FILES = sorted(path for path in EXPERIMENTS.glob("*/*.yaml") if path.parent.name not in ("cluster", "papers"))
IMAGENET = EXPERIMENTS / "imagenet"
IMAGENET_FILES = sorted(IMAGENET.glob("*.yaml"))
IMAGENET_IMAGES = 1281167
ABLATIONS = EXPERIMENTS / "ablations"
SWEEPS = sorted(path for path in ABLATIONS.glob("*.yaml") if path.stem != "teacher")
ASSUMED_FLOP_PER_S = 20e12

pytest.importorskip("torchvision")


def images_of(data: DataConfig) -> tuple[tuple[int, int, int], int]:
    """(C, H, W) and the number of classes; sets of unknown content are ImageNet here."""
    if data.known.shape is not None and data.known.num_classes is not None:
        return data.known.shape, data.known.num_classes
    assert data.image_size is not None
    return (3, data.image_size, data.image_size), 1000


def _moco(name: str) -> Any:
    return moco(build_model(name, 1000), nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128)))


def _swav(name: str) -> Any:
    head = nn.Sequential(nn.Linear(2048, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, 128))
    return swav(build_model(name, 1000), head, torch.empty(3000, 128))


def _dino(name: str) -> Any:
    network = build_model(name, 1000)
    if name == "deit_small_16":
        return dino(timm(without_classifier(network, "heads.")), dino_head(384, norm=False, outputs=65536))
    return dino(without_classifier(network), dino_head(2048, norm=True, outputs=65536))


PUBLISHED: dict[str | None, Callable[[str], Any]] = {
    "torchvision": lambda name: build_model(name, 1000).state_dict(),
    "simclr": lambda name: {"state_dict": build_model(name, 1000).state_dict()},
    "moco_v2": _moco,
    "swav": _swav,
    "dino": _dino,
}
"""Layout -> what its published file holds for a network."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what experiments read at the start: the prototypes of SwAV."""
    folder = tmp_path_factory.mktemp("experiments")
    save_file({"prototypes.weight": torch.randn(3000, 128)}, folder / "prototypes.safetensors")
    return folder


@cache
def student_of(model: str, shape: tuple[int, int, int], classes: int) -> tuple[Tapped, Shapes]:
    with torch.device("meta"):
        network = build_model(model, classes, shape[0])
        return network, network.shapes(shape)


@cache
def teacher_of(described: str, shape: tuple[int, int, int], classes: int, folder: Path) -> Tapped:
    config = TeacherConfig.model_validate_json(described)
    path = folder / "teacher.pth"
    with torch.device("meta"):
        holds = PUBLISHED.get(config.layout, lambda name: build_model(name, classes, shape[0]).state_dict())
        torch.save(holds(config.model), path)
        there = config.model_copy(update={"weights": str(path)})
        return load_teacher(there, num_classes=classes, in_channels=shape[0])


def _loaded(path: Path, files: Path) -> tuple[Experiment, Tapped | None]:
    experiment = load_experiment(path)
    if "prototypes_file" in path.read_text("utf-8"):
        experiment = load_experiment(path, [f"methods.protocpc.prototypes_file={files / 'prototypes.safetensors'}"])
    if experiment.teacher is None:
        return experiment, None
    return experiment, teacher_of(experiment.teacher.model_dump_json(), *images_of(experiment.data), files)


def _training_images(data: DataConfig) -> int:
    """Images to train on; 50000 of sets that are taken whole."""
    return 50000 if data.subset is None else data.subset - round(data.subset * data.validation)


def setting_of(experiment: Experiment, teacher: Tapped | None) -> Setting:
    """What the methods know before parts are built; classes are equally large."""
    shape, classes = images_of(experiment.data)
    needs, count = experiment.all_needs, _training_images(experiment.data)
    student, shapes = student_of(experiment.student.model, shape, classes)
    wanted = tuple(sorted({name for names in needs.teacher.values() for name in names}))
    return Setting(
        student=shapes,
        teachers=() if teacher is None else (output_shapes(teacher, wanted, shape),),
        student_network=student,
        num_classes=classes,
        num_samples=count,
        batch_size=experiment.train.batch_size,
        epochs=experiment.train.epochs,
        labels=torch.arange(count) % classes if "label" in needs.columns else None,
        seed=experiment.seed,
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_method_finds_what_it_needs(path: Path, files: Path) -> None:
    experiment, teacher = _loaded(path, files)
    needs, config, setting = experiment.all_needs, experiment.teacher, setting_of(experiment, teacher)
    for names in needs.student.values():
        assert names <= set(setting.student)
    for method in experiment.methods.values():
        method.check(setting)
    if config is None or teacher is None:
        assert not needs.teacher
    elif config.source == "cache":
        output_shapes(teacher, experiment.cache.outputs, images_of(experiment.data)[0])
        check_coverage("the cache", tuple(range(experiment.cache.views + 1)), experiment.cache.outputs, needs)
        assert not needing_every_logit(experiment)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_trial_of_an_ablation_can_run(path: Path, files: Path) -> None:
    experiment, teacher = _loaded(path, files)
    assert experiment.tune is not None
    check_space(experiment)
    for key, entry in experiment.tune.space.items():
        for value in entry["grid"]:
            trial = experiment.override({key: value})
            for method in trial.methods.values():
                method.check(setting_of(trial, teacher))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_ablation_shows_the_whole_curve_around_the_default(path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.tune is not None
    assert (experiment.tune.scheduler.name, experiment.tune.samples) == ("none", 1)
    grids = {key: entry["grid"] for key, entry in experiment.tune.space.items()}
    trials = 1 + prod(len(values) for values in grids.values())  # the first is the experiment as it stands
    head, readme = path.read_text("utf-8"), (ABLATIONS / "README.md").read_text("utf-8")
    assert f" for {trials} trials." in head
    row = re.search(rf"^\| `{path.stem}` \|.*\| (\d+) \|", readme, re.MULTILINE)
    assert row is not None and int(row[1]) == trials
    for key in grids:
        assert f"`{key}`" in row[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_head_tells_the_commands(path: Path) -> None:
    commands = re.findall(r"^#   raydistill .*?(experiments/\S+)", path.read_text("utf-8"), re.MULTILINE)
    assert {*commands} >= {path.relative_to(EXPERIMENTS.parent).as_posix()}


def test_no_two_files_share_a_folder_for_their_runs() -> None:
    folders = [load_experiment(path).folder for path in FILES]
    assert FILES and len({*folders}) == len(folders)


def _table() -> dict[str, list[str]]:
    """File -> the cells behind it, of the README's table."""
    lines = (IMAGENET / "README.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "→" in line]
    return {name: cells for name, *cells in rows}


def _content(experiment: Experiment, teacher: Tapped) -> Content:
    """What decides the experiment's cache, but for images and weights, which the files' paths stand for."""
    config, described, (shape, _) = experiment.cache, experiment.teacher, images_of(experiment.data)
    assert described is not None and described.weights is not None
    seen, operations = experiment.data.of_teacher, experiment.data.augment.operations
    return Content(
        data=DataContent(fingerprint=str(seen.root), count=IMAGENET_IMAGES, ids=""),
        teacher=TeacherContent(
            model=described.model,
            weights=described.weights,
            outputs=output_shapes(teacher, tuple(sorted(config.outputs)), shape),
            taps=described.taps,
        ),
        preprocessing=Preprocessing(
            mean=seen.mean or seen.known.mean, std=seen.std or seen.known.std, image_shape=shape
        ),
        augmentation=Augmentation(operations=operations, seed=config.seed) if config.views else None,
        views=config.views,
        dtype=config.dtype,
        shard_rows=config.shard_rows,
        compression=config.compression,
        top_k=config.top_k,
    )


def _as_written(text: str, value: float) -> bool:
    """Whether a number is a value rounded to the number's own digits."""
    return f"{value:.{len(text.partition('.')[2])}f}" == text


def test_the_table_has_every_file() -> None:
    assert IMAGENET_FILES and sorted(_table()) == [path.stem for path in IMAGENET_FILES]


@pytest.mark.parametrize("path", IMAGENET_FILES, ids=lambda path: path.stem)
def test_sizes_and_hours_follow_from_the_shapes(path: Path, files: Path) -> None:
    experiment, teacher = _loaded(path, files)
    _, methods, _, row, rows, size, hours = _table()[path.stem]
    head = " ".join(line.lstrip("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
    assert methods == ", ".join(experiment.methods)
    assert experiment.teacher is not None and teacher is not None
    if experiment.teacher.source == "live":
        assert (row, rows, size, hours) == ("live", "none", "none", "none")
        return
    wanted, work = row_bytes(_content(experiment, teacher)), mult_adds(teacher, images_of(experiment.data)[0])

    def check(size: str, hours: str, views: int) -> None:
        count = IMAGENET_IMAGES * (views + 1)
        assert _as_written(size, wanted * count / 1e9)
        assert _as_written(hours, count * 2 * work / ASSUMED_FLOP_PER_S / 3600)

    assert (row, rows) == (str(wanted), str(experiment.cache.views + 1))
    check(size, hours, experiment.cache.views)
    told = re.search(r"(\d+) bytes a row, ([\d.]+) GB in all.*?, ([\d.]+) GPU hours", head)
    assert told is not None and told.groups() == (row, size, hours)
    for views, size, hours in re.findall(r"`cache\.views=(\d+)`.*?([\d.]+) GB and ([\d.]+) hours", head):
        check(size, hours, int(views))


def test_files_of_one_teacher_with_equal_rows_share_a_cache(files: Path) -> None:
    shared: dict[tuple[str, int], set[str]] = {}
    for path in IMAGENET_FILES:
        experiment, teacher = _loaded(path, files)
        assert experiment.teacher is not None and teacher is not None
        if experiment.teacher.source == "cache":
            content = _content(experiment, teacher)
            shared.setdefault((content.teacher.weights, row_bytes(content)), set()).add(content.key)
    assert {len(keys) for keys in shared.values()} == {1}


def test_the_readme_says_where_every_file_of_weights_comes_from() -> None:
    readme = (IMAGENET / "README.md").read_text("utf-8")
    for path in IMAGENET_FILES:
        teacher = load_experiment(path).teacher
        assert teacher is not None and f"| {teacher.weights} |" in readme
