"""The ready-made search spaces: whatever they hold, the method takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from raydistill.methods.protocpc import ProtoCPC
from raydistill.methods.registry import METHODS, method_class
from tests.methods.support import tiny_setting

LISTS = {"choice", "grid"}
RANGES = {"uniform", "loguniform", "int", "logint"}


def _entries(name: str) -> Iterator[tuple[str, str, list[Any]]]:
    for field, entry in method_class(name).search_space.items():
        ((kind, values),) = entry.items()
        yield field, kind, values


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_ranges_of_its_own_hyper_parameters(name: str) -> None:
    kind = method_class(name)
    assert kind.search_space and kind.search_space.keys() <= kind.model_fields.keys()
    assert kind.search_source


@pytest.mark.parametrize("name", METHODS)
def test_ends_and_choices_are_what_the_method_allows(name: str) -> None:
    for field, kind, values in _entries(name):
        assert kind in LISTS | RANGES
        for value in values:
            made = method_class(name).model_validate({field: value})
            assert getattr(made, field) == value
            assert type(getattr(made, field)) is type(value)


@pytest.mark.parametrize("name", METHODS)
def test_five_thousand_images_of_ten_classes_suffice(name: str) -> None:
    """A sweep sets all fields at once, here to their first and to their last values."""
    setting = replace(tiny_setting(same_maps=True), num_samples=5000, labels=torch.arange(5000) % 10)
    for end in (0, -1):
        method_class(name).model_validate({field: values[end] for field, _, values in _entries(name)}).check(setting)


@pytest.mark.parametrize("name", METHODS)
def test_ranges_rise_and_choices_differ(name: str) -> None:
    for _, kind, values in _entries(name):
        if kind in RANGES:
            low, high = values
            assert low < high and (not kind.startswith("log") or low > 0)
        else:
            assert len({*values}) == len(values) > 1


@pytest.mark.parametrize("name", METHODS)
def test_a_default_that_is_a_number_lies_in_its_range(name: str) -> None:
    made = method_class(name)()
    for field, kind, values in _entries(name):
        default = getattr(made, field)
        if kind in RANGES and default is not None:
            assert values[0] <= default <= values[1]


@pytest.mark.parametrize("mode", ["supervised", "compress", "self"])
def test_the_space_of_protocpc_serves_each_of_its_modes(mode: str) -> None:
    for field, _, values in _entries("protocpc"):
        for value in values:
            assert getattr(ProtoCPC.model_validate({"mode": mode, field: value}), field) == value


def test_the_ranges_are_those_of_the_papers() -> None:
    """CRD Figure 5 and section 6.4; CoCoRD Figure 3a and Table 6; ProtoCPC Tables 7 and 8; CompRes section 4.5."""
    crd, cocord, protocpc, compress = (
        method_class(name).search_space for name in ("crd", "cocord", "protocpc", "compress")
    )
    momenta = {"choice": [0.0, 0.9, 0.99, 0.999, 0.9999, 1.0]}
    assert crd["temperature"] == {"loguniform": [0.02, 0.3]} and crd["weight"] == {"uniform": [0.5, 1.5]}
    assert cocord["temperature"] == {"uniform": [0.07, 0.11]}
    assert cocord["momentum_contrast"] == cocord["momentum_slow"] == momenta
    assert protocpc["prior_momentum"] == {"choice": [0.0, 0.9, 0.99]}
    assert {*protocpc["assignment"]["choice"]} == {"sinkhorn", "softmax"}
    assert {*compress["momentum"]["choice"]} == {0.0, 0.5, 0.7, 0.999}
