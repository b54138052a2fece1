"""Dynamic int8 quantisation of an ONNX file, and what it costs in accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from raydistill.data.ahead import ahead
from raydistill.data.resident import ResidentSet
from raydistill.evaluation.classification import top_k_accuracy
from raydistill.evaluation.neighbours import knn_accuracy
from raydistill.exporting.parity import Predictor, as_fractions
from raydistill.exporting.subject import Subject
from raydistill.lazy import F, Tensor, torch
from raydistill.models.taps import EMBEDDING, LOGITS

FILE = "student-int8.onnx"


def quantise(source: Path, target: Path) -> None:
    """Store the weights of convolutions and linear layers in a byte each; activations are quantised as they come.

    Unsigned weights, because ONNX Runtime's fast integer convolution on a CPU takes no signed ones.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, weight_type=QuantType.QUInt8)


def losses(subject: Subject, plain: Predictor, quantised: Predictor) -> dict[str, float | int]:
    """Measure both networks on all images at hand.

    Returns:
        ``images``; ``embedding_cosine``, the mean cosine between both embeddings of an image; where there are labels
        ``top1`` and ``top1_float`` in percent, or ``knn`` and ``knn_float`` where no classifier was trained.
    """
    outputs = subject.description.outputs
    before, after = (_all_outputs(predict, subject, subject.images, outputs) for predict in (plain, quantised))
    cosine = F.cosine_similarity(before[EMBEDDING], after[EMBEDDING], dim=1).mean()
    found: dict[str, float | int] = {"images": len(subject.images), "embedding_cosine": float(cosine)}
    labels = subject.images.labels
    if labels is None:
        return found
    if subject.classifies:
        accuracies = [top_k_accuracy(outputs[LOGITS], labels, 1) for outputs in (after, before)]
        return {**found, "top1": accuracies[0], "top1_float": accuracies[1]}
    return {
        **found,
        **_neighbours(subject, quantised, after[EMBEDDING], "knn"),
        **_neighbours(subject, plain, before[EMBEDDING], "knn_float"),
    }


def _neighbours(subject: Subject, predict: Predictor, embeddings: Tensor, name: str) -> dict[str, float]:
    """Accuracy of a vote among the training images; nothing where there are none beside the test images."""
    if subject.splits is None or not subject.on_test:
        return {}
    bank = ResidentSet(subject.splits.train, "cpu")
    assert bank.labels is not None and subject.images.labels is not None
    known = _all_outputs(predict, subject, bank, (EMBEDDING,))[EMBEDDING]
    k, num_classes = subject.experiment.evaluate.k, bank.num_classes
    return {
        name: knn_accuracy(known, bank.labels, embeddings, subject.images.labels, k=k, num_classes=num_classes),
    }


def _all_outputs(
    predict: Predictor, subject: Subject, images: ResidentSet, outputs: Iterable[str]
) -> dict[str, Tensor]:
    """Outputs [N, ...] of all images."""
    parts = torch.split(torch.arange(len(images)), subject.experiment.evaluate.batch_size)
    found = [predict(as_fractions(pixels)) for pixels in ahead(images.pixels, parts)]
    return {name: torch.cat([batch[name] for batch in found]) for name in outputs}
