"""What logit methods share: standardisation, against torchdistill's LogitStdKD, and the check of the classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from raydistill.errors import ConfigError
from raydistill.functional import kd_loss
from raydistill.methods.logits import check_equal_classes, standardise_logits
from raydistill.methods.registry import METHODS, method_class
from tests.golden import golden
from tests.methods.pairs import LOSSES, SECOND, check_pair, each_precision, random_rows
from tests.methods.support import CLASSES, close, single_step, tensor, tiny_setting

SAME_CLASSES = ["dist", "dkd", "dml", "kd", "sskd"]
STANDARDISING = [name for name in METHODS if "standardise" in method_class(name).model_fields]


@each_precision
def test_public_code(dtype: torch.dtype) -> None:
    labels = tensor(golden(SECOND)["KD_target"])

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        scaled = standardise_logits(student), standardise_logits(teacher)
        return 0.1 * F.cross_entropy(student, labels) + 9.0 * kd_loss(*scaled, temperature=2.0)

    name = "torchdistill/LogitStdKD_T2_alpha0.1_beta9"
    check_pair(loss, name, dtype, file=SECOND, inputs=(LOSSES, "KD"))


def test_rows_have_mean_0_and_deviation_1() -> None:
    rows = standardise_logits(100.0 * random_rows(4, 9) + 7.0)
    close(rows.mean(dim=1), torch.zeros(4))
    close(rows.std(dim=1), torch.ones(4), rtol=1e-6)


def test_constant_logits_are_zero_without_a_gradient() -> None:
    logits = torch.full((2, 5), 3.0, requires_grad=True)
    rows = standardise_logits(logits)
    rows.square().sum().backward()
    assert (rows == 0).all()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", [name for name in STANDARDISING if not method_class(name)().needs().draws])
def test_standardising_methods_ignore_the_range_of_the_logits(name: str) -> None:
    logits = random_rows(6, CLASSES).detach()
    columns = {"label": torch.arange(6) % CLASSES}
    step = single_step({0: {"logits": 7 * logits + 2}}, {0: {"logits": logits}}, columns=columns)
    close(method_class(name)(standardise=True).loss(step, {}).total, 0.0, atol=1e-6)
    assert method_class(name)().loss(step, {}).total > 1e-3


@pytest.mark.parametrize("name", SAME_CLASSES)
def test_classes_must_be_the_same(name: str) -> None:
    setting = tiny_setting()
    method_class(name)().check(setting)
    second = replace(setting, teachers=(*setting.teachers, {**setting.teacher, "logits": (9,)}))
    with pytest.raises(ConfigError, match=rf"^methods\.{name}: .*equally many logits, not 5 and 9"):
        method_class(name)().check(second)


def test_no_teacher_is_no_conflict() -> None:
    check_equal_classes("kd", replace(tiny_setting(), teachers=()))
