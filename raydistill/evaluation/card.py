"""The report card of a run: how good the student and its teacher are, how alike, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from raydistill.config import Experiment, load_experiment
from raydistill.data.folder import has_test_images
from raydistill.errors import ConfigError, DataError, RunError, did_you_mean
from raydistill.evaluation.card_files import CARD, CORRELATION, PANELS, PREDICTIONS
from raydistill.evaluation.correlation import correlation_discrepancy
from raydistill.evaluation.images import Images, own_images, transfer_images
from raydistill.evaluation.panels import panels_of
from raydistill.evaluation.protocols import PROTOCOLS, Values
from raydistill.evaluation.subject import TEST, Subject
from raydistill.files import write_atomically, writing
from raydistill.models.loading import build_described
from raydistill.network_config import NetworkConfig, TeacherConfig
from raydistill.progress import Progress, part, unwatched
from raydistill.protocol_names import ALL

if TYPE_CHECKING:
    import pandas as pd

STUDENT, TEACHER = "student", "teacher"
_LOGITS = f"{TEST}/logits"
_OVERRIDABLE = ("evaluate.", "data.root=", "data.download=", "teacher.weights=", "scale.use_gpu=")


@dataclass(frozen=True)
class Card:
    """What was measured.

    Attributes:
        values: ``student``, ``teacher`` (``teacher 2`` and so on of several) and, of networks trained together with the
            student, ``peer1`` and so on -> name -> percent, counts, bytes or milliseconds. Names on another data set
            begin with its label and a slash.
        subjects: the networks with their outputs on the run's own images.
    """

    values: dict[str, dict[str, float]]
    subjects: Mapping[str, Subject] = field(repr=False)

    @cached_property
    def predictions(self) -> pd.DataFrame | None:
        """What each classifier says of each test image: ``id``, ``label`` and, for each network, class and confidence.

        None where no classifier was looked at, or images have no label.
        """
        import pandas as pd

        judged = {
            role: subject for role, subject in self.subjects.items() if subject.classifies and subject.seen(_LOGITS)
        }
        test = self.subjects[STUDENT].test
        if not judged or test.labels is None:
            return None
        columns = {"id": test.ids.cpu().numpy(), "label": test.labels.cpu().numpy()}
        for role, subject in judged.items():
            confidence, predicted = subject.output(TEST, "logits").float().softmax(dim=1).max(dim=1)
            columns[role] = predicted.cpu().numpy()
            columns[f"{role} confidence"] = confidence.cpu().numpy()
        return pd.DataFrame(columns)

    @cached_property
    def correlation(self) -> pd.DataFrame | None:
        """|corr(student) - corr(teacher)| of the logits [C, C]; None where they were not compared."""
        import pandas as pd

        if "correlation_discrepancy" not in self.values[STUDENT]:
            return None
        student, teacher = (self.subjects[role].output(TEST, "logits") for role in (STUDENT, TEACHER))
        return pd.DataFrame(correlation_discrepancy(student, teacher)[1].abs().numpy())


def evaluate_run(
    path: str | Path, protocols: Iterable[str] = (), *, teachers: bool = True, overrides: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Measure a run as ``examine_run`` does and return the card's values."""
    return examine_run(path, protocols, teachers=teachers, overrides=overrides).values


