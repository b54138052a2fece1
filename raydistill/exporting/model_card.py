"""The model card: what a student is, how it came about, how good it is and what is not known of it.

It goes out with the model, so it holds no path of the machine that the run was made on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from raydistill.config import Experiment
from raydistill.errors import DataError
from raydistill.evaluation.cost import parameter_count
from raydistill.exporting.deployed import IMAGES
from raydistill.exporting.parity import BATCHES, BOUND
from raydistill.exporting.subject import Subject
from raydistill.measures import VALIDATION, measure_behind
from raydistill.models.taps import LOGITS

_MEASURES = {
    "top1": "Top-1 (%)",
    "top5": "Top-5 (%)",
    "nn1": "1-NN (%)",
    "knn": "k-NN (%)",
    "parameters": "Parameters",
    "mult_adds": "Multiply-adds",
    "latency_p50_ms": "Latency, median (ms)",
    "latency_p95_ms": "Latency, 95th percentile (ms)",
}
_EXPORTERS = ("torch", "onnx", "onnxruntime", "onnxscript")

Row = tuple[str, ...]


def render(subject: Subject, exported: Mapping[str, Any], lines: str) -> str:
    """Return the card as Markdown.

    Args:
        subject: the run.
        exported: what ``export.json`` tells.
        lines: Python that loads and runs the artefact in its folder.

    Raises:
        DataError: where a file of the run is damaged.
    """
    from jinja2 import Environment, StrictUndefined

    template = resources.files("raydistill.exporting").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"number": _number, "plain": _plain}
    return environment.from_string(template).render(_content(subject, exported, lines))


def _content(subject: Subject, exported: Mapping[str, Any], lines: str) -> dict[str, Any]:
    experiment, description = subject.experiment, subject.description
    result = _json(subject.run / "result.json")
    card = _json(subject.run / "card.json")
    teachers = _teachers(experiment, card)
    return {
        "name": experiment.name,
        "model": description.model,
        "parameters": parameter_count(subject.student),
        "is_teacher": result.get("kind") == "teacher",
        "lines": lines,
        "exported": exported,
        "bound": BOUND,
        "batches": ", ".join(map(str, BATCHES)),
        "input": IMAGES,
        "shape": description.image_shape,
        "outputs": _outputs(subject),
        "classes": description.classes,
        "preprocessing": _preprocessing(experiment, description.image_shape),
        "mean": [round(value, 6) for value in description.mean],
        "std": [round(value, 6) for value in description.std],
        "data": _data(subject),
        "teachers": teachers,
        "peers": [peer.model for peer in experiment.peers],
        "methods": _methods(experiment),
        "training": _training(experiment, result),
        "metrics": _metrics(result, "top-1" if experiment.needs.trains_classifier else "k-NN accuracy"),
        "measures": _measured(card),
        "roles": list(card),
        "limits": _limits(subject, result),
        "versions": _versions(subject.run),
    }


def _outputs(subject: Subject) -> list[Row]:
    shapes = subject.student.shapes(subject.description.image_shape)
    means = {LOGITS: "a score for each class; softmax makes them add up to 1"}
    return [
        (name, str(shapes[name][0]), means.get(name, "what the classifier sees; compare by cosine"))
        for name in subject.description.outputs
    ]


def _preprocessing(experiment: Experiment, shape: tuple[int, int, int]) -> list[str]:
    data, (channels, height, width) = experiment.data, shape
    steps = []
    if data.known.decodes and data.image_size is not None:
        steps.append(
            f"scale the shorter side to {data.image_size} pixels (bilinear, as Pillow does it), cut out the centre"
        )
    if data.modalities is not None and data.modalities.student != "rgb":
        steps.append(f"turn the image into its {data.modalities.student}, as raydistill.data.modalities does")
    colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    steps.append(f"{height} x {width} pixels, {colours}, channels first; divide by 255")
    return steps


def _data(subject: Subject) -> list[Row]:
    data, splits = subject.experiment.data, subject.splits
    unknown = "not at hand when this was exported"
    return [
        ("Data set", f"`{data.name}`" + (f", a subset of {data.subset} images" if data.subset else "")),
        ("Trained on", unknown if splits is None else f"{len(splits.train)} images"),
        ("Chosen on (validation)", unknown if splits is None else f"{len(splits.validation)} images"),
        ("Test", f"{len(subject.images)} images" if subject.on_test else unknown),
        ("Classes", str(subject.description.num_classes) if subject.images.labels is not None else "no labels"),
        ("Augmentation", _settings(data.augment.model_dump(mode="json", exclude_defaults=True)) or "none"),
    ]


def _teachers(experiment: Experiment, card: Mapping[str, Any]) -> list[Row]:
    """Name of each teacher and, where known, its accuracy in percent and on which images."""
    rows: list[Row] = []
    for number, teacher in enumerate(experiment.teachers):
        measured = card.get(f"teacher {number + 1}" if number else "teacher", {})
        told = "not known"
        if (top1 := measured.get("top1")) is not None:
            told = f"{top1:.2f}"
        elif teacher.weights is not None and (top1 := _top1_of_teachers_run(Path(teacher.weights).parent)) is not None:
            told = f"{top1:.2f}, on those of its own training"
        rows.append((teacher.model, told))
    return rows


def _top1_of_teachers_run(folder: Path) -> float | None:
    """What the run that the weights lie in says, if it is one."""
    try:
        result = _json(folder / "result.json")
    except DataError:
        return None
    return result.get("top1") if result.get("kind") == "teacher" else None


def _methods(experiment: Experiment) -> list[Row]:
    return [
        (
            label if label == method.name else f"{label} ({method.name})",
            f"{method.weight:g}",
            _settings(method.model_dump(mode="json", exclude={"weight"})) or "-",
        )
        for label, method in experiment.methods.items()
    ]


def _training(experiment: Experiment, result: Mapping[str, Any]) -> list[Row]:
    train = experiment.train
    rows: list[Row] = [
        ("Epochs", str(result.get("epochs", train.epochs))),
        ("Batch size", str(train.batch_size)),
        ("Optimiser", _settings(train.optimizer.model_dump(mode="json"))),
        ("Schedule", _settings(train.schedule.model_dump(mode="json"))),
        ("Precision", train.precision),
        ("Seed", str(experiment.seed)),
        ("Workers", str(experiment.scale.workers)),
    ]
    costs = {
        "seconds": "Training time (s)",
        "energy_j": "Energy (J)",
        "images_per_s": "Images a second",
        "teacher_forwards": "Teacher forwards",
        "teacher_forwards_saved": "Teacher forwards saved by the cache",
    }
    spent: list[Row] = [(title, _number(result[key])) for key, title in costs.items() if result.get(key) is not None]
    return [*rows, *spent]


def _metrics(result: Mapping[str, Any], measure: str) -> list[Row]:
    titles = {
        "top1": f"{measure} on the test images (%)",
        "val_top1": f"{measure} on the validation images, after the last epoch (%)",
        "best_val_top1": "the best of it in any epoch (%)",
    }
    for key in result:
        if measure_behind(key.replace("val_", VALIDATION, 1)) is not None:
            titles[key] = f"{key.removeprefix('val_')} of student and teacher on the validation images"
    found = {title: result[key] for key, title in titles.items() if result.get(key) is not None}
    return [(title, f"{value:.2f}") for title, value in found.items()]


def _measured(card: Mapping[str, Any]) -> list[Row]:
    """The rows of ``card.json``: a measure, and its value for each network."""
    return [
        (title, *(_number(values[key]) if key in values else "-" for values in card.values()))
        for key, title in _MEASURES.items()
        if any(key in values for values in card.values())
    ]


def _limits(subject: Subject, result: Mapping[str, Any]) -> list[str]:
    experiment = subject.experiment
    size = "x".join(map(str, subject.description.image_shape[1:]))
    averaged = "the average of the weights over the training" if result.get("averaged") else "the weights"
    limits = [
        f"It has seen images of `{experiment.data.name}` alone; how it does on others was not measured.",
        f"It takes images of {size} pixels.",
        f"One run with seed {experiment.seed}: nothing here tells how far another seed would be from it.",
        f"The file holds {averaged} after the last epoch, which need not be the best on the validation images.",
    ]
    if subject.classifies:
        limits.append("It names one of its classes for any image whatever, and its scores were not calibrated.")
    else:
        limits.append("No classifier was trained: it gives embeddings alone.")
    if result.get("skipped_images"):
        limits.append(f"{result['skipped_images']} training images could not be decoded and were left out.")
    warnings = [f"The training warned: {_plain(text)}" for text in result.get("warnings", ())]
    return [*limits, *warnings, "Fairness, robustness and privacy were not examined."]


def _versions(run: Path) -> list[Row]:
    environment = _json(run / "environment.json")
    trained = {"python": environment.get("python"), **environment.get("packages", {})}
    packages = ", ".join(f"{name} {version}" for name, version in trained.items() if version)
    return [("Trained with", packages or "not known"), ("Exported with", _installed())]


def _installed() -> str:
    found = []
    for package in ("raydistill", *_EXPORTERS):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _settings(values: Mapping[str, Any]) -> str:
    """Settings in one line; of a path its last part alone."""
    return ", ".join(f"{key} {_setting(value)}" for key, value in values.items() if value not in (None, "", [], {}))


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_settings(value)})"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(_setting, value))
    if isinstance(value, float):
        return f"{value:g}"
    return _plain(Path(value).name if isinstance(value, str) else str(value).lower())


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return f"{value:,.2f}".removesuffix(".00")


def _plain(text: str) -> str:
    """Text that leaves a line and a table of Markdown as they are."""
    return " ".join(text.split()).replace("|", "/").replace("`", "'")


def _json(path: Path) -> dict[str, Any]:
    """Return the mapping of a JSON file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: a mapping was expected, not {type(found).__name__}")
    return found
