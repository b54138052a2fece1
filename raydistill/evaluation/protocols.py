"""What ``raydistill eval`` measures: each name of ``protocol_names`` with the outputs that it needs and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from raydistill.evaluation.agreement import agreement, prediction_agreement
from raydistill.evaluation.average_precision import mean_average_precision
from raydistill.evaluation.calibration import expected_calibration_error
from raydistill.evaluation.classification import confusion_matrix, per_class_accuracy, top_k_accuracy
from raydistill.evaluation.clusters import alignment, k_means
from raydistill.evaluation.correlation import correlation_discrepancy
from raydistill.evaluation.cost import latency, mult_adds, parameter_count, peak_memory, weight_bytes
from raydistill.evaluation.few_shot import few_shot, linear_with_few_labels
from raydistill.evaluation.linear import (
    COMPRESS,
    PROTOCPC,
    PROTOCPC_SELF,
    LinearProtocol,
    linear_probe,
    logistic_regression,
    multi_label_probe,
)
from raydistill.evaluation.neighbours import knn_accuracy, nearest_neighbour_accuracy
from raydistill.evaluation.retrieval import recall_at
from raydistill.evaluation.subject import BANK, TEST, Subject
from raydistill.measures import VALIDATION
from raydistill.models.taps import EMBEDDING, LOGITS

NEIGHBOURS = 10
BATCHES = (1, 64)

Values = dict[str, float]
_BANK, _TEST, _LOGITS = f"{BANK}/{EMBEDDING}", f"{TEST}/{EMBEDDING}", f"{TEST}/{LOGITS}"


@dataclass(frozen=True)
class Protocol:
    """One way to measure a network.

    Attributes:
        measure: gives names and numbers.
        needs: outputs that it reads, so that all protocols together take one pass over each part.
        classifier: whether it judges the network's own classifier, which must have been trained then.
        compares: whether it compares the network with its teacher.
        features: whether it judges features, and so makes sense on images of other classes, too.
        truth: what it judges by: a label for each image, or targets for each of its classes; None asks for neither.
    """

    measure: Callable[[Subject], Values]
    needs: frozenset[str] = frozenset()
    classifier: bool = False
    compares: bool = False
    features: bool = False
    truth: Literal["labels", "targets"] | None = None

    def applies(self, subject: Subject) -> bool:
        """Whether the subject has what is to be judged, and its images what it is judged by."""
        if self.truth is not None and getattr(subject.test, self.truth) is None:
            return False
        if self.compares and (subject.teacher is None or (self.classifier and not subject.teacher.classifies)):
            return False
        return subject.classifies or not self.classifier


def _judges_classifier(measure: Callable[[Tensor, Tensor], Values]) -> Protocol:
    def judge(subject: Subject) -> Values:
        return measure(subject.output(TEST, LOGITS), subject.labels(TEST))

    return Protocol(judge, frozenset({_LOGITS}), classifier=True, truth="labels")


def _judges_features(measure: Callable[[Subject], Values]) -> Protocol:
    return Protocol(measure, frozenset({_BANK, _TEST}), features=True, truth="labels")


def _compares(measure: Callable[[Tensor, Tensor], Values], output: str) -> Protocol:
    def compare(subject: Subject) -> Values:
        assert subject.teacher is not None
        return measure(subject.output(TEST, output), subject.teacher.output(TEST, output))

    return Protocol(compare, frozenset({f"{TEST}/{output}"}), classifier=output == LOGITS, compares=True)


def _top(k: int, logits: Tensor, labels: Tensor) -> Values:
    return {f"top{k}": top_k_accuracy(logits, labels, k)}


def _classes(logits: Tensor, labels: Tensor) -> Values:
    found = per_class_accuracy(confusion_matrix(logits, labels))
    return {"worst_class": float(found[~found.isnan()].min())}


def _calibration(logits: Tensor, labels: Tensor) -> Values:
    return {"ece": expected_calibration_error(logits, labels)}


def _parts(subject: Subject) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bank, test = subject.output(BANK, EMBEDDING), subject.output(TEST, EMBEDDING)
    return bank, subject.labels(BANK), test, subject.labels(TEST)


def _knn(subject: Subject) -> Values:
    return {"knn": knn_accuracy(*_parts(subject), k=subject.settings.k, num_classes=subject.bank.num_classes)}


def _nn1(subject: Subject) -> Values:
    return {"nn1": nearest_neighbour_accuracy(*_parts(subject))}


def _linear(subject: Subject) -> Values:
    bank, bank_labels, test, labels = _parts(subject)
    scores = logistic_regression(bank, bank_labels, test, num_classes=subject.bank.num_classes)
    return {"linear": top_k_accuracy(scores, labels.cpu(), 1)}


def _probe(name: str, recipe: LinearProtocol, subject: Subject) -> Values:
    return {name: _probed(subject, subject.output(BANK, EMBEDDING), subject.output(TEST, EMBEDDING), recipe)}


def _stages(subject: Subject) -> Values:
    names = [name for name in subject.network.output_names() if name.startswith("features/")]
    return {
        f"linear_stage{name.removeprefix('features/')}": _probed(
            subject, subject.stage(BANK, name), subject.stage(TEST, name), COMPRESS
        )
        for name in names
    }


def _probed(subject: Subject, bank: Tensor, test: Tensor, recipe: LinearProtocol) -> float:
    classes = subject.bank.num_classes
    scores = linear_probe(bank, subject.labels(BANK), test, protocol=recipe, num_classes=classes, seed=subject.seed)
    return top_k_accuracy(scores, subject.labels(TEST), 1)


def _clusters(subject: Subject) -> Values:
    bank, bank_labels, test, labels = _parts(subject)
    classes = subject.bank.num_classes
    subject.clusters, found = k_means(bank, test, clusters=classes, seed=subject.seed)
    return {"clusters": alignment(subject.clusters, bank_labels, found, labels, num_classes=classes)}


def _few_labels(subject: Subject) -> Values:
    nearest = few_shot(*_parts(subject), seed=subject.seed)
    classes = subject.bank.num_classes
    linear = linear_with_few_labels(*_parts(subject), num_classes=classes, seed=subject.seed)
    return {
        "one_shot": nearest.one_shot,
        "one_shot_std": nearest.one_shot_std,
        "nn1@1%": nearest.one_percent,
        "nn1@10%": nearest.ten_percent,
        **{f"linear_{name}": value for name, value in linear.items()},
    }


def _retrieval(subject: Subject) -> Values:
    found = recall_at(subject.output(TEST, EMBEDDING), subject.labels(TEST))
    return {f"recall@{k}": value for k, value in found.items()}


def _map(subject: Subject) -> Values:
    fitted, judged = subject.targets(BANK), subject.targets(TEST)
    bank, test = subject.output(BANK, EMBEDDING), subject.output(TEST, EMBEDDING)
    scores = multi_label_probe(bank, fitted > 0, test, protocol=COMPRESS, seed=subject.seed, ignored=fitted == 0)
    return {"map": mean_average_precision(scores, judged > 0, ignored=judged == 0)}


def _agreement(student: Tensor, teacher: Tensor) -> Values:
    return {"agreement": prediction_agreement(student, teacher)}


def _correlation(student: Tensor, teacher: Tensor) -> Values:
    return {"correlation_discrepancy": correlation_discrepancy(student, teacher)[0]}


def _alike(measure: str, student: Tensor, teacher: Tensor) -> Values:
    if len(student) <= NEIGHBOURS:
        raise ValueError(f"at least {NEIGHBOURS + 1} test images are needed, there are {len(student)}")
    return {measure: agreement(student, teacher, (measure,))[f"{VALIDATION}{measure}"]}


def _cost(subject: Subject) -> Values:
    network, shape = subject.network, subject.test.shape
    found: Values = {
        "parameters": parameter_count(network),
        "mult_adds": mult_adds(network, shape),
        "weight_bytes": weight_bytes(network),
    }
    for batch_size in BATCHES:
        of_batch = "" if batch_size == 1 else f"_batch{batch_size}"
        times = latency(network, shape, batch_size=batch_size)
        found |= {f"latency{of_batch}_{name}": value for name, value in times.items()}
        found[f"peak_memory{of_batch}_bytes"] = peak_memory(network, shape, batch_size)
    return found


PROTOCOLS: Mapping[str, Protocol] = {
    "top1": _judges_classifier(partial(_top, 1)),
    "top5": _judges_classifier(partial(_top, 5)),
    "classes": _judges_classifier(_classes),
    "calibration": _judges_classifier(_calibration),
    "knn": _judges_features(_knn),
    "nn1": _judges_features(_nn1),
    "linear": _judges_features(_linear),
    "linear_compress": _judges_features(partial(_probe, "linear_compress", COMPRESS)),
    "linear_protocpc": _judges_features(partial(_probe, "linear_protocpc", PROTOCPC)),
    "linear_protocpc_self": _judges_features(partial(_probe, "linear_protocpc_self", PROTOCPC_SELF)),
    "linear_stages": Protocol(_stages, features=True, truth="labels"),
    "clusters": _judges_features(_clusters),
    "few_labels": _judges_features(_few_labels),
    "retrieval": Protocol(_retrieval, frozenset({_TEST}), features=True, truth="labels"),
    "map": Protocol(_map, frozenset({_BANK, _TEST}), features=True, truth="targets"),
    "agreement": _compares(_agreement, LOGITS),
    "correlation": _compares(_correlation, LOGITS),
    "neighbours": _compares(partial(_alike, f"neighbours@{NEIGHBOURS}"), EMBEDDING),
    "cka": _compares(partial(_alike, "cka"), EMBEDDING),
    "cost": Protocol(_cost),
}
"""Every protocol of ``protocol_names.PROTOCOLS``."""
