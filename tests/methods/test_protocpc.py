"""ProtoCPC against its Algorithm 1, the public code's order, and SwAV's Sinkhorn-Knopp."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raydistill.errors import ConfigError
from raydistill.functional import proto_cpc_loss, sinkhorn_knopp, update_prior
from raydistill.methods.contrast import unit
from raydistill.methods.kd import KD
from raydistill.methods.protocpc import ProtoCPC
from raydistill.methods.protocpc_modes import MODES
from tests.golden import golden
from tests.methods.support import (
    TEACHER_WIDTH,
    close,
    double_parts,
    make_step,
    single_step,
    tensor,
    tiny_setting,
    tiny_student,
)

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


def test_a_prior_that_never_moves_makes_it_distillation_by_cross_entropy() -> None:
    """Table 8's rows CE: with ``prior_momentum`` 1 and a softmax the gradient is that of kd, step after step."""
    method = ProtoCPC(prior_momentum=1.0, assignment="softmax")
    setting = replace(tiny_setting(), student={"logits": (9,)}, teachers=({"logits": (9,)},))
    parts: Any = method.parts(setting).double()
    for _ in range(2):
        student, teacher = torch.randn(8, 9, dtype=torch.float64).requires_grad_(), torch.randn(8, 9).double()
        step = single_step({0: {"logits": student}}, {0: {"logits": teacher}})
        loss = method.loss(step, parts)
        method.after_step(parts, nn.Identity(), loss.carry)
        close(parts["prior"].value, torch.ones(9))
        found, expected = (torch.autograd.grad(total, student)[0] for total in (loss.total, KD().loss(step, {}).total))
        close(found, expected)


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


COMPRESS: dict[str, Any] = {"mode": "compress", "prototypes": 9, "layers": 1}


def as_cosines(scores: Tensor, scale: float) -> Tensor:
    """Unit rows whose products with axes of length 1 / ``scale`` are ``scores``."""
    rows = scale * scores
    return torch.cat([rows, (1.0 - rows.square().sum(dim=1, keepdim=True)).sqrt()], dim=1)


@pytest.mark.parametrize(("variant", "order"), [("paper", "alg1"), ("code", "after")])
@pytest.mark.parametrize("name", ["selfsup_m0p9", "selfsup_m0"])
def test_compression_without_labels_over_three_steps(name: str, variant: Any, order: str) -> None:
    values = golden("protocpc.npz")
    inputs = [tensor(values[f"in/selfsup/{side}"]) for side in ("zs", "zt")]
    scale = 0.5 / max(side.norm(dim=2).max().item() for side in inputs)
    _, _, momentum = values[f"cfg/{name}/tpt_tps_m"]
    method = ProtoCPC(**COMPRESS, variant=variant, prior_momentum=momentum)
    setting = replace(tiny_setting(), student={"embedding": (10,)}, teachers=({"embedding": (10,)},))
    parts: Any = method.parts(setting).double()
    parts["head"] = nn.Identity()
    for number in range(3):
        parts["prototypes"].weight.data.copy_(torch.eye(10, dtype=torch.float64)[:9] / scale)
        student, teacher = (as_cosines(side[number], scale) for side in inputs)
        loss = method.loss(single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}), parts)
        method.after_step(parts, nn.Identity(), loss.carry)
        folder = f"formula/{name}/{order}/step{number}"
        close(loss.total, values[f"{folder}/loss"])
        close(parts["prior"].value, values[f"{folder}/prior_after"])
        close(parts["prototypes"].weight.norm(dim=1), torch.ones(9))


def test_small_crops_are_added_with_one_prior() -> None:
    values = golden("protocpc.npz")
    terms, prior = (values[f"formula/eq16_multicrop_fixed_prior/{name}"] for name in ("loss_terms", "prior"))
    teacher = tensor(values["formula/selfsup_m0p9/alg1/step2/pt"])
    crops = [tensor(values["in/selfsup/zs"][2]), *tensor(values["in/selfsup/zs_local"])]
    loss = partial(proto_cpc_loss, prior=tensor(prior)[0])
    close([loss(crop / 0.1, teacher).item() for crop in crops], terms)
    close(MODES["compress"].combine(ProtoCPC(**COMPRESS), loss, [crop / 0.1 for crop in crops], [teacher]), terms.sum())


def test_copied_prototypes_are_the_students_without_a_gradient() -> None:
    method = ProtoCPC(**COMPRESS, assignment="softmax", prior_momentum=1.0)
    parts = double_parts(method, tiny_setting())
    weight = parts["prototypes"].weight
    step = make_step(method.needs(), 0, slice(8))
    method.loss(step, parts).total.backward()
    student = unit(parts["head"](step.student[0]["embedding"]))
    held = weight.detach().clone()
    teacher = (unit(step.teacher[0]["embedding"]) @ held.T / 0.04).softmax(1)
    expected = proto_cpc_loss(student @ weight.T / 0.1, teacher, torch.ones(9))
    (gradient,) = torch.autograd.grad(expected, weight)
    close(weight.grad, gradient)


