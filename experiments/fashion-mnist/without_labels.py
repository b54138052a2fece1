"""How well a sweep without labels ranks its trials: rank correlations with what labels say afterwards.

    python experiments/fashion-mnist/without_labels.py                # 24 trials, about 5 minutes on 2 idle CPU cores
    python experiments/fashion-mnist/without_labels.py --trials 48

A small teacher learns from 10000 labelled images of Fashion-MNIST. Students learn from its cached embeddings alone
(CompRes), each with a temperature, queue, learning rate and weight decay of its own, on 3000 images for three epochs;
another 1000 are held out. Nothing before the last table asks for a student's label but ``val/top1``, which stands
beside the two measures for comparison: a k-NN's accuracy on the held-out images.

The table gives Spearman's correlation over all trials of each metric, at the end of every epoch, with the accuracy on
the 10000 test images of the finished students' embeddings: of the 20 nearest training images' weighted vote, and of a
logistic regression on the training images. Seconds are those of one validation by the measure on this machine, the
student's forward pass included; the median over the trials. A finished teacher, cache or sweep is kept and only read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from running import HERE
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from raydistill import build_cache, load_experiment, train_teacher, tune
from raydistill.config import Experiment
from raydistill.data.datasets import load_test
from raydistill.data.resident import ResidentSet
from raydistill.display import rows, say, training
from raydistill.evaluation.classification import accuracy
from raydistill.evaluation.features import extract
from raydistill.evaluation.neighbours import knn_accuracy
from raydistill.models.loading import build_described
from raydistill.training.agreement import Agreement
from raydistill.training.material import prepare

MEASURES = ("neighbours@10", "cka")
METRICS = (*(f"val/{measure}" for measure in MEASURES), "val/top1")
JUDGES = ("k-NN", "linear probe")
NEIGHBOURS = 20
SETTINGS = (
    "methods.ce=null",
    "teacher={model: resnet20, weights: runs/without-labels-teacher/model.safetensors}",
    "data.subset=4000",
    "data.validation=0.25",
    "cache={outputs: [embedding], views: 0}",
    "train.epochs=3",
    f"train.agreement=[{', '.join(MEASURES)}]",
)
OF_THE_TEACHER = {"data.subset": 10000, "data.validation": 0.05, "train.epochs": 2, "train.optimizer.lr": 0.1}
SPACE = {
    "methods.compress.temperature": {"loguniform": [0.01, 2.0]},
    "methods.compress.queue": {"choice": [64, 512, 2048]},
    "train.optimizer.lr": {"loguniform": [0.001, 0.3]},
    "train.optimizer.weight_decay": {"loguniform": [1e-5, 1e-2]},
}


@dataclass(frozen=True)
class Trial:
    """A finished student: its metrics after every epoch, and what it is worth."""

    history: list[dict[str, float]]
    worth: Mapping[str, float]
    seconds: Mapping[str, float]


def main() -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    given = parser.parse_args()
    experiment = load_experiment(HERE / "compress.yaml", [*SETTINGS, f"name=without-labels-{given.trials}"])
    _teacher(experiment)
    with rows("teacher") as progress:
        build_cache(experiment, progress=progress)
    trials = _judged(experiment, _swept(experiment, given.trials))
    print(_markdown(trials))


def _teacher(experiment: Experiment) -> None:
    """Train the teacher where that has not been done."""
    assert experiment.teacher is not None and experiment.teacher.weights is not None
    if not (Path(experiment.teacher.weights).parent / "_SUCCESS").is_file():
        alone = experiment.override(OF_THE_TEACHER)
        with training(alone, alone.train.epochs) as watch:
            result = train_teacher(alone, watch=watch)
        say(f"teacher: {result['top1']:.2f} % of the test images in {result['seconds']:.0f} s")


def _swept(experiment: Experiment, trials: int) -> list[Path]:
    """Return the folders of the finished trials; none is stopped early, so that all can be compared."""
    sweep = {"metric": METRICS[0], "samples": trials, "scheduler": {"name": "none"}, "space": SPACE}
    if not (experiment.folder / "_SUCCESS").is_file():
        started = time.monotonic()
        result = tune(experiment.override({"tune": sweep}))
        say(f"sweep: {result['trials']} trials in {time.monotonic() - started:.0f} s")
    return sorted(path.parent for path in experiment.folder.glob("trials/*/student.safetensors"))


def _judged(experiment: Experiment, folders: list[Path]) -> list[Trial]:
    """Measure the students of these folders with labels, and the time that the measures take without."""
    material = prepare(experiment)
    bank, held_out = ResidentSet(material.train, "cpu"), ResidentSet(material.validation, "cpu")
    test = ResidentSet(load_test(experiment.data), "cpu")
    assert material.held_out_rows is not None
    compare = {measure: Agreement((measure,), held_out, rows=material.held_out_rows) for measure in MEASURES}
    for agreement in compare.values():  # the first call brings the teacher's rows to the device
        agreement.measure(_student(folders[0], bank))
    trials = []
    for folder in folders:
        student, seconds = _student(folder, bank), {}
        for measure, agreement in compare.items():
            started = time.monotonic()
            agreement.measure(student)
            seconds[f"val/{measure}"] = time.monotonic() - started
        worth = _worth(bank, extract(student, bank, "embedding"), test, extract(student, test, "embedding"))
        trials.append(Trial(_history(folder), worth, seconds))
        say(f"{folder.name}: " + ", ".join(f"{judge} {value:.2f} %" for judge, value in worth.items()))
    return trials


def _student(folder: Path, images: ResidentSet) -> nn.Module:
    config = load_experiment(folder / "config.yaml").student
    described = config.model_copy(update={"weights": str(folder / "student.safetensors")})
    return build_described(described, images.num_classes, images.shape[0]).eval()


def _history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _worth(bank: ResidentSet, known: Tensor, test: ResidentSet, asked: Tensor) -> dict[str, float]:
    """Return the percentage of test images that each judge classifies rightly from embeddings [N, D]."""
    assert bank.labels is not None and test.labels is not None
    vote = knn_accuracy(known, bank.labels, asked, test.labels, k=NEIGHBOURS, num_classes=bank.num_classes)
    probe: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with threadpool_limits(1):  # of products this small several threads mostly wait for each other
        found = torch.from_numpy(probe.fit(known.numpy(), bank.labels.numpy()).predict(asked.numpy()))
    return dict(zip(JUDGES, (vote, accuracy(found, test.labels)), strict=True))


def _markdown(trials: list[Trial]) -> str:
    spans = [[trial.worth[judge] for trial in trials] for judge in JUDGES]
    told = ", ".join(f"{judge} {min(span):.1f} to {max(span):.1f} %" for judge, span in zip(JUDGES, spans, strict=True))
    lines = [
        f"{len(trials)} trials; test accuracy by {told}",
        "",
        "| Metric | After epoch | Spearman with k-NN | with linear probe | Seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for metric in METRICS:
        seconds = f"{median(trial.seconds[metric] for trial in trials):.2f}" if metric in trials[0].seconds else "-"
        for epoch in range(len(trials[0].history)):
            values = [trial.history[epoch][metric] for trial in trials]
            found = [f"{spearmanr(values, span).statistic:.2f}" for span in spans]
            lines.append(f"| `{metric}` | {epoch + 1} | {' | '.join(found)} | {seconds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
