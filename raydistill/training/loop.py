"""The training loop: plain torch, no Ray."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from raydistill.data.resident import ResidentSet
from raydistill.evaluation.classification import top_k_accuracy
from raydistill.evaluation.collapse import RANK_IMAGES, rank_metrics
from raydistill.evaluation.features import extract, spread
from raydistill.evaluation.neighbours import knn_accuracy
from raydistill.training.keeping import Keeper
from raydistill.training.lookout import Lookout
from raydistill.training.meter import Meter, Metrics, Progress, Say, silent
from raydistill.training.phases import CHECKPOINT, DATA, VALIDATION
from raydistill.training.profiling import Profiler
from raydistill.training.session import Session
from raydistill.training.stalls import stalls_told
from raydistill.training.step import descend

Report = Callable[[Metrics, Session], None]

KNN_BANK = 5000
KNN_NEIGHBOURS = 20


def fit(
    session: Session,
    report: Report,
    progress: Progress = lambda values: None,
    *,
    keeper: Keeper = Keeper(),  # noqa: B008  it has no state
    say: Say = silent,
    profiler: Profiler = Profiler(),  # noqa: B008  nor has it
) -> None:
    """Train from where the session stands to the last epoch; ``report`` is called after each with its metrics.

    ``say`` is told what the user should know early.

    Raises:
        DivergedError: where a loss is not finite.
    """
    batch_size = session.experiment.train.batch_size
    for epoch in range(session.epoch, session.experiment.train.epochs):
        meter = Meter(progress, epoch, session.steps_per_epoch, batch_size, session.take_under_way())
        metrics = train_epoch(session, epoch, meter, keeper=keeper, say=say, profiler=profiler)
        trained = meter.seconds
        with session.phases(VALIDATION):
            metrics |= validate(session)
        metrics |= {"images_per_s": session.batching.images_per_epoch / trained, "seconds": meter.seconds}
        session.epoch = epoch + 1
        metrics |= session.teacher_work
        metrics |= session.phases.result()
        report({"epoch": session.epoch, **metrics}, session)


def train_epoch(session: Session, epoch: int, meter: Meter, *, keeper: Keeper, say: Say, profiler: Profiler) -> Metrics:
    """Run what the meter has not seen of an epoch; return ``train/loss``, ``train/<label>`` and the learning rate."""
    session.model.train()
    needs, weights = session.distiller.objective.needs, session.experiment.weights
    lookout = Lookout(session, epoch, needs, say, weights=weights)
    steps = session.phases.each(DATA, session.steps(epoch, start=meter.count))
    steps = stalls_told(steps, say, lambda: session.place_of(epoch, meter.count))
    for step in profiler.watch(session, steps, start=meter.count):
        loss = descend(session, step)
        terms = {"loss": loss.total.detach(), **loss.terms}
        lookout.see(meter.count, terms)
        meter.add(terms)
        if keeper.due(meter):
            with session.phases(CHECKPOINT):
                keeper.keep(session, meter)
    lookout.look()
    return {**meter.result(), "lr": float(session.schedule.get_last_lr()[0])}


def validate(session: Session) -> Metrics:
    """Return ``val/top1`` in percent on the held-out part of the training images, where there are labels.

    Of networks that are trained together with the student it is ``val/<name>/top1``. Where no method sees labels,
    ``val/rank`` of the student too, since nothing else would tell that it collapsed. ``val/neighbours@K`` and
    ``val/cka`` where the experiment asks for them.
    """
    networks = {"": session.student}
    networks |= {f"{name}/": peer for name, peer in session.distiller.peers.items()}
    top1 = {prefix: measure_top1(session, session.validation, network) for prefix, network in networks.items()}
    metrics = {f"val/{prefix}top1": value for prefix, value in top1.items() if value is not None}
    if "label" not in session.distiller.objective.needs.columns:
        metrics |= measure_rank(session)
    return metrics if session.agreement is None else metrics | session.agreement.measure(session.student)


def measure_rank(session: Session) -> Metrics:
    """Effective rank of the student's embeddings of at most 2000 held-out images."""
    first = torch.arange(min(RANK_IMAGES, len(session.validation)), device=session.device)
    return rank_metrics(extract(session.student, session.validation, "embedding", first))


def measure_top1(session: Session, held_out: ResidentSet, network: nn.Module) -> float | None:
    """Top-1 in percent on images that were not trained on: the classifier's, or, where no method trains it, a k-NN's.

    The k-NN weighs the 20 nearest of at most 5000 training embeddings. None where there are no labels.
    """
    data = session.data
    if held_out.labels is None or data.labels is None:
        return None
    if session.distiller.objective.needs.trains_classifier:
        return top_k_accuracy(extract(network, held_out, "logits"), held_out.labels, 1)
    bank = spread(len(data), KNN_BANK).to(session.device)
    return knn_accuracy(
        extract(network, data, "embedding", bank),
        data.labels[bank],
        extract(network, held_out, "embedding"),
        held_out.labels,
        k=KNN_NEIGHBOURS,
        num_classes=data.num_classes,
    )
