"""CompRess against its public code, whose queues wrap within these calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydistill.functional import compress_loss
from raydistill.methods.compress import CompRes
from tests.golden import golden
from tests.methods.support import close, single_step, tensor, tiny_setting

Arrays = dict[str, Any]


class StoredKeys(nn.Module):
    """Stands for the momentum copy: its image is the key."""

    def forward(self, images: Tensor, outputs: Iterable[str]) -> dict[str, Tensor]:
        return {"embedding": images}


def drive(method: CompRes, values: Arrays, dtype: torch.dtype = torch.float64) -> dict[str, list[Any]]:
    """Run the class on arrays ``student``, ``teacher``, ``key``, ``start_*``; return what each call made."""
    widths = values["student"].shape[-1], values["teacher"].shape[-1]
    setting = replace(tiny_setting(), student={"embedding": widths[:1]}, teachers=({"embedding": widths[1:]},))
    parts: Any = method.parts(setting).to(dtype)
    parts["teacher_queue"].keys.copy_(tensor(values["start_teacher"]))
    if "student_queue" in parts:
        parts["student_queue"].keys.copy_(tensor(values["start_student"]))
    if "head" in parts:
        parts["head"].load_state_dict({"weight": torch.eye(widths[0]), "bias": torch.zeros(widths[0])})
    if "key_network" in parts:
        parts["key_network"] = StoredKeys()
    made: dict[str, list[Any]] = {name: [] for name in ("loss", "grad", "teacher", "student", "pointer")}
    for call, embedding in enumerate(values["student"]):
        student = tensor(embedding, dtype).requires_grad_()
        teacher = tensor(values["teacher"][call], dtype)
        views = {0: tensor(values["key"][call], dtype)} if "key_network" in parts else {}
        step = single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}, views=views)
        loss = method.loss(step, parts)
        loss.total.backward()
        method.after_step(parts, nn.Identity(), loss.carry)
        made["loss"].append(loss.total.item())
        made["grad"].append(student.grad)
        made["pointer"].append(parts["teacher_queue"].pointer.item())
        for side in ("teacher", "student"):
            if f"{side}_queue" in parts:
                made[side].append(parts[f"{side}_queue"].keys.clone())
    return made


@pytest.mark.parametrize("kind", ["1q", "2q", "2q_momentum"])
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 2e-5, 1e-5)])
def test_rewritten_public_code(kind: str, dtype: torch.dtype, rtol: float, atol: float) -> None:
    stored = golden("compress.npz")
    method = CompRes(queue=10, queues="1q" if kind == "1q" else "2q", momentum=0.9 * (kind == "2q_momentum"))
    made = drive(
        method,
        {
            "student": stored["in/student_1q" if kind == "1q" else "in/student"],
            "teacher": stored["in/teacher"],
            "key": stored["in/student_key"],
            "start_teacher": stored["in/teacher_memory0"],
            "start_student": stored["in/student_memory0"],
        },
        dtype,
    )
    for call in range(4):
        folder = f"f64/{kind}/call{call}"
        close(made["loss"][call], stored[f"{folder}/loss"], rtol=rtol)
        close(made["grad"][call], stored[f"{folder}/grad_student"], rtol=rtol, atol=atol)
        close(made["teacher"][call], stored[f"{folder}/teacher_memory_after"], rtol=rtol, atol=atol)
        assert made["pointer"][call] == stored[f"{folder}/index_after"]
        if kind != "1q":
            close(made["student"][call], stored[f"{folder}/student_memory_after"], rtol=rtol, atol=atol)


@pytest.mark.parametrize("queues", ["1q", "2q"])
def test_authors_modules(queues: Any) -> None:
    stored = golden("compress_official.npz")
    one = queues == "1q"
    memory = "q1_memory" if one else "q2_memory_teacher"
    values = {
        "student": stored["student_1q" if one else "student_2q"],
        "teacher": stored["teacher"],
        "key": stored["student_key_2q"],
        "start_teacher": stored[f"{memory}_init"],
        "start_student": stored["q2_memory_student_init"],
    }
    made = drive(CompRes(queue=20, queues=queues, momentum=0.999), values)
    prefix = "q1" if one else "q2"
    close(np.array(made["loss"]), stored[f"{prefix}_loss"])
    close(torch.stack(made["grad"]), stored[f"{prefix}_grad"])
    close(made["teacher"][-1], stored[f"{memory}_final"])
    if not one:
        close(made["student"][-1], stored["q2_memory_student_final"])


def test_same_similarities_cost_nothing() -> None:
    """A rotation of the whole space changes no similarity."""
    embedding, anchors = torch.randn(4, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    loss = compress_loss(embedding @ turn, 3 * embedding, anchors @ turn, anchors, temperature=0.04)
    close(loss, 0.0, atol=1e-11)


def test_no_copy_without_momentum() -> None:
    assert not CompRes(momentum=0.0).needs().images
    assert CompRes().needs().images == {0}
    assert "key_network" not in CompRes(momentum=0.0, queue=4).parts(tiny_setting())
