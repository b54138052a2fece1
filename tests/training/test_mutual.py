"""Networks that teach each other, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from raydistill.config import Experiment
from raydistill.errors import ConfigError, WeightsError
from raydistill.evaluation.card import evaluate_run
from raydistill.functional import kd_loss
from raydistill.models.weights import load_weights
from raydistill.models.zoo import build_model
from raydistill.training.checkpoint import load_checkpoint
from raydistill.training.loop import fit
from raydistill.training.material import prepare
from raydistill.training.run import run
from raydistill.training.run_folder import RunFolder
from raydistill.training.session import Session
from tests.conftest import digits
from tests.training.sessions import save_checkpoint, session_of, trained

KD = {"ce": {}, "kd": {"weight": 0.5}}
CRD = {"ce": {}, "crd": {"negatives": 32, "dimension": 16}}
VGG, WRN, RESNET = {"model": "vgg8"}, {"model": "wrn_16_1"}, {"model": "resnet8"}


def mutual(folder: Path, **sections: Any) -> Experiment:
    """A resnet8 and another resnet8 on digits, unless said otherwise."""
    return digits(folder, **({"peers": [RESNET], "methods": KD} | sections))


def first_loss(session: Session) -> Any:
    return session.model(session.draw(torch.arange(16), 0))


@pytest.mark.parametrize("method", ["dml", "kd"])
def test_both_networks_learn(tmp_path: Path, method: str) -> None:
    data = {"name": "digits", "validation": 0.2, "augment": {"crop": 1}}
    methods: dict[str, Any] = {"ce": {}, method: {}}
    session = trained(mutual(tmp_path, peers=[WRN], data=data, methods=methods, train={"epochs": 3, "batch_size": 48}))
    first, last = session.history[0], session.history[-1]
    for prefix in ("", "peer1/"):
        assert last[f"val/{prefix}top1"] > 80.0
        assert last[f"train/{prefix}ce"] < 0.5 * first[f"train/{prefix}ce"]
        assert last[f"train/{prefix}loss"] < first[f"train/{prefix}loss"]
        assert last[f"train/{prefix}{method}"] > 0.0
    assert session.teacher_forwards == 0


def test_each_network_gets_the_whole_weighted_list_from_all_others(tmp_path: Path) -> None:
    session = session_of(mutual(tmp_path, peers=[RESNET, WRN], methods=CRD))
    distiller = session.distiller
    assert [objective.parts["crd/1"]["teacher"].in_features for objective in objectives(session)] == [64, 64, 64]
    loss = first_loss(session)
    total = torch.zeros(())
    for prefix in ("", "peer1/", "peer2/"):
        pairs = [loss.terms[f"{prefix}crd/{number}"] for number in (0, 1)]
        torch.testing.assert_close(loss.terms[f"{prefix}crd"], (pairs[0] + pairs[1]) / 2)
        own = loss.terms[f"{prefix}ce"] + 0.8 * loss.terms[f"{prefix}crd"]
        torch.testing.assert_close(loss.terms[f"{prefix}loss"], own)
        total += own
    torch.testing.assert_close(loss.total.detach(), total)
    loss.total.backward()
    assert all(value.grad is not None for value in distiller.parameters())

    before = [objective.parts["crd/0"]["student_bank"].rows.clone() for objective in objectives(session)]
    distiller.after_step(loss.carry)
    for rows, objective in zip(before, objectives(session), strict=True):
        changed = (rows != objective.parts["crd/0"]["student_bank"].rows).any(dim=1)
        assert changed.nonzero().flatten().tolist() == list(range(16))


def objectives(session: Session) -> list[Any]:
    distiller: Any = session.distiller
    return [distiller.objective, *distiller.peer_objectives.values()]


def test_no_gradient_flows_from_a_loss_into_its_teacher(tmp_path: Path) -> None:
    session = session_of(mutual(tmp_path))
    networks: list[Any] = [session.distiller.student, session.distiller.peers["peer1"]]
    step = session.draw(torch.arange(16), 0)
    session.model.train()
    session.model(step).total.backward()
    logits = [network(step.views[0])["logits"] for network in networks]
    for own, other, network in zip(logits, logits[::-1], networks, strict=True):
        loss = F.cross_entropy(own, step.columns["label"]) + 0.5 * kd_loss(own, other.detach(), temperature=4.0)
        parameters = list(network.parameters())
        for value, gradient in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
            torch.testing.assert_close(value.grad, gradient, rtol=1e-4, atol=1e-6)


def test_networks_start_apart_and_the_student_as_without_peers(tmp_path: Path) -> None:
    session, alone = session_of(mutual(tmp_path)), session_of(digits(tmp_path))
    student, peer = states(session)
    assert not torch.equal(student["conv1.weight"], peer["conv1.weight"])
    assert all(torch.equal(value, student[name]) for name, value in alone.distiller.student.state_dict().items())
    heads = [
        objective.parts["crd"]["student"].weight for objective in objectives(session_of(mutual(tmp_path, methods=CRD)))
    ]
    assert not torch.equal(*heads)


def states(session: Session) -> list[dict[str, Tensor]]:
    return [session.distiller.student.state_dict(), session.distiller.peers["peer1"].state_dict()]


def test_equal_networks_stay_equal_and_have_nothing_to_teach(tmp_path: Path) -> None:
    session = session_of(mutual(tmp_path))
    session.distiller.peers["peer1"].load_state_dict(session.distiller.student.state_dict())
    fit(session, lambda metrics, session: session.history.append(metrics))
    last = session.history[-1]
    assert last["train/kd"] == last["train/peer1/kd"] == pytest.approx(0.0, abs=1e-6)
    assert last["train/ce"] == last["train/peer1/ce"]
    student, peer = states(session)
    assert all(torch.equal(value, peer[name]) for name, value in student.items())


def test_exchanged_networks_exchange_their_losses(tmp_path: Path) -> None:
    session, other = session_of(mutual(tmp_path)), session_of(mutual(tmp_path))
    student, peer = ({name: value.clone() for name, value in state.items()} for state in states(session))
    other.distiller.student.load_state_dict(peer)
    other.distiller.peers["peer1"].load_state_dict(student)
    left, right = first_loss(session).terms, first_loss(other).terms
    assert left["kd"] != left["peer1/kd"]
    for name in ("ce", "kd"):
        assert left[name] == right[f"peer1/{name}"]
        assert right[name] == left[f"peer1/{name}"]


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    experiment = mutual(tmp_path, peers=[WRN], methods=CRD | {"one": {}}, train={"epochs": 2, "batch_size": 96})
    whole, interrupted = trained(experiment), session_of(experiment)

    def stop_after_first(metrics: dict[str, float], session: Session) -> None:
        session.history.append(metrics)
        save_checkpoint(session, tmp_path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, stop_after_first)
    resumed = session_of(experiment)
    load_checkpoint(resumed, tmp_path)
    fit(resumed, lambda metrics, session: session.history.append(metrics))
    left, right = whole.distiller.state_dict(), resumed.distiller.state_dict()
    assert {name.partition(".")[0] for name in left} == {"student", "peers", "objective", "peer_objectives"}
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_a_run_keeps_and_measures_every_network(tmp_path: Path) -> None:
    experiment = mutual(tmp_path, peers=[VGG], train={"epochs": 1, "batch_size": 48})
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    run(session_of(experiment), folder, after_epoch=lambda metrics, session: None)
    folder.succeed()
    load_weights(build_model("resnet8", 10, in_channels=1), folder.path / "student.safetensors")
    load_weights(build_model("vgg8", 10, in_channels=1), folder.path / "peer1.safetensors")
    record = json.loads((folder.path / "metrics.jsonl").read_text())
    names = {"loss", "ce", "kd", "peer1/loss", "peer1/ce", "peer1/kd"}
    assert {f"train/{name}" for name in names} | {"val/top1", "val/peer1/top1"} <= set(record)
    result, card = folder.result(), evaluate_run(folder.path, ["top1"])
    assert card == {
        "student": {"top1": pytest.approx(result["top1"])},
        "peer1": {"top1": pytest.approx(result["peer1_top1"])},
    }


def test_peers_may_start_from_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"peers\.0\.weights = nowhere\.pt: no such file"):
        prepare(mutual(tmp_path, peers=[RESNET | {"weights": "nowhere.pt"}]))


def test_a_teacher_and_peers_exclude_each_other(tmp_path: Path, teacher_weights: Path) -> None:
    with pytest.raises(ConfigError, match="peers: the networks teach each other; leave out the sections 'teacher'"):
        mutual(tmp_path, teacher={"model": "resnet14", "weights": str(teacher_weights)})
    with pytest.raises(ConfigError, match=r"methods\.kd needs a teacher, but the experiment has no section 'teacher'"):
        mutual(tmp_path, peers=[])


def test_stages_before_distillation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^methods\.ft trains a stage before distillation"):
        session_of(mutual(tmp_path, methods={"ce": {}, "ft": {}}))


def test_an_unknown_peer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"peers\.0\.model.*resnet9.*did you mean 'resnet"):
        mutual(tmp_path, peers=[{"model": "resnet9"}])
