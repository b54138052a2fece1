"""What a distilled student is worth on other data: its features as they are, and the student trained on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raydistill import display
from raydistill.config import Experiment, load_experiment, parse_experiment, with_overrides
from raydistill.data.config import DataConfig
from raydistill.data.names import DATA_SETS
from raydistill.errors import ConfigError, DataError, RunError
from raydistill.progress import Progress
from raydistill.training.run_folder import CONFIG, RunFolder

_KEPT = ("seed", "backup", "scale", "evaluate", "track")
_OVERRIDABLE = ("data", "train", *_KEPT, "name", "output")
_LINEAR = "linear_top1"


def finetune_run(
    path: Path, overrides: Sequence[str], *, linear: bool = False, scratch: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Train a finished student on labelled data, from its weights on, and measure its features there.

    The new run lies beside the old one, as ``<run>-on-<data set>``, with ``-linear`` behind it where only the head is
    trained; it is a run as any other, of ``methods: {ce: {}}``. What has been finished is kept with ``resume``.

    Args:
        path: the folder of a finished student, or of a teacher.
        overrides: ``key=value`` as ``described`` takes them.
        linear: train the head alone, on frozen features.
        scratch: also train the same student with the same budget from fresh weights, all of it, as ``<name>-scratch``.
        resume: go on with runs that were begun.

    Returns:
        What stands in the run's ``result.json``: ``top1`` after training and ``linear_top1``, of a logistic regression
        on the embedding before it (fitted on the training images without the validation ones), both in percent on the
        test images; None where these cannot be read. With ``scratch`` also ``scratch_run`` and ``scratch_top1``.

    Raises:
        InputError: where run, overrides, data or weights are wrong; nothing is written then.
        RunError: where training failed, or features are not finite.
    """
    experiment = described(path, overrides, linear=linear)
    control = from_scratch(experiment)
    for one in (experiment, control):
        if one.folder.resolve() == path.resolve():
            raise ConfigError(f"{path}: the student's own folder cannot be the new run's; give that another name=...")
    result = _trained(experiment, resume=resume)
    if _LINEAR not in result:
        with display.working("linear classifier on the features") as progress:
            result |= _linear_top1(experiment, progress)
        RunFolder(experiment.folder).write_result(result)
    result["from"] = str(path)
    if scratch:
        alone = _trained(control, resume=resume and (control.folder / CONFIG).is_file())
        result |= {"scratch_run": alone["run"], "scratch_top1": alone["top1"]}
    return result


def described(path: Path, overrides: Sequence[str], *, linear: bool = False) -> Experiment:
    """Return the experiment that trains a run's student on other data.

    Of the run it keeps the network, ``backup``, ``scale``, ``evaluate``, ``track`` and the seed, each as far as it is
    not overridden. ``train`` begins afresh, as rates and schedules are made for a length and a loss. So does ``data``,
    augmentation included, but for what the student knows of its input: mean and deviation, and, where they are a
    choice, the size of the images and the modality. A data set whose images are stored in one size keeps that. The head
    is always fresh, also where classes are as many.

    Args:
        path: the run's folder.
        overrides: ``key=value`` of ``data`` (its name at least), ``train``, ``backup``, ``scale``, ``evaluate``,
            ``track``, ``seed``, ``name`` and ``output``.
        linear: train the head alone.

    Raises:
        DataError: where the folder holds no finished run.
        ConfigError: where overrides are wrong, or images have other channels than those that the student knows.
    """
    from raydistill.evaluation.card import refuse_sweep, trained_weights

    given = _checked(path, overrides)
    refuse_sweep(path, "fine-tune")
    weights = trained_weights(path)
    old = load_experiment(path / CONFIG)
    values, own = old.to_dict(), path if path.name not in ("", "..") else path.resolve()
    base = {
        **{key: values[key] for key in _KEPT},
        "name": f"{own.name}-on-{given['name']}{'-linear' if linear else ''}",
        "output": str(own.parent),
        "data": _input_of(old.data, given),
        "student": {
            "model": old.student.model,
            "taps": old.student.taps,
            "weights": str(weights),
            "head": "fresh",
            "trains": "head" if linear else "all",
        },
        "methods": {"ce": {}},
    }
    experiment = parse_experiment(with_overrides(base, overrides, origin=str(path)), origin=str(path))
    _check_channels(path, old.data, experiment.data)
    _tell_size(old.data, experiment.data)
    return experiment if {"mean", "std"} & given.keys() else _normalised_as(old.data, experiment)