def examine_run(
    path: str | Path,
    protocols: Iterable[str] = (),
    *,
    teachers: bool = True,
    overrides: Sequence[str] = (),
    progress: Progress = unwatched,
) -> Card:
    """Measure a run's student, and its teacher where weights and test images of it are at hand, on the test images.

    Each network sees each image once, whatever is measured, but for the maps of ``linear_stages``.

    Args:
        path: the run's folder.
        protocols: names of ``raydistill list protocols``, ``all`` for each of them; else the experiment's own.
        teachers: False measures only networks that were trained.
        overrides: ``key=value`` for the section ``evaluate``, and for where data and weights lie by now.
        progress: is told of each measurement before it begins.

    Raises:
        DataError: where the folder holds no finished run, or the data cannot be read.
        ConfigError: for an unknown protocol or another key.
        RunError: where a network's outputs cannot be measured, as they are not finite.
    """
    path = Path(path)
    refuse_sweep(path, "evaluate")
    weights = trained_weights(path)
    experiment = load_experiment(path / "config.yaml", _checked(overrides))
    chosen = _chosen(protocols or experiment.evaluate.protocols)
    device = device_of(experiment)
    progress(0.0, f"{path}: the images are read")
    own = own_images(experiment.data, device)
    if not (own.labelled or experiment.evaluate.transfer):
        _require_no_truth(chosen, experiment.data.name)
    subjects = _subjects(experiment, weights, own, device, teachers)
    parts = _parts(progress, len(subjects) * (1 + len(experiment.evaluate.transfer)))
    values = {role: _measured(f"{path}: {role}", subject, chosen, next(parts)) for role, subject in subjects.items()}
    for label, data in experiment.evaluate.transfer.items():
        like = subjects[STUDENT].test
        images = transfer_images(data, like, device)
        for role, subject in subjects.items():
            if subject.test.shape == like.shape:  # a teacher of another modality has no use for them
                whose, moved = f"{path}: {role} on {label}", _moved(subject, images)
                found = _measured(whose, moved, _of_features(chosen), next(parts))
                values[role] |= {f"{label}/{name}": value for name, value in found.items()}
    return Card(values, subjects)


def write_card(path: str | Path, card: Card) -> None:
    """Write ``card.json`` into a run's folder, and beside it what a report shows of single images and classes.

    These are the predictions and the map of correlations, if there are any, and the ids of images to be shown.

    Raises:
        RunError: where a file cannot be written.
    """
    path = Path(path)
    if card.predictions is not None:
        with writing(path / PREDICTIONS) as file:
            card.predictions.to_parquet(file, index=False)
    if card.correlation is not None:
        with writing(path / CORRELATION) as file:
            card.correlation.to_csv(file, index=False)
    write_atomically(path / PANELS, panels_of(card.subjects).model_dump_json() + "\n")
    write_atomically(path / CARD, json.dumps(card.values, indent=2) + "\n")


def refuse_sweep(path: Path, verb: str) -> None:
    """Raise ``DataError`` for the folder of a sweep; ``verb`` says what to do with its winner once that is trained."""
    if (path / "trials").is_dir():
        raise DataError(
            f"{path}: a sweep, not a run; train its winner (raydistill train {path / 'best.yaml'}) and {verb} that run"
        )


def trained_weights(path: Path) -> Path:
    """Return the weights of a finished run, of a student or a teacher. Raises ``DataError`` where there are none."""
    if not path.is_dir():
        raise DataError(f"{path}: no finished run, as there is no such folder; a run lies at <output>/<name>")
    files = (path / name for name in ("student.safetensors", "model.safetensors"))
    weights = next((file for file in files if file.is_file()), None)
    if weights is None or not (path / "_SUCCESS").is_file():
        raise DataError(f"{path}: no finished run (it has no _SUCCESS or no weights); see its logs, or train --resume")
    return weights


def _checked(overrides: Sequence[str]) -> Sequence[str]:
    for override in overrides:
        if not override.startswith(_OVERRIDABLE):
            known = ", ".join(key.rstrip("=") for key in _OVERRIDABLE)
            raise ConfigError(f"{override}: a finished run is measured as it is; eval takes {known} alone")
    return overrides


def _chosen(names: Iterable[str]) -> list[str]:
    names = list(names)
    for name in names:
        if name not in (*PROTOCOLS, ALL):
            known = ", ".join((*PROTOCOLS, ALL))
            raise ConfigError(f"--protocol {name}: unknown{did_you_mean(name, PROTOCOLS)} (known: {known})")
    return list(PROTOCOLS) if ALL in names else list(dict.fromkeys(names))


