"""The images of runs as they are put into a page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from raydistill.data.config import DataConfig
from raydistill.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from raydistill.data.image_set import ImageSet

MOST_PIXELS = 96
"""Longer sides are scaled down to it: a page holds hundreds of pictures."""


class Album:
    """The pictures of a data set, by the ids of its images."""

    def __init__(self, images: ImageSet, classes: Sequence[str] = ()) -> None:
        """Nothing is decoded before it is asked for; ``classes`` are their names, where they have some."""
        self._images = images
        self._classes = classes
        self._positions = {int(number): position for position, number in enumerate(images.ids.tolist())}

    @classmethod
    def of_test_images(cls, data: Mapping[str, Any]) -> Album:
        """Open those that a run was judged by; ``data`` is that section of its configuration.

        Raises:
            DataError: where they cannot be read.
        """
        from raydistill.data.datasets import load_test
        from raydistill.data.folder import class_names

        section = _section(data)
        return cls(load_test(section), class_names(section))

    @classmethod
    def of_training_images(cls, data: Mapping[str, Any]) -> Album:
        """Open those that a run learned from, validation images among them.

        Raises:
            DataError: where they cannot be read.
        """
        from raydistill.data.datasets import load_train
        from raydistill.data.folder import class_names

        section = _section(data)
        return cls(load_train(section), class_names(section))

    def pictures(self, ids: Iterable[int]) -> list[str]:
        """Return the images as addresses that hold a PNG file each.

        Raises:
            DataError: where an image is not in the set any more.
        """
        import torch

        try:
            positions = [self._positions[int(number)] for number in ids]
        except KeyError as error:
            raise DataError(f"image {error} is not in the data set any more") from None
        return [_address(pixels) for pixels in self._images.pixels(torch.tensor(positions, dtype=torch.int64))]

    def labels(self, ids: Iterable[int]) -> list[str]:
        """Return the images' classes, several of an image that shows several."""
        return [self._words(self._positions[int(number)]) for number in ids]

    def _words(self, position: int) -> str:
        labels, targets = self._images.labels, self._images.targets
        if targets is not None:
            return ", ".join(map(self._name, (targets[position] > 0).nonzero().flatten().tolist()))
        assert labels is not None
        return self._name(int(labels[position]))

    def _name(self, number: int) -> str:
        return self._classes[number] if self._classes else str(number)


class Albums:
    """Albums that are opened once, however many runs have used their images."""

    def __init__(self) -> None:
        """None is open yet."""
        self._open: dict[tuple[str, str], Album] = {}

    def test(self, data: Mapping[str, Any]) -> Album:
        """``Album.of_test_images``."""
        return self._opened("test", Album.of_test_images, data)

    def training(self, data: Mapping[str, Any]) -> Album:
        """``Album.of_training_images``."""
        return self._opened("training", Album.of_training_images, data)

    def _opened(self, part: str, read: Callable[[Mapping[str, Any]], Album], data: Mapping[str, Any]) -> Album:
        key = part, json.dumps(data, sort_keys=True, default=str)
        if key not in self._open:
            self._open[key] = read(data)
        return self._open[key]


def _section(data: Mapping[str, Any]) -> DataConfig:
    try:
        return DataConfig.model_validate(dict(data))
    except ValidationError as error:
        raise DataError(f"the run's section data: {error.errors()[0]['msg']}") from None


def _address(pixels: Tensor) -> str:
    """Return uint8 [C, H, W] as a ``data:`` address; of more than one channel but not three the first is shown."""
    from PIL import Image

    shown = pixels.permute(1, 2, 0) if pixels.shape[0] == 3 else pixels[0]
    image = Image.fromarray(shown.contiguous().numpy())
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
