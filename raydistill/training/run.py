"""One run in one process: sessions, checkpoints and the run's folder around the loop. No Ray here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from raydistill.data.datasets import load_test
from raydistill.data.resident import ResidentSet
from raydistill.errors import DataError
from raydistill.evaluation.chance import chance_warnings
from raydistill.evaluation.collapse import collapse_warnings
from raydistill.evaluation.proportion import history_warnings
from raydistill.measures import VALIDATION
from raydistill.models.weights import save_weights
from raydistill.training.energy import ENERGY
from raydistill.training.events import EventLog
from raydistill.training.keeping import Keeper
from raydistill.training.loop import fit, measure_top1
from raydistill.training.meter import Metrics
from raydistill.training.phases import CHECKPOINT
from raydistill.training.profiling import Profiler
from raydistill.training.run_folder import RunFolder
from raydistill.training.session import Session
from raydistill.training.stages import Record, ReportStage, run_stages
from raydistill.training.waiting import waiting_advice

AfterEpoch = Callable[[Metrics, Session], None]


def run(
    session: Session,
    folder: RunFolder,
    *,
    after_epoch: AfterEpoch,
    after_stage_epoch: ReportStage = lambda record, session: None,
    keeper: Keeper = Keeper(),  # noqa: B008  it has no state
    profiler: Profiler = Profiler(),  # noqa: B008  nor has it
    weights: str = "student.safetensors",
    final: bool = True,
) -> None:
    """Train to the end and leave metrics, weights and the result in the folder; only rank 0 writes.

    ``after_epoch`` is called on every rank once the epoch's metrics are in the session's history, ``after_stage_epoch``
    likewise for the epochs of stages before distillation; ``keeper`` has the state by then. ``profiler`` sees the steps
    of distillation. Only a ``final`` run looks at the test images; the trials of a sweep do not.
    """
    writes = session.rank == 0
    if writes:
        _note_environment(session, folder)
        folder.write_history(session.history)
        folder.write_pretraining(session.stage_records)
    with EventLog(folder.path, enabled=writes) as events:

        def report(metrics: Metrics, session: Session) -> None:
            metrics = metrics | energy_of(session, *session.stage_records, *session.history)
            session.history.append(metrics)
            if writes:
                folder.write_history(session.history)
                events.write(metrics)
                _advise(session, folder)
            with session.phases(CHECKPOINT):
                keeper.keep_epoch(session)
            after_epoch(metrics, session)

        def report_stage(record: Record, session: Session) -> None:
            record |= energy_of(session, *session.stage_records)
            if writes:
                folder.write_pretraining(session.stage_records)
                events.write(record)
            with session.phases(CHECKPOINT):
                keeper.keep_stage_epoch(session)
            after_stage_epoch(record, session)

        progress = folder.write_progress if writes else lambda values: None
        run_stages(session, report_stage, progress, keeper=keeper, say=folder.note)
        fit(session, report, progress, keeper=keeper, say=folder.note, profiler=profiler)
        keeper.finish()
    if writes:
        save_weights(session.student, folder.path / weights)
        for name, peer in session.distiller.peers.items():
            save_weights(peer, folder.path / f"{name}.safetensors")
        folder.write_result(
            {
                **result_of(session),
                **(test_top1(session) if final else {}),
                "seconds": session.seconds,
                **energy_of(session),
            }
        )


def _note_environment(session: Session, folder: RunFolder) -> None:
    if session.placement is not None:
        folder.note_environment(cache_read=asdict(session.placement))
    if session.probe is not None:
        folder.note_environment(precision=asdict(session.probe))
    if session.energy.counters:
        folder.note_environment(energy=[counter.name for counter in session.energy.counters])


def energy_of(session: Session, *before: Metrics) -> Metrics:
    """Return a session's joules, without those of the epochs ``before``; nothing where they are not known."""
    joules = session.energy.joules
    return {} if joules is None else {ENERGY: joules - sum(epoch.get(ENERGY, 0.0) for epoch in before)}


def _advise(session: Session, folder: RunFolder) -> None:
    if advice := waiting_advice(session):
        folder.note(advice)


def result_of(session: Session) -> dict[str, Any]:
    """What a finished session has to say without the test images."""
    experiment = session.experiment
    values = [record["val/top1"] for record in session.history if "val/top1" in record]
    last = session.history[-1] if session.history else {}
    collapse = collapse_warnings(session.history)
    by_chance = chance_warnings(values[-1] if values else None, session.validation.labels)
    return {
        "name": experiment.name,
        "seed": experiment.seed,
        "student": experiment.student.model,
        "averaged": session.average is not None,
        "methods": list(experiment.methods),
        "val_top1": values[-1] if values else None,
        "best_val_top1": max(values, default=None),
        **{f"val_{measure}": last.get(f"{VALIDATION}{measure}") for measure in experiment.agreement},
        "epochs": session.epoch,
        "images_per_s": last.get("images_per_s"),
        "teacher_forwards": session.teacher_forwards,
        "teacher_forwards_saved": session.teacher_forwards_saved,
        "warnings": [*(collapse or by_chance), *history_warnings(session.history, experiment.weights)],
    }


def test_top1(session: Session) -> dict[str, Any]:
    """Return ``top1`` on the test images, of peers ``peer1_top1`` and so on.

    Where the images cannot be read, None and the reason, so that no run is lost.
    """
    try:
        test = ResidentSet(load_test(session.experiment.data), session.device)
    except DataError as error:
        return {"top1": None, "test_problem": str(error)}
    of_peers = {f"{name}_top1": measure_top1(session, test, peer) for name, peer in session.distiller.peers.items()}
    return {"top1": measure_top1(session, test, session.student), **of_peers}
