"""ProtoCPC against its Algorithm 1, the public code's order, and SwAV's Sinkhorn-Knopp."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from raydistill.errors import ConfigError
from raydistill.functional import proto_cpc_loss, sinkhorn_knopp, update_prior
from raydistill.methods.protocpc import ProtoCPC
from tests.golden import golden
from tests.methods.support import close, single_step, tensor, tiny_setting

CONFIGURATIONS = ["selfsup_m0p9", "selfsup_m0", "sup_T4_m0p9", "sup_T4_m0p9_softmax"]


@pytest.mark.parametrize("order", ["alg1", "after"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 5e-5, 1e-5)])
def test_algorithm(name: str, order: str, dtype: torch.dtype, rtol: float, atol: float) -> None:
    values = golden("protocpc.npz")
    teacher_t, student_t, momentum = values[f"cfg/{name}/tpt_tps_m"]
    prior = torch.ones(9, dtype=dtype)
    for number in range(3):
        folder = f"formula/{name}/{order}/step{number}"
        kind = name.partition("_")[0]
        inputs = {side: tensor(values[f"in/{kind}/{side}"][number], dtype) for side in ("zt", "zs")}
        scaled = inputs["zt"] / teacher_t
        teacher = scaled.softmax(1) if "softmax" in name else sinkhorn_knopp(scaled)
        student = inputs["zs"].requires_grad_()
        new = update_prior(prior, teacher, momentum=momentum)
        loss = proto_cpc_loss(student / student_t, teacher, new if order == "alg1" else prior)
        loss.backward()
        close(teacher, values[f"{folder}/pt"], rtol=rtol, atol=atol)
        close(loss, values[f"{folder}/loss"], rtol=rtol)
        close(student.grad, values[f"{folder}/grad_zs"], rtol=rtol, atol=atol)
        close(new, values[f"{folder}/prior_after"], rtol=rtol, atol=atol)
        prior = new


@pytest.mark.parametrize(("variant", "order"), [("paper", "alg1"), ("code", "after")])
@pytest.mark.parametrize("assignment", ["sinkhorn", "softmax"])
def test_class_over_three_steps(variant: Any, order: str, assignment: Any) -> None:
    values = golden("protocpc.npz")
    name = "sup_T4_m0p9" + ("_softmax" if assignment == "softmax" else "")
    method = ProtoCPC(variant=variant, assignment=assignment)
    setting = replace(tiny_setting(), student={"logits": (9,)}, teachers=({"logits": (9,)},))
    parts: Any = method.parts(setting).double()
    for number in range(3):
        student = tensor(values["in/sup/zs"][number]).requires_grad_()
        step = single_step({0: {"logits": student}}, {0: {"logits": tensor(values["in/sup/zt"][number])}})
        loss = method.loss(step, parts)
        loss.total.backward()
        method.after_step(parts, nn.Identity(), loss.carry)
        folder = f"formula/{name}/{order}/step{number}"
        close(loss.total, 16 * values[f"{folder}/loss"])
        close(student.grad, 16 * values[f"{folder}/grad_zs"])
        close(parts["prior"].value, values[f"{folder}/prior_after"])


@pytest.mark.parametrize("kind", ["cos", "wide"])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
@pytest.mark.parametrize("iterations", [1, 2, 3, 10, 100])
def test_sinkhorn_of_swav(kind: str, epsilon: float, iterations: int) -> None:
    values = golden("sinkhorn_swav.npz")
    plan = sinkhorn_knopp(tensor(values[f"sinkhorn/{kind}/in"]) / epsilon, iterations=iterations)
    close(plan, values[f"sinkhorn/{kind}/eps{epsilon}/it{iterations}/f64"])
    close(plan.sum(1), torch.ones(len(plan)))


@pytest.mark.parametrize("iterations", [3, 10])
def test_sinkhorn_of_large_logits(iterations: int) -> None:
    values = golden("sinkhorn_swav.npz")
    expected = values[f"sinkhorn/big/eps0.05/it{iterations}/f64"]
    close(sinkhorn_knopp(tensor(values["sinkhorn/big/in"]) / 0.05, iterations=iterations), expected)
    single = sinkhorn_knopp(tensor(values["sinkhorn/big/in"], torch.float32) / 0.05, iterations=iterations)
    assert torch.isfinite(single).all()
    close(single, expected, rtol=1e-3, atol=1e-4)


def test_loss_is_contrastive_in_the_prototypes() -> None:
    """With a uniform prior and one-hot assignments the loss is cross-entropy."""
    logits, labels = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 3, 3, 5])
    probabilities = torch.nn.functional.one_hot(labels, 6).double()
    loss = proto_cpc_loss(logits, probabilities, torch.ones(6, dtype=torch.float64))
    close(loss, torch.nn.functional.cross_entropy(logits, labels))


def test_prototypes_that_nobody_chose_keep_the_loss_finite() -> None:
    logits = torch.randn(4, 6).requires_grad_()
    loss = proto_cpc_loss(logits, torch.eye(6)[:4], torch.tensor([6.0, 0, 0, 0, 0, 0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_sides_must_share_prototypes() -> None:
    setting = replace(tiny_setting(), teachers=({"logits": (9,)},))
    with pytest.raises(ConfigError, match=r"methods\.protocpc"):
        ProtoCPC().check(setting)
