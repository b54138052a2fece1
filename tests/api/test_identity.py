"""Names of networks: the same for the same network in every process, others for others."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from raydistill.api.identity import name_of
from tests.api.networks import small


def test_weights_device_and_mode_are_no_part_of_a_name() -> None:
    network = small()
    name = name_of(network)
    assert name.startswith("Small_") and name.isidentifier()
    assert name_of(small(seed=1).eval()) == name_of(copy.deepcopy(network).requires_grad_(False)) == name


@pytest.mark.parametrize("options", [{"width": 7}, {"classes": 9}, {"scale": 2.0}], ids=str)
def test_another_shape_or_attribute_is_another_name(options: dict[str, int]) -> None:
    assert name_of(small(**options)) != name_of(small())


def test_values_that_no_state_dict_holds_are_part_of_the_name() -> None:
    changed = small()
    changed.grid = torch.tensor([0.0, 1.0, 3.0])
    assert name_of(changed) != name_of(small())


def test_other_code_is_another_name() -> None:
    class Doubling(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 2 * images

    double = Doubling()

    class Doubling(nn.Module):  # type: ignore[no-redef]  # as a cell that is edited and run again
        def forward(self, images: Tensor) -> Tensor:
            return 3 * images

    assert name_of(double) != name_of(Doubling())


FACTOR = 2.0


def helped(images: Tensor) -> Tensor:
    return FACTOR * images if FACTOR else helped(images)


class Helped(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return helped(images)


def test_what_the_code_uses_of_its_module_is_part_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of(Helped())
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    changed = name_of(Helped())
    monkeypatch.setattr(sys.modules[__name__], "helped", lambda images: images)
    assert len({before, changed, name_of(Helped())}) == 3


def test_another_process_gives_the_same_name() -> None:
    code = "from raydistill.api.identity import name_of; from tests.api.networks import small; print(name_of(small()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == name_of(small())