def device_of(experiment: Experiment) -> torch.device:
    """Return where a run is measured: one that was trained on a GPU is so where there is none, too."""
    return torch.device("cuda" if experiment.scale.use_gpu and torch.cuda.is_available() else "cpu")


def _require_no_truth(chosen: Iterable[str], data_set: str) -> None:
    judging = [name for name in chosen if PROTOCOLS[name].truth is not None]
    if judging:
        free = " ".join(f"--protocol {name}" for name, protocol in PROTOCOLS.items() if protocol.truth is None)
        raise DataError(
            f"data set '{data_set}' has no labels, by which {', '.join(judging)} would judge; ask for what needs none "
            f"({free}), or name labelled images: evaluate.transfer.LABEL={{name: image_folder, root: FOLDER}}"
        )


def _subjects(
    experiment: Experiment, weights: Path, own: Images, device: torch.device, teachers: bool
) -> dict[str, Subject]:
    trains_classifier = experiment.needs.trains_classifier
    networks = _teachers(experiment) if teachers and has_test_images(experiment.data.of_teacher) else {}
    of_teacher = own_images(experiment.data.of_teacher, device) if networks and experiment.data.modalities else own
    subjects = {
        # The head of a public checkpoint need not tell these classes apart.
        role: _subject(experiment, config, of_teacher, device, classifies=config.layout in (None, "crd"))
        for role, config in networks.items()
    }
    student = experiment.student.model_copy(update={"weights": str(weights)})
    trained: dict[str, NetworkConfig] = {STUDENT: student}
    for number, peer in enumerate(experiment.peers, start=1):
        trained[f"peer{number}"] = peer.model_copy(
            update={"weights": str(weights.parent / f"peer{number}.safetensors")}
        )
    for role, config in trained.items():
        subjects[role] = _subject(experiment, config, own, device, classifies=trains_classifier)
        subjects[role].teacher = subjects.get(TEACHER)
    return dict(sorted(subjects.items(), key=lambda item: item[0] != STUDENT))


def _teachers(experiment: Experiment) -> dict[str, TeacherConfig]:
    return {
        f"{TEACHER} {number}" if number > 1 else TEACHER: teacher
        for number, teacher in enumerate(experiment.teachers, start=1)
        if teacher.weights and Path(teacher.weights).is_file()
    }


def _subject(
    experiment: Experiment, config: NetworkConfig, images: Images, device: torch.device, *, classifies: bool
) -> Subject:
    layout = config.layout if isinstance(config, TeacherConfig) else None
    network = build_described(config, images.bank.num_classes, images.bank.shape[0], layout=layout)
    network = network.to(device).eval()
    return Subject(network, images.bank, images.test, classifies, experiment.evaluate, experiment.seed)


def _parts(progress: Progress, count: int) -> Iterator[Progress]:
    """Yield what each of as many equal parts of the work tells."""
    for number in range(count):
        yield part(progress, number / count, (number + 1) / count)


def _moved(subject: Subject, images: Images) -> Subject:
    """Return the network before other images, which its classifier knows nothing of."""
    return Subject(subject.network, images.bank, images.test, False, subject.settings, subject.seed)


def _of_features(chosen: Iterable[str]) -> list[str]:
    return [name for name in chosen if PROTOCOLS[name].features]


def _measured(whose: str, subject: Subject, chosen: Iterable[str], progress: Progress) -> Values:
    applicable = [name for name in chosen if PROTOCOLS[name].applies(subject)]
    progress(0.0, f"{whose}: images are looked at")
    for seeing in filter(None, (subject, subject.teacher)):
        seeing.see({output for name in applicable for output in PROTOCOLS[name].needs})
    values: Values = {}
    for number, name in enumerate(applicable, start=1):
        progress(number / (len(applicable) + 1), f"{whose}: {name} ({number} of {len(applicable)})")
        try:
            values |= PROTOCOLS[name].measure(subject)
        except ValueError as error:
            raise RunError(f"{whose}: {name} cannot be measured: {error}") from None
    return values