def test_pretrained_prototypes(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    stored = torch.randn(9, TEACHER_WIDTH)
    save_file({"head.prototypes.weight": stored}, path)
    method = ProtoCPC(
        **COMPRESS,
        teacher_prototypes="pretrained",
        prototypes_file=str(path),
        prototypes_tensor="head.prototypes.weight",
    )
    setting = tiny_setting()
    method.check(setting)
    parts: Any = method.parts(setting)
    torch.testing.assert_close(parts["teacher_prototypes"].value, nn.functional.normalize(stored))
    step = make_step(method.needs(), 0, slice(8))
    before = method.loss(step, parts.double()).total
    parts["teacher_prototypes"].value.copy_(parts["teacher_prototypes"].value.flip(0))
    assert method.loss(step, parts).total != before
    assert not any("teacher" in name for name, _ in parts.named_parameters())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prototypes_file": "nowhere.safetensors"}, "prototypes_file: nowhere.safetensors cannot be read"),
        ({"prototypes_tensor": "other"}, "prototypes_tensor: .* holds no 'other' but head"),
        ({"prototypes": 8}, r"has the shape \[9, 7\].* must be \[8, 7\]"),
    ],
)
def test_pretrained_prototypes_that_do_not_fit(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file({"head": torch.randn(9, TEACHER_WIDTH)}, path)
    given = {"teacher_prototypes": "pretrained", "prototypes_file": str(path), "prototypes_tensor": "head"}
    method = ProtoCPC(**(COMPRESS | given | change))
    with pytest.raises(ConfigError, match=rf"methods\.protocpc\.{expected}" if "shape" not in expected else expected):
        method.check(tiny_setting())


def test_damaged_prototypes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(b"nothing of this kind")
    method = ProtoCPC(**COMPRESS, teacher_prototypes="pretrained", prototypes_file=str(path), prototypes_tensor="head")
    with pytest.raises(ConfigError, match=r"teacher\.safetensors cannot be read"):
        method.check(tiny_setting())


SELF: dict[str, Any] = {"mode": "self", "prototypes": 11, "hidden": 9, "bottleneck": 5, "local_crops": 1}


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_self_distillation_compares_different_crops(variant: Any) -> None:
    method = ProtoCPC(**SELF, variant=variant, freeze_last_layer=0)
    student = tiny_student().double()
    parts = double_parts(method, tiny_setting(student))
    prior = torch.ones(11, dtype=torch.float64)
    for number in range(3):
        step = make_step(method.needs(), number, slice(8), student=student)
        loss = method.loss(step, parts)
        teacher = [sinkhorn_knopp(parts["teacher"]([step.views[view]]) / 0.04) for view in (0, 1)]
        crops = [parts["head"](step.student[view]["embedding"]) / 0.1 for view in (0, 1, 2)]
        new = update_prior(prior, torch.cat(teacher), momentum=0.9)
        used = new if variant == "paper" else prior
        pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
        losses = [proto_cpc_loss(crops[crop], teacher[view], used) for view, crop in pairs]
        close(loss.total, torch.stack(losses).mean())
        method.after_step(parts, student, loss.carry)
        close(parts["prior"].value, new)
        prior = new


def test_centring_is_undone_by_sinkhorn_but_not_by_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    shift = torch.randn(5, generator=generator, dtype=torch.float64)
    close(sinkhorn_knopp(scores + shift), sinkhorn_knopp(scores))
    method = ProtoCPC(**SELF, assignment="softmax", centering=True)
    student = tiny_student().double()
    parts = double_parts(method, tiny_setting(student))
    step = make_step(method.needs(), 0, slice(8), student=student)
    loss = method.loss(step, parts)
    method.after_step(parts, student, loss.carry)
    close(parts["center"].value, 0.1 * parts["teacher"]([step.views[0], step.views[1]]).mean(0), rtol=1e-2)
    assert (parts["center"].value.abs() > 0).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_softmax_of_far_scores_stays_finite(momentum: float) -> None:
    """Without memory a prototype that nobody chose has a prior of 0."""
    method = ProtoCPC(**COMPRESS, assignment="softmax", prior_momentum=momentum)
    parts: Any = method.parts(tiny_setting())
    parts["prototypes"].weight.data.mul_(1e4)
    step = make_step(method.needs(), 0, slice(8))
    step = single_step(
        {0: {"embedding": step.student[0]["embedding"].detach().float().requires_grad_()}},
        {0: {"embedding": step.teacher[0]["embedding"].float()}},
    )
    loss = method.loss(step, parts)
    loss.total.backward()
    assert momentum or (loss.carry["prior"] == 0).any()
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(value.grad).all() for value in parts.parameters())


def test_defaults_follow_the_mode_and_survive_a_round_trip() -> None:
    made = [ProtoCPC(), ProtoCPC(mode="compress"), ProtoCPC(mode="self")]
    assert [method.weight for method in made] == [1.75, 1.0, 1.0]
    assert [method.local_crops for method in made] == [0, 0, 6]
    assert [method.batch_norm for method in made] == [False, True, False]
    assert ProtoCPC(mode="self", weight=2.0, local_crops=8).weight == 2.0
    for method in made:
        assert ProtoCPC.model_validate(method.model_dump(mode="json")) == method
    assert [set(method.needs().teacher) for method in made] == [{0}, {0}, set()]
    assert [method.needs().trains_classifier for method in made] == [True, False, False]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"mode": "self", "temperature": 2.0},
            "temperature = 2.0: has no effect with mode 'self', only with supervised",
        ),
        ({"local_crops": 2}, "local_crops = 2: has no effect with mode 'supervised', only with compress or self"),
        ({"mode": "self", "centering": True}, "centering: has no effect with assignment 'sinkhorn'"),
        ({"mode": "compress", "teacher_prototypes": "pretrained"}, "give prototypes_file and prototypes_tensor"),
        ({"mode": "compress", "prototypes_file": "x"}, "are read with teacher_prototypes = pretrained only"),
    ],
)
def test_fields_without_an_effect_are_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        ProtoCPC.model_validate(values)


def test_small_crops_leave_the_teachers_view_to_the_experiment() -> None:
    needs = ProtoCPC(mode="compress", local_crops=2).needs()
    assert needs.views == (0, 1, 2)
    assert set(needs.draws) == {1, 2}
