"""Images of shapes on noise, with their boxes and the class of each pixel; made by a seeded generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from students import COLOURS
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

_Box = tuple[int, int, int, int]


def _triangle(canvas: ImageDraw.ImageDraw, box: _Box, fill: Any) -> None:
    left, top, right, bottom = box
    canvas.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=fill)


SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, _Box, Any], None]] = {
    "rectangle": lambda canvas, box, fill: canvas.rectangle(box, fill=fill),
    "ellipse": lambda canvas, box, fill: canvas.ellipse(box, fill=fill),
    "triangle": _triangle,
}


@dataclass(frozen=True)
class Scene:
    """One image.

    Attributes:
        image: float [C, H, W] in [0, 1].
        boxes: of its shapes, float [N, 4]: left, top, right and bottom in pixels.
        labels: of its shapes, from 1.
        classes: of each pixel, int64 [H, W]; 0 is the ground.
    """

    image: Tensor
    boxes: Tensor
    labels: list[int]
    classes: Tensor


def drawn(generator: torch.Generator, channels: int, side: int) -> Scene:
    """Draw up to three shapes that do not overlap, each of a grey or colour of its own."""

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    ground = 0.35 + 0.08 * torch.randn(channels, side, side, generator=generator)
    image, classes = Image.new(COLOURS[channels], (side, side)), Image.new("L", (side, side))
    boxes: list[_Box] = []
    labels: list[int] = []
    for _ in range(between(1, 3)):
        width, height = between(side // 5, side // 2), between(side // 5, side // 2)
        left, top = between(0, side - width - 1), between(0, side - height - 1)
        box = (left, top, left + width, top + height)
        if any(_overlap(box, other) for other in boxes):
            continue
        label = between(1, len(SHAPES))
        draw = list(SHAPES.values())[label - 1]
        colour = tuple(between(150, 255) for _ in range(channels))
        draw(ImageDraw.Draw(image), box, colour if channels > 1 else colour[0])
        draw(ImageDraw.Draw(classes), box, label)
        boxes.append(box)
        labels.append(label)
    known = pil_to_tensor(classes)
    pixels = torch.where(known > 0, pil_to_tensor(image).float() / 255, ground.clamp(0, 1))
    corners = torch.tensor(boxes, dtype=torch.float32) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # Pillow's ends are inside
    return Scene(pixels, corners, labels, known[0].long())


def _overlap(box: _Box, other: _Box) -> bool:
    return max(box[0], other[0]) <= min(box[2], other[2]) and max(box[1], other[1]) <= min(box[3], other[3])
