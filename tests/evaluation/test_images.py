"""Images of another data set as a network takes them."""

from __future__ import annotations

import pytest
import torch

from raydistill.data.config import DataConfig
from raydistill.errors import DataError
from raydistill.evaluation.images import own_images, transfer_images

CPU = torch.device("cpu")


def synthetic(**fields: object) -> DataConfig:
    return DataConfig.model_validate({"name": "synthetic", "synthetic_size": 60, "synthetic_channels": 1} | fields)


def test_they_are_scaled_to_its_size_and_normalised_as_its_own() -> None:
    like = own_images(DataConfig(name="digits"), CPU).test
    found = transfer_images(synthetic(synthetic_image_size=16), like, CPU)
    assert found.bank.shape == found.test.shape == (1, 8, 8)
    assert (found.bank.mean, found.test.std) == (like.mean, like.std)
    assert found.bank.images.dtype == torch.uint8
    large = own_images(synthetic(synthetic_image_size=16), CPU).test.images.float()
    small = found.test.images.float()
    assert small.mean((1, 2, 3)) == pytest.approx(large.mean((1, 2, 3)), abs=3.0)


def test_all_its_training_images_are_fitted_on() -> None:
    like = own_images(synthetic(), CPU).test
    assert len(transfer_images(synthetic(), like, CPU).bank) == 60
    assert len(own_images(synthetic(), CPU).bank) == 54


def test_mean_and_std_that_are_given_count() -> None:
    like = own_images(DataConfig(name="digits"), CPU).test
    given = transfer_images(synthetic(mean=[0.25], std=[0.5]), like, CPU)
    assert (given.test.mean, given.test.std) == ((0.25,), (0.5,))


def test_other_channels_are_refused() -> None:
    with pytest.raises(DataError, match="images of 1 channels, the networks were trained on 3"):
        transfer_images(synthetic(), own_images(synthetic(synthetic_channels=3), CPU).test, CPU)
