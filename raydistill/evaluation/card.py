"""The report card of a run: how good the student and its teacher are, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from raydistill.config import Experiment, NetworkConfig, TeacherConfig, load_experiment
from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train, split_train
from raydistill.data.folder import has_test_images
from raydistill.data.resident import ResidentSet
from raydistill.errors import ConfigError, DataError
from raydistill.evaluation.classification import top_k_accuracy
from raydistill.evaluation.cost import latency, mult_adds, parameter_count
from raydistill.evaluation.features import extract
from raydistill.evaluation.neighbours import knn_accuracy, nearest_neighbour_accuracy
from raydistill.models.loading import build_described


@dataclass
class Subject:
    """A network and what is measured on it; features and logits are computed once, by the first who asks."""

    network: Any
    bank: ResidentSet
    test: ResidentSet
    experiment: Experiment
    trained_classifier: bool
    found: dict[str, Tensor]

    def output(self, part: str, name: str) -> Tensor:
        """Return ``name`` on ``part`` (``bank`` or ``test``)."""
        key = f"{part}/{name}"
        if key not in self.found:
            batch_size = self.experiment.evaluate.batch_size
            self.found[key] = extract(self.network, getattr(self, part), name, batch_size=batch_size)
        return self.found[key]


def evaluate_run(
    path: str | Path, protocols: Iterable[str] = (), *, teachers: bool = True
) -> dict[str, dict[str, float]]:
    """Measure a run's student, and its teacher where weights and test images of it are at hand, on the test images.

    Without ``teachers`` only networks that were trained are measured.

    Returns:
        ``student``, ``teacher`` and, of networks trained together with the student, ``peer1`` and so on, each with
        accuracies in percent, counts and milliseconds.

    Raises:
        DataError: where the folder holds no finished run, or the data cannot be read.
        ConfigError: for an unknown protocol.
    """
    path = Path(path)
    weights = trained_weights(path)
    experiment = load_experiment(path / "config.yaml")
    chosen = _protocols(protocols or experiment.evaluate.protocols)
    images = teacher_images = _images(experiment.data, path)
    trains_classifier = experiment.needs.trains_classifier
    networks: dict[str, tuple[NetworkConfig, Path, bool]] = {
        "student": (experiment.student, weights, trains_classifier)
    }
    of_teachers = teachers and has_test_images(experiment.data.of_teacher)
    for number, teacher in enumerate(experiment.teachers if of_teachers else ()):
        if teacher.weights and Path(teacher.weights).is_file():
            role = f"teacher {number + 1}" if number else "teacher"
            # The head of a public checkpoint need not tell these classes apart.
            networks[role] = (teacher, Path(teacher.weights), teacher.layout in (None, "crd"))
    if len(networks) > 1 and experiment.data.modalities is not None:
        teacher_images = _images(experiment.data.of_teacher, path)
    for number, peer in enumerate(experiment.peers, start=1):
        networks[f"peer{number}"] = (peer, path / f"peer{number}.safetensors", trains_classifier)
    card: dict[str, dict[str, float]] = {}
    for role, (config, file, classifies) in networks.items():
        bank, test = teacher_images if role.startswith("teacher") else images
        described = config.model_copy(update={"weights": str(file)})
        layout = config.layout if isinstance(config, TeacherConfig) else None
        network = build_described(described, bank.num_classes, bank.shape[0], layout=layout)
        subject = Subject(network.eval(), bank, test, experiment, classifies, {})
        card[role] = {name: value for protocol in chosen for name, value in protocol(subject).items()}
    return card


def trained_weights(path: Path) -> Path:
    """Return the weights of a finished run, of a student or a teacher. Raises ``DataError`` where there are none."""
    found = (path / name for name in ("student.safetensors", "model.safetensors") if (path / name).is_file())
    weights = next(found, None)
    if weights is None or not (path / "_SUCCESS").is_file():
        raise DataError(f"{path}: no finished run (it has no _SUCCESS or no weights); see its logs, or train --resume")
    return weights


def _images(data: DataConfig, path: Path) -> tuple[ResidentSet, ResidentSet]:
    """Return training images without the validation ones, and test images, as a section's student sees them."""
    bank = ResidentSet(split_train(load_train(data), data).train, "cpu")
    test = ResidentSet(load_test(data), "cpu")
    if test.labels is None or bank.labels is None:
        raise DataError(f"{path}: data set '{data.name}' has no labels to evaluate with")
    return bank, test


def _protocols(names: Iterable[str]) -> list[Callable[[Subject], dict[str, float]]]:
    from raydistill.errors import did_you_mean

    for name in names:
        if name not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise ConfigError(f"--protocol {name}: unknown{did_you_mean(name, PROTOCOLS)} (known: {known})")
    return [PROTOCOLS[name] for name in names]


def _classification(k: int) -> Callable[[Subject], dict[str, float]]:
    def measure(subject: Subject) -> dict[str, float]:
        if not subject.trained_classifier:
            return {}
        assert subject.test.labels is not None
        return {f"top{k}": top_k_accuracy(subject.output("test", "logits"), subject.test.labels, k)}

    return measure


def _embeddings(subject: Subject) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert subject.bank.labels is not None and subject.test.labels is not None
    embedding = "embedding"
    return (
        subject.output("bank", embedding),
        subject.bank.labels,
        subject.output("test", embedding),
        subject.test.labels,
    )


def _knn(subject: Subject) -> dict[str, float]:
    k, num_classes = subject.experiment.evaluate.k, subject.bank.num_classes
    return {"knn": knn_accuracy(*_embeddings(subject), k=k, num_classes=num_classes)}


def _nn1(subject: Subject) -> dict[str, float]:
    return {"nn1": nearest_neighbour_accuracy(*_embeddings(subject))}


def _cost(subject: Subject) -> dict[str, float]:
    shape = subject.test.shape
    times = latency(subject.network, shape)
    return {
        "parameters": parameter_count(subject.network),
        "mult_adds": mult_adds(subject.network, shape),
        "latency_p50_ms": times["p50_ms"],
        "latency_p95_ms": times["p95_ms"],
    }


PROTOCOLS: dict[str, Callable[[Subject], dict[str, float]]] = {
    "top1": _classification(1),
    "top5": _classification(5),
    "knn": _knn,
    "nn1": _nn1,
    "cost": _cost,
}
"""What ``raydistill eval`` can measure."""
