"""Drafts an experiment for a goal: the file's text, what is missing for it, and the commands to run next."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field

from raydistill.config import Experiment, parse_experiment
from raydistill.data.layout import layout_advice
from raydistill.data.names import DATA_SETS, KnownSet
from raydistill.errors import ConfigError, did_you_mean
from raydistill.methods.base import Method
from raydistill.methods.describe import describe
from raydistill.methods.registry import method_class
from raydistill.models.zoo import FUNCTION
from raydistill.safe_yaml import merged_values, plain_values
from raydistill.section import Count, Section

_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./@:-]*")
"""Texts that YAML reads as such without quotes, but for its words for true, false and null."""
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_UNTRAINED_CLASSES = 1000
"""Width of torchvision's classifiers, for networks whose classifier nothing trains."""
_WHY = {
    "crop": "pixels by which an image is moved",
    "flip": "how often it is mirrored; 0 where left and right matter, as in writing",
    "resized_crop": "smallest and largest part that is cut out and scaled up",
}


_OF_SETTINGS = {
    "weight": "more where the teacher is much better than the labels make the student",
    "temperature": "higher looks at what is less alike, too, lower at the likeliest or nearest alone",
    "queue": "earlier images to compare with: more is better, up to a few times the images, and takes memory",
    "negatives": "other images to compare with: more is better, and slower",
    "momentum": "how slowly the student's copy follows it; 0 does without, which saves its forward pass",
    "standardise": "where the ranges of both networks' logits differ much",
    "ensemble": "counts with several teachers alone",
    "hidden": "width within the heads: larger is slower, and better where embeddings are wide",
    "dimension": "width of what the heads give out",
}
"""Why one would change a hyper-parameter of many methods; what else there is to know of it the method itself tells."""
_ALONE = {"weight": "counts beside other methods alone"}
"""The same where no labels are learned from."""

JUDGE_TRAINS = "judge trains eight more students to compare: alone, with smoothed labels, and all three with more seeds"
"""What takes longest of the commands that come next."""


class Goal(Section):
    """What somebody may want, and the choices for it where nothing else is said."""

    about: str
    data: str
    labels: bool
    teacher: str
    layout: str | None = None
    student: str
    method: str
    settings: dict[str, Any] = Field(default_factory=dict)
    image_size: Count | None = None
    views: int
    epochs: Count
    tune: bool = False


@dataclass(frozen=True)
class Choices:
    """What was asked for; None leaves it to the goal. ``layout`` counts only where ``weights`` or the goal name one."""

    goal: str
    data: str | None = None
    root: str | None = None
    labels: bool | None = None
    teacher: str | None = None
    weights: str | None = None
    layout: str | None = None
    student: str | None = None
    method: str | None = None
    tune: bool = False


@dataclass(frozen=True)
class Draft:
    """An experiment file that loads, ``missing`` things in a line each, and the commands to run ``next``."""

    text: str
    experiment: Experiment
    missing: tuple[str, ...]
    next: tuple[str, ...]


@cache
def goals() -> Mapping[str, Goal]:
    """Return all goals by name."""
    text = files(__package__).joinpath("goals.yaml").read_text(encoding="utf-8")
    return {name: Goal.model_validate(values) for name, values in plain_values(text).items()}


def goal_named(name: str) -> Goal:
    """Return a goal. Raises ``ConfigError`` for a name that none has."""
    known = goals()
    if name not in known:
        raise ConfigError(f"--goal {name}: unknown{did_you_mean(name, known)} (known: {', '.join(known)})")
    return known[name]


def draft(choices: Choices, path: Path) -> Draft:
    """Draft the experiment that is going to stand in a file.

    Raises:
        ConfigError: for unknown names, and for what does not go together; nothing is written here in any case.
    """
    from jinja2 import Environment, StrictUndefined

    goal = goal_named(choices.goal)
    values = _values(goal, choices, path)
    commands = _next(values)
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["yaml"] = _yaml
    template = files(__package__).joinpath("experiment.yaml.j2").read_text(encoding="utf-8")
    text = environment.from_string(template).render(**values, next=commands, judge_trains=JUDGE_TRAINS)
    try:
        experiment = parse_experiment(merged_values(text, []), origin=str(path))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    missing = _missing(experiment, labels=values["labels"], trains_teacher=values["trains_teacher"])
    return Draft(text, experiment, missing, commands)


