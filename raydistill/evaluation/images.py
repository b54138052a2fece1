"""The images that a card is made from: those to fit on and those to judge by, of the run's own data or of others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from raydistill.data.config import DataConfig
from raydistill.data.datasets import load_test, load_train, split_train
from raydistill.data.image_set import DecodedImages, ImageSet
from raydistill.data.resident import ResidentSet
from raydistill.errors import DataError


@dataclass(frozen=True)
class Images:
    """Images to fit classifiers of features on, and others to judge networks by."""

    bank: ResidentSet
    test: ResidentSet

    @property
    def labelled(self) -> bool:
        """Whether all of them have labels, or targets for each class."""
        return all(part.labels is not None or part.targets is not None for part in (self.bank, self.test))


def own_images(data: DataConfig, device: torch.device) -> Images:
    """Return the training images without the validation ones, and the test images, as a section's student sees them.

    Raises:
        DataError: where they cannot be read.
    """
    train, test = split_train(load_train(data), data).train, load_test(data)
    return Images(ResidentSet(train, device), ResidentSet(test, device))


def transfer_images(data: DataConfig, like: ResidentSet, device: torch.device) -> Images:
    """Return all training and test images of another data set, as networks trained on ``like`` take them.

    They are scaled to the size of its images, and normalised as those are unless ``data`` says how: CRD (Tian et al.
    2020, section 4.1) makes STL-10 and TinyImageNet as small as CIFAR's images for its Table 4.

    Raises:
        DataError: where they cannot be read, have no labels or other channels.
    """
    channels, height, width = like.shape
    if data.known.decodes and data.image_size is not None:
        data = data.model_copy(update={"image_size": height})
    train, test = (_scaled(images, height, width) for images in (load_train(data), load_test(data)))
    if train.shape[0] != channels:
        raise DataError(
            f"data set '{data.name}' has images of {train.shape[0]} channels, the networks were trained "
            f"on {channels}; name another"
        )
    found = Images(ResidentSet(train, device), ResidentSet(test, device))
    if not found.labelled:
        raise DataError(f"data set '{data.name}' has no labels to judge features by; name another")
    if data.mean is None:
        for part in (found.bank, found.test):
            part.mean, part.std = like.mean, like.std
    return found


def _scaled(images: ImageSet, height: int, width: int) -> ImageSet:
    if images.shape[1:] == (height, width):
        return images
    scaled = torch.nn.functional.interpolate(
        images.images, size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    assert isinstance(images, DecodedImages)
    return replace(images, decoded=scaled)
