"""What counts as equal."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test
from raydistill.data.resident import ResidentSet
from raydistill.errors import RunError
from raydistill.exporting.deployed import Deployed, Description
from raydistill.exporting.parity import Parity, as_fractions, compare
from raydistill.models.zoo import build_model


@pytest.fixture(scope="module")
def images() -> ResidentSet:
    return ResidentSet(load_test(DataConfig(name="digits")), "cpu")


@pytest.fixture(scope="module")
def network(images: ResidentSet) -> Deployed:
    torch.manual_seed(3)
    shape, mean, std = images.shape, images.mean, images.std
    described = Description(
        model="resnet8", num_classes=10, image_shape=shape, mean=mean, std=std, outputs=("logits", "embedding")
    )
    return Deployed(build_model("resnet8", 10, in_channels=1), described)


def differing(network: Deployed, images: ResidentSet, by: float, seen: list[int] | None = None) -> Parity:
    def predict(shown: Tensor) -> Mapping[str, Tensor]:
        if seen is not None:
            seen.append(len(shown))
        found = network(shown)
        return {**found, "logits": found["logits"] + by}

    return compare(network.network, predict, images, ("logits", "embedding"))


def test_a_network_behind_its_normalisation_equals_the_student(network: Deployed, images: ResidentSet) -> None:
    parity = differing(network, images, 0.0)
    parity.check("it")
    assert parity.max_abs_diff < 1e-5
    assert parity.images == 256


def test_each_number_of_images_is_tried(network: Deployed, images: ResidentSet) -> None:
    seen: list[int] = []
    differing(network, images, 0.0, seen)
    assert {1, 7, 64} <= set(seen)
    assert sum(seen) == 256


def test_few_images_are_shown_again_until_each_number_was_tried(network: Deployed, images: ResidentSet) -> None:
    seen: list[int] = []
    few = ResidentSet(images.source.take(torch.arange(5)), "cpu")
    assert differing(network, few, 0.0, seen).images == 5
    assert seen == [1, 7, 64]


@pytest.mark.parametrize(("by", "equal"), [(0.9e-4, True), (1.1e-4, False), (float("nan"), False)])
def test_the_bound_is_a_ten_thousandth(network: Deployed, images: ResidentSet, by: float, equal: bool) -> None:
    parity = differing(network, images, by)
    assert parity.differences["logits"] == pytest.approx(by, abs=1e-5, nan_ok=True)
    if equal:
        parity.check("it")
    else:
        with pytest.raises(RunError, match="it: `logits` differs"):
            parity.check("it")


def test_other_shapes_are_never_equal(network: Deployed, images: ResidentSet) -> None:
    # One column would be broadcast over all of them.
    parity = compare(network.network, lambda shown: {"logits": network(shown)["logits"][:, :1]}, images, ("logits",))
    assert parity.max_abs_diff == float("inf")


def test_pixels_become_fractions() -> None:
    assert as_fractions(torch.tensor([[0, 51, 255]], dtype=torch.uint8)).tolist() == [[0.0, pytest.approx(0.2), 1.0]]