def from_scratch(experiment: Experiment) -> Experiment:
    """Return the control: the same student trained whole from fresh weights, with all else the same."""
    student = {"model": experiment.student.model, "taps": experiment.student.taps}
    return experiment.override({"name": f"{experiment.name}-scratch", "student": student})


def _checked(path: Path, overrides: Sequence[str]) -> Mapping[str, Any]:
    """Return what the overrides say of the data."""
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] not in _OVERRIDABLE:
            known = ", ".join(_OVERRIDABLE)
            raise ConfigError(f"{override}: finetune takes {known} alone; the student stays what it is, learning by ce")
    data = with_overrides({}, overrides, origin=str(path)).get("data", {})
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ConfigError(f"{path}: name the new data, such as data.name=image_folder data.root=photos")
    return data


def _input_of(old: DataConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the student's input is, as far as the new data set leaves it open and nobody says otherwise."""
    known = DATA_SETS.get(given["name"])
    if known is None:  # the parser tells
        return {}
    found: dict[str, Any] = {}
    if known.decodes and "image_size" not in given:
        found["image_size"] = old.side
    colourless = known.grey or given.get("synthetic_channels") == 1
    if old.modalities is not None and "modalities" not in given and not colourless:
        found["modalities"] = {"student": old.modalities.student}
    return found


def _check_channels(path: Path, old: DataConfig, new: DataConfig) -> None:
    if old.channels != new.channels:
        grey = old.channels == 1 and new.channels == 3
        advice = "; data.modalities.student=luminance makes one of colours" if grey else ""
        raise ConfigError(
            f"{path}: its student sees images of {old.channels} channels, those of '{new.name}' have "
            f"{new.channels}{advice}"
        )


def _tell_size(old: DataConfig, new: DataConfig) -> None:
    if old.side != new.side and None not in (old.side, new.side):
        display.say(f"the student was trained on images of {old.side} pixels, those of '{new.name}' have {new.side}")


def _normalised_as(old: DataConfig, experiment: Experiment) -> Experiment:
    mean, std = old.normalisation
    return experiment.override({"data.mean": list(mean), "data.std": list(std)})


def _trained(experiment: Experiment, *, resume: bool) -> dict[str, Any]:
    from raydistill.training.trainer import train

    with display.training(experiment, experiment.train.epochs) as watch:
        return train(experiment, resume=resume, watch=watch)


def _linear_top1(experiment: Experiment, progress: Progress) -> dict[str, Any]:
    """Measure the features that training began with, on the test images."""
    from raydistill.evaluation.card import device_of
    from raydistill.evaluation.images import own_images
    from raydistill.evaluation.protocols import PROTOCOLS
    from raydistill.evaluation.subject import Subject
    from raydistill.models.head import build_with_fresh_head

    device = device_of(experiment)
    progress(0.0, "reading the images")
    try:
        images = own_images(experiment.data, device)
    except DataError as error:
        return {_LINEAR: None, "test_problem": str(error)}
    if not images.labelled:
        return {_LINEAR: None, "test_problem": "the test images have no labels"}
    network = build_with_fresh_head(experiment.student, images.bank.num_classes, images.bank.shape).to(device).eval()
    progress(0.2, "features of all images, and fitting")
    subject = Subject(network, images.bank, images.test, False, experiment.evaluate, experiment.seed)
    try:
        return {_LINEAR: PROTOCOLS["linear"].measure(subject)["linear"]}
    except ValueError as error:
        raise RunError(f"{experiment.folder}: the linear classifier cannot be fitted: {error}") from None
