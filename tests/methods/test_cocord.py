"""CoCoRD against five training steps of the authors' module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from raydistill.functional import info_nce_loss, prediction_loss
from raydistill.methods.ce import CrossEntropy
from raydistill.methods.cocord import CoCoRD
from raydistill.methods.objective import Objective
from tests.golden import golden
from tests.methods.support import TinyNetwork, close, single_step, tensor, tiny_setting

HEADS = {"projector": "s_q_proj", "predictor": "s_q_pred"}
COPIES = {"slow_network": "s_k_encoder", "slow_projector": "s_k_proj", "teacher_projector": "t_k_proj"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def stored_state(module: str, moment: str) -> dict[str, Tensor]:
    prefix = f"{moment}/{module}."
    return {
        name.removeprefix(prefix): tensor(value)
        for name, value in golden("cocord_official.npz").items()
        if name.startswith(prefix) and not name.endswith(STATISTICS)
    }


def setup() -> tuple[TinyNetwork, TinyNetwork, Objective]:
    student, teacher = (TinyNetwork(10, 8, 5).double() for _ in range(2))
    student.load_state_dict(stored_state("s_q_encoder", "init"))
    teacher.load_state_dict(stored_state("t_k_encoder", "init"))
    method = CoCoRD(queue=18, hidden=14, dimension=12, predictor_hidden=6, momentum_contrast=0.99)
    shapes = {"embedding": (8,), "logits": (5,)}
    setting = replace(tiny_setting(student), student=shapes, teachers=(shapes,))
    objective = Objective({"cocord": method, "ce": CrossEntropy()}, setting).double()
    parts: Any = objective.parts["cocord"]
    for name, module in {**HEADS, **COPIES}.items():
        parts[name].load_state_dict(stored_state(module, "init"))
    parts["queue"].keys.copy_(tensor(golden("cocord_official.npz")["init/queue"]).T)
    return student, teacher, objective


def test_authors_five_steps() -> None:
    values = golden("cocord_official.npz")
    student, teacher, objective = setup()
    parts: Any = objective.parts["cocord"]
    trained = [value for value in [*student.parameters(), *objective.parameters()] if value.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.05)
    before: dict[str, dict[str, Tensor]] = {}
    for number in range(5):
        views = dict(enumerate(tensor(values["in/views_sq_sk_tk"][number])))
        with torch.no_grad():
            taught = teacher(views[2])
        step = single_step(
            {view: student(views[view]) for view in (0, 1)},
            {2: taught},
            views=views,
            columns={"label": tensor(values["in/labels"][number])},
        )
        loss = objective(step)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        before = {name: {key: value.clone() for key, value in parts[name].state_dict().items()} for name in COPIES}
        objective.after_step(student, loss.carry)
        close(loss.total, values[f"step{number}/loss_total"])
        close(loss.terms["cocord/contrast"], values[f"step{number}/loss_ctr"])
        close(loss.terms["cocord/predict"], values[f"step{number}/loss_pred"])
        close(loss.terms["ce"], values[f"step{number}/loss_cls"])
        close(parts["queue"].keys, values[f"step{number}/queue_after"])
        assert parts["queue"].pointer == values[f"step{number}/queue_ptr_after"][0]
    for name, module in HEADS.items():
        for key, value in stored_state(module, "final").items():
            close(parts[name].state_dict()[key], value)
    # The authors' copies move before a forward, so their last position is ours before the last after_step.
    for name, module in COPIES.items():
        for key, value in stored_state(module, "final").items():
            close(before[name][key], value)
    for key, value in stored_state("s_q_encoder", "final").items():
        close(student.state_dict()[key], value)


def test_teacher_projector_stays_random_between_unequal_widths() -> None:
    method = CoCoRD(queue=4, hidden=5, dimension=4, predictor_hidden=3)
    setting = tiny_setting()
    parts: Any = method.parts(setting)
    before = parts["teacher_projector"][0].weight.clone()
    method.after_step(parts, setting.student_network, {"key": torch.randn(2, 4)})
    assert torch.equal(before, parts["teacher_projector"][0].weight)


def test_one_direction_sees_fewer_views() -> None:
    needs = CoCoRD(symmetric=False).needs()
    assert set(needs.student) == {0}
    assert needs.images == {1}
    assert needs.views == (0, 1, 2)


def test_copies_remember_no_statistics() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    setting = tiny_setting(network)
    parts: Any = CoCoRD(queue=4, hidden=5, dimension=4, predictor_hidden=3).parts(setting)
    copy = parts["slow_network"]
    before = {name: value.clone() for name, value in copy.state_dict().items()}
    images = torch.randn(8, 3)
    assert torch.equal(copy.train()(images), copy.eval()(images))
    assert all(torch.equal(value, copy.state_dict()[name]) for name, value in before.items())
    assert network[1].running_mean is not None


def test_prediction_loss_ignores_length() -> None:
    rows = torch.randn(4, 6, dtype=torch.float64)
    close(prediction_loss(3 * rows, rows), 0.0, atol=1e-12)
    close(prediction_loss(-rows, rows), 4.0)


def test_info_nce_of_equal_similarities() -> None:
    """Nine keys that are all alike leave a chance of one in nine."""
    key = torch.randn(1, 6, dtype=torch.float64)
    query = torch.randn(3, 6, dtype=torch.float64)
    loss = info_nce_loss(query, key.expand(3, -1), key.expand(8, -1), temperature=0.1)
    close(loss, torch.tensor(9.0, dtype=torch.float64).log())
