"""From two networks and a data set to a trained student, by the same cache, training and sweeps as experiments have."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from raydistill import display
from raydistill.api.handed import PREFIX, hand_over, offered, write_weights
from raydistill.api.outcome import Distilled
from raydistill.api.storing import Stored, store_images
from raydistill.cluster import ensure_ray
from raydistill.config import Experiment, flatten, load_experiment, parse_experiment
from raydistill.errors import ConfigError, DataError, RaydistillError, RunError, first_line
from raydistill.models.loading import build_described
from raydistill.models.taps import LOGITS
from raydistill.models.weights import load_weights
from raydistill.models.zoo import build_model
from raydistill.sweep_display import sweep as sweep_display
from raydistill.teachers.cache.build import BuildReport, build_cache
from raydistill.teachers.cache.request import missing_outputs
from raydistill.training.run_folder import CONFIG
from raydistill.training.trainer import STUDENT_WEIGHTS, train
from raydistill.tuning.space import check_space, covering
from raydistill.tuning.sweep import tune as run_sweep
from raydistill.tuning.trial_folder import finalists_of, trials_of

INPUTS = "inputs"
"""Folder below ``output`` of images and weights that were handed over."""
_ORIGIN = "distill"
_DECIDES = ("data.root", "teacher.model", "teacher.weights", "student.model", "student.weights")
_Network = nn.Module | str
_Moments = float | Sequence[float]


def distill(
    teacher: _Network | None,
    student: _Network,
    dataset: Any,
    methods: str | Iterable[str] | Mapping[str, Mapping[str, Any] | None] = "kd",
    *,
    test: Any | None = None,
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 0.05,
    augment: Mapping[str, Any] | None = None,
    mean: _Moments = 0.0,
    std: _Moments = 1.0,
    validation: float = 0.1,
    tune: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
    seed: int = 0,
    name: str = "distilled",
    output: str | Path = "runs",
    cache: str | Path = "cache",
    resume: bool = False,
    progress: bool = True,
) -> Distilled:
    """Distil a teacher into a student, both of them any modules, on any data set of images.

    The teacher sees each image once, by Ray Data, into a cache that later calls with the same teacher and images read;
    the student learns from it by Ray Train, or, with ``tune``, many do by Ray Tune. What is given stays as it is: both
    networks are copied, and may be of classes that only this notebook knows.

        result = raydistill.distill(teacher, student, train_set, {"kd": {"temperature": 4.0}}, test=test_set)
        result.student(images)            # images as train_set gives them, in a batch and normalised

    A network maps float32 images [B, C, H, W], normalised by ``mean`` and ``std``, to one tensor [B, classes]. Its
    embedding is what its last linear layer takes, or its output if it has none. Another embedding, or feature maps for
    methods that compare them, are named: ``settings={"teacher.taps": {"features/0": "layer1"}}``, likewise of
    ``student``; what a method wants of them is added to the cache's outputs.

    Args:
        teacher: a network with its weights; a name of ``raydistill list models`` with ``teacher.weights`` in
            ``settings``; or None, to learn from labels alone.
        student: a network, trained from the weights that it has, or a name.
        dataset: a map-style data set whose items are images or pairs (image, label); an array or tensor of images
            [N, ...]; or a pair of those and labels [N]. An image is a PIL image of mode L or RGB, a uint8 array or
            tensor [H, W], [H, W, C] or [C, H, W] of one channel or three, or the same as float with the levels k / 255,
            as torchvision's ``ToTensor`` gives them. Labels are whole numbers from 0 up.
        methods: a name of ``raydistill list methods``, several, or label -> hyper-parameters as in an experiment file.
        test: the same of test images, which are looked at once, at the end, and by ``card()``.
        epochs: of training.
        batch_size: of one step, over all workers.
        lr: highest learning rate, of SGD with a cosine unless ``settings`` say otherwise.
        augment: random changes as ``data.augment`` names them, such as ``{"crop": 4, "flip": 0.5}``.
        mean: of images in [0, 1], for each channel or all of them, as both networks were normalised with.
        std: likewise; as they stand, networks see images in [0, 1].
        validation: share of ``dataset`` that is held out, for the curve and for a sweep's choices.
        tune: dotted keys -> ranges, as ``tune.space`` has them: a sweep, whose best student comes back.
        settings: dotted keys of an experiment -> values, for all else: ``{"train.optimizer.name": "adamw"}``.
        workers: number of training processes.
        seed: decides all that is random in training.
        name: of the run, whose folder is ``<output>/<name>``; an earlier run of that name is moved aside.
        output: folder of runs, and, below ``inputs``, of the images and weights that were handed over.
        cache: folder or URL of teacher caches.
        resume: go on with the run of this name; one that has finished is given back as it is.
        progress: whether lines on stderr tell how it goes.

    Returns:
        The student, and what is known of its run.

    Raises:
        ConfigError: networks, methods, settings or the space of a sweep are wrong.
        DataError: images cannot be taken exactly as they are, or labels are missing that a method needs.
        CacheError: the cache cannot hold what the teacher gives.
        RunError: the run failed.
    """
    values: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "output": str(output),
        "data": {
            "name": "parquet",
            "root": ".",
            "image_size": None,
            "validation": validation,
            "augment": dict(augment or {}),
        },
        "methods": _methods(methods),
        "train": {"epochs": epochs, "batch_size": batch_size, "optimizer": {"lr": lr}},
        "cache": {"root": str(cache) if "://" in str(cache) else str(Path(cache).resolve())},
        "scale": {"workers": workers},
    }
    if tune is not None:
        values["tune"] = {"space": dict(tune)}
    networks = {"student": student, **({} if teacher is None else {"teacher": teacher})}
    given = {role: network for role, network in networks.items() if isinstance(network, nn.Module)}
    handed = {role: hand_over(network, role) for role, network in given.items()}
    for role, network in networks.items():
        values[role] = {"model": handed.get(role, network)}
        if role in handed:  # a path that is not there yet; how the rest reads can be told before anything is written
            values[role]["weights"] = "."
    settings = dict(settings or {})
    _checked(_with(values, settings))

    inputs = Path(output).resolve() / INPUTS  # workers may have another working directory, if Ray was there before
    stored = store_images(dataset, test, inputs)
    values["data"] |= _images(stored, mean, std)
    for role, network in given.items():
        values[role]["weights"] = str(write_weights(handed[role], network, inputs))
    experiment = _checked(_with(values, settings))
    widths = {role: _width(experiment, role, stored) for role in handed}
    experiment = _fitting(experiment, stored, widths, settings)
    if resume:
        _require_the_same(experiment)
    ensure_ray()
    with offered([*handed.items()]):
        job = _Job(experiment, resume=resume, progress=progress)
        built = job.cache()
        run, values, sweep = job.sweep() if experiment.tune is not None else job.train()
    return Distilled(_trained(run, stored, given, handed), run, values, sweep, built)


@dataclass(frozen=True)
class _Job:
    """The steps of one call."""

    experiment: Experiment
    resume: bool
    progress: bool

    def cache(self) -> BuildReport | None:
        """Compute what is missing of the teacher's cache, if anything is read from it."""
        experiment = self.experiment
        if experiment.teacher is None or experiment.teacher.source == "live":
            return None
        if not (experiment.reads_cache or experiment.agreement):
            return None
        with display.rows("teacher") if self.progress else nullcontext() as watch:
            return build_cache(experiment, progress=watch)

    def train(self) -> tuple[Path, dict[str, Any], None]:
        """Train one student."""
        experiment = self.experiment
        with self._shown(display.training(experiment, experiment.train.epochs)) as watch:
            result = train(experiment, resume=self.resume, watch=watch)
        return Path(result["run"]), result, None

    def sweep(self) -> tuple[Path, dict[str, Any], Path]:
        """Train many, and find the folder of the best."""
        with self._shown(sweep_display(self.experiment)) as watch:
            result = run_sweep(self.experiment, resume=self.resume, watch=watch)
        folder, number = Path(result["run"]), int(result["best_trial"])
        finalists = [trial for trial in finalists_of(folder) if trial.record["trial"] == number and trial.succeeded]
        winner = (finalists or [trials_of(folder)[number]])[0].path
        if not (winner / STUDENT_WEIGHTS).is_file():
            raise RunError(f"{folder}: the budget was spent before a trial came to its end; raise tune.budget")
        return winner, result, folder

    def _shown(self, shown: Any) -> Any:
        return shown if self.progress else nullcontext(lambda folder: None)


