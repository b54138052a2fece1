"""DML: KL from each peer at temperature 1."""

from __future__ import annotations

import torch
from torch.distributions import Categorical, kl_divergence

from raydistill.methods.base import Step
from raydistill.methods.dml import DML
from tests.methods.pairs import random_rows
from tests.methods.support import close


def step_of(*peers: torch.Tensor) -> tuple[torch.Tensor, Step]:
    student = random_rows(4, 5)
    teachers = tuple({0: {"logits": peer}} for peer in peers)
    return student, Step(views={}, student={0: {"logits": student}}, teachers=teachers, columns={})


def test_divergence_from_the_peer_to_the_student() -> None:
    peer = 2.0 * random_rows(4, 5, seed=1).detach()
    student, step = step_of(peer)
    loss = DML().loss(step, {}).total
    close(loss, kl_divergence(Categorical(logits=peer), Categorical(logits=student)).mean())
    loss.backward()
    close(student.grad, (student.softmax(1) - peer.softmax(1)) / 4)


def test_several_peers_are_averaged() -> None:
    peers = [random_rows(4, 5, seed=seed).detach() for seed in (1, 2, 3)]
    single = [DML().loss(step_of(peer)[1], {}).total.detach() for peer in peers]
    close(DML().loss(step_of(*peers)[1], {}).total, sum(single) / 3)


def test_peers_that_agree_cost_nothing() -> None:
    student, step = step_of(random_rows(4, 5).detach() + 5.0)
    loss = DML().loss(step, {}).total
    loss.backward()
    close(loss, 0.0)
    close(student.grad, torch.zeros(4, 5))