def _values(goal: Goal, choices: Choices, path: Path) -> dict[str, Any]:
    """Return what the template shows."""
    name, data = path.stem, choices.data or goal.data
    labels = goal.labels if choices.labels is None else choices.labels
    method = choices.method or goal.method
    kind, known = method_class(method), _known_set(data)
    settings = kind().model_dump(mode="json") | (goal.settings if method == goal.method else {})
    needed = _needed_of_teacher(kind)
    tune = choices.tune or goal.tune
    teacher = choices.teacher or goal.teacher
    layout = choices.layout or (goal.layout if teacher == goal.teacher else None)
    weights = choices.weights or _weights(name, teacher, layout, labels)
    of_settings = _OF_SETTINGS if labels else _OF_SETTINGS | _ALONE
    source = "cache" if needed <= {"logits", "embedding"} and not _draws_its_own(kind) else "live"
    return {
        "name": name,
        "about": goal.about,
        "file": shlex.quote(str(path)),
        "data": {"name": data, "root": choices.root or ("data" if known.needs_root else None)},
        "folder": data == "image_folder",
        "downloads": known.can_download,
        "labels": labels,
        "classes": None if labels or known.num_classes or not known.needs_root else _UNTRAINED_CLASSES,
        "image_size": (goal.image_size or 64) if known.decodes else None,
        "augment": _augment(known),
        "why": _WHY,
        "teacher": teacher,
        "layout": layout,
        "weights": weights,
        "trains_teacher": choices.weights is None and weights is not None and layout is None,
        "source": source,
        "student": choices.student or goal.student,
        "method": method,
        "paper": kind.paper,
        "settings": settings,
        "reasons": {
            key: "; ".join(filter(None, (of_settings.get(key), allowed)))
            for key, (allowed, _) in describe(method).parameters.items()
        },
        "epochs": goal.epochs,
        "outputs": sorted(needed) if source == "cache" and not labels else ["logits", "embedding"],
        "views": goal.views,
        "tune": tune,
        "metric": "val/top1" if labels else "val/neighbours@10",
        "space": _space(method, kind),
    }


def _known_set(name: str) -> KnownSet:
    if name not in DATA_SETS:
        raise ConfigError(f"--data {name}: unknown{did_you_mean(name, DATA_SETS)} (known: {', '.join(DATA_SETS)})")
    return DATA_SETS[name]


def _needed_of_teacher(kind: type[Method]) -> frozenset[str]:
    """Return the outputs that a method wants of its teacher. Raises ``ConfigError`` where it has no use for one."""
    needs = kind().needs()
    if not needs.teacher:
        raise ConfigError(
            f"--method {kind.name}: learns without a teacher, which is what this would draft an experiment for; choose "
            "another, or write `methods` by hand"
        )
    return frozenset(name for names in needs.teacher.values() for name in names)


def _draws_its_own(kind: type[Method]) -> bool:
    """Whether the teacher sees views that no cache holds."""
    needs = kind().needs()
    return any(needs.draws[view].turns for view in needs.teacher if view in needs.draws)


def _augment(known: KnownSet) -> dict[str, Any]:
    """Return mild changes that suit the images."""
    if known.decodes:
        return {"resized_crop": [0.2, 1.0], "flip": 0.5}
    side = known.shape[1] if known.shape is not None else 32
    return {"crop": max(1, side // 8), "flip": 0.0 if known.grey else 0.5}


def _weights(name: str, teacher: str, layout: str | None, labels: bool) -> str | None:
    """Return where weights will lie that nobody has named; None where the network's own function loads them."""
    if layout is not None:
        return f"weights/{layout}.pth.tar"
    if FUNCTION in teacher:
        return None
    if not labels:
        raise ConfigError(
            "--weights: without labels no teacher can be trained here; give the file of its weights, and for a "
            "published checkpoint --layout"
        )
    return f"runs/{name}-teacher/model.safetensors"


def _space(method: str, kind: type[Method]) -> dict[str, Any]:
    own = {f"methods.{method}.{key}": dict(entry) for key, entry in kind.search_space.items()}
    return {**own, "train.optimizer.lr": {"loguniform": [0.005, 0.2]}}


def _next(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the commands that lead from the file to a report."""
    file, name = values["file"], values["name"]
    runs = [f"runs/{name}"]
    commands = []
    if values["trains_teacher"]:
        commands.append(f"raydistill teacher {file}")
        runs.insert(0, shlex.quote(str(Path(values["weights"]).parent)))
    if values["source"] == "cache":
        commands += [f"raydistill cache plan {file}", f"raydistill cache build {file}"]
    if values["tune"]:
        best = f"runs/{name}-best"
        commands += [f"raydistill tune {file}", f"raydistill train runs/{name}/best.yaml name={name}-best"]
        runs.append(best)
    else:
        commands.append(f"raydistill train {file}")
    if values["labels"]:
        commands.append(f"raydistill judge {runs[-1]} --output {name}-verdict.html")
    return (*commands, f"raydistill report {' '.join(runs)} --output {name}.html")


def _missing(experiment: Experiment, *, labels: bool, trains_teacher: bool) -> tuple[str, ...]:
    """Say what has to be there before the commands can run, and is not."""
    found, teacher, root = [], experiment.teacher, experiment.data.root
    if root is not None and not Path(root).exists():
        found.append(f"data.root: no folder {root} yet; put the images there")
    elif root is not None and experiment.data.name == "image_folder":
        found += _missing_folders(Path(root), labels=labels)
    if teacher is not None and teacher.weights is not None and not Path(teacher.weights).is_file():
        advice = "the first command below trains them" if trains_teacher else "put the checkpoint there"
        found.append(f"teacher.weights: no file {teacher.weights} yet; {advice}")
    return tuple(found)


def _missing_folders(root: Path, *, labels: bool) -> list[str]:
    """Say what a folder of images lacks."""
    train = root / "train"
    if not train.is_dir():
        return [f"data.root: no folder train in {root} yet; {layout_advice(root)}"]
    if labels and not any(entry.is_dir() for entry in train.iterdir()):
        return [
            f"data.root: no folder of a class in {train} yet, such as {train / 'cat'}; for images without labels say "
            "--goal unlabelled"
        ]
    return []


def _yaml(value: Any) -> str:
    """Write a value in YAML's flow style, which JSON is a part of; texts without quotes where these are not needed."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS and value[-1] != ":":
        return value
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