def _methods(methods: Any) -> dict[str, Any]:
    """Return label -> hyper-parameters; the parser says what is wrong with them."""
    if isinstance(methods, str):
        return {methods: {}}
    if isinstance(methods, Mapping):
        return {str(label): {} if given is None else given for label, given in methods.items()}
    if isinstance(methods, Iterable):
        return {str(method): {} for method in methods}
    raise ConfigError(f"methods = {methods!r}: a name, several, or label -> hyper-parameters")


def _with(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with dotted keys set; whether they exist the parser says."""
    found = copy.deepcopy(dict(values))
    for key, value in settings.items():
        *sections, last = str(key).split(".")
        place = found
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"settings: '{key}' is below {section} = {inner!r}, which is no section")
            place = inner
        place[last] = value
    return found


def _checked(values: Mapping[str, Any]) -> Experiment:
    experiment = parse_experiment(values, origin=_ORIGIN)
    if experiment.tune is not None:
        check_space(experiment)
    return experiment


def _images(stored: Stored, mean: _Moments, std: _Moments) -> dict[str, Any]:
    """Return what the section ``data`` says of the images that were written."""
    moments = {"mean": _each(mean, stored.shape[0]), "std": _each(std, stored.shape[0])}
    found: dict[str, Any] = {"root": str(stored.folder), **moments}
    if stored.shape[0] == 1:  # decoded to colours otherwise
        teachers = {f"teacher_{key}": value for key, value in moments.items()}
        found["modalities"] = {"student": "grey", "teacher": "grey", **teachers}
    return found


def _each(moments: _Moments, channels: int) -> list[float]:
    return [float(value) for value in ([moments] * channels if isinstance(moments, int | float) else moments)]


def _width(experiment: Experiment, role: str, stored: Stored) -> int:
    """Run a network that was handed over on one image, and return the number of its logits.

    Raises:
        ConfigError: it cannot take the images, or gives something else than one tensor [B, classes].
    """
    config = experiment.student if role == "student" else experiment.teacher
    assert config is not None
    size = experiment.data.image_size
    shape = stored.shape if size is None else (stored.shape[0], size, size)
    kind = config.model.removeprefix(PREFIX).rpartition("_")[0]
    try:
        return build_described(config, 1, shape[0]).shapes(shape)[LOGITS][0]
    except RaydistillError as error:
        raise ConfigError(f"{role}: {kind}: {first_line(error)}") from None
    except Exception as error:  # whatever the network's own code raises
        raise ConfigError(f"{role}: {kind} cannot take images {list(shape)}: {first_line(error)}") from error


def _fitting(
    experiment: Experiment, stored: Stored, widths: Mapping[str, int], settings: Mapping[str, Any]
) -> Experiment:
    """Return the experiment with what follows from images and networks, where nobody says otherwise.

    Without labels the number of classes is that of the teacher's logits, or the student's. The cache keeps what methods
    want of the teacher.

    Raises:
        ConfigError: the student has fewer logits than there are classes to learn.
        DataError: there are no labels, but a method needs them.
    """
    if "label" in experiment.all_needs.columns:
        if not stored.classes:
            label = next(key for key, method in experiment.methods.items() if "label" in method.needs().columns)
            raise DataError(f"methods.{label} needs labels, but dataset gives images alone")
        if widths.get("student", stored.classes) < stored.classes:
            raise ConfigError(
                f"student: gives {widths['student']} logits, but there are labels up to {stored.classes - 1}"
            )
    if not stored.classes and "data.num_classes" not in settings and widths:
        width = widths.get("teacher", next(iter(widths.values())))
        experiment = experiment.override({"data.num_classes": width})
    wanted = missing_outputs(covering(experiment) if experiment.tune is not None else experiment)
    if wanted and "cache.outputs" not in settings:
        experiment = experiment.override({"cache.outputs": [*experiment.cache.outputs, *wanted]})
    return experiment


def _require_the_same(experiment: Experiment) -> None:
    """Refuse to go on with a run of other images or networks, whose checkpoints might fit all the same."""
    path = experiment.folder / CONFIG
    if not path.is_file():  # the run itself tells
        return
    before, now = flatten(load_experiment(path).to_dict()), flatten(experiment.to_dict())
    if changed := [key for key in _DECIDES if before.get(key) != now.get(key)]:
        raise ConfigError(
            f"{experiment.folder}: resume=True goes on with the run that began, but {', '.join(changed)} changed; undo "
            "that, or give the run another name"
        )


def _trained(run: Path, stored: Stored, given: Mapping[str, nn.Module], handed: Mapping[str, str]) -> nn.Module:
    """Return the trained student: a copy of what was given, or the network of the run's name, as a sweep may choose."""
    config = load_experiment(run / CONFIG)
    if config.student.model == handed.get("student"):
        student = copy.deepcopy(given["student"]).cpu()
    else:
        classes = stored.classes or config.data.num_classes or 0
        student = build_model(config.student.model, classes, stored.shape[0])
    load_weights(student, run / STUDENT_WEIGHTS)
    return student.eval()
