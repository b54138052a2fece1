"""Small settings and steps for tests of methods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raydistill.methods.base import Method, Needs, Setting, Step

CLASSES, SAMPLES, WIDTH, TEACHER_WIDTH, PIXELS = 5, 24, 6, 7, 12
MAPS = ((4, 8, 8), (4, 8, 8), (6, 4, 4), (8, 2, 2))
TEACHER_MAPS = ((4, 8, 8), (5, 8, 8), (7, 4, 4), (9, 2, 2))


class TinyNetwork(nn.Module):
    """Body, tanh, classifier, and a linear map for each stage: all outputs of images of any shape."""

    def __init__(
        self,
        pixels: int = PIXELS,
        width: int = WIDTH,
        classes: int = CLASSES,
        maps: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        super().__init__()
        self.body = nn.Linear(pixels, width)
        self.fc = nn.Linear(width, classes)
        self.maps = maps
        self.stages = nn.ModuleList(nn.Linear(pixels, math.prod(shape)) for shape in maps)

    def forward(self, images: Tensor, outputs: Iterable[str] = ("logits", "embedding")) -> dict[str, Tensor]:
        pixels = images.flatten(1)
        embedding = torch.tanh(self.body(pixels))
        found = {"embedding": embedding, "logits": self.fc(embedding)}
        for number, (stage, shape) in enumerate(zip(self.stages, self.maps, strict=True)):
            raw = stage(pixels).unflatten(1, shape)
            found |= {f"preact/{number}": raw, f"features/{number}": raw.relu()}
        return {name: found[name] for name in outputs}

    def tail(self, first: int, map_shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(map_shape), self.fc.out_features))


class Only(dict[Any, Any]):
    """A dictionary that fails a test where a key is read that is not there."""

    def __missing__(self, key: Any) -> Any:
        raise AssertionError(f"read undeclared {key!r}")

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key]


def tiny_setting(
    student: nn.Module | None = None, *, teacher_width: int = TEACHER_WIDTH, same_maps: bool = False
) -> Setting:
    """A training set of 24 samples in 5 classes; with ``same_maps`` the teacher's maps have the student's shapes."""
    return Setting(
        student=shapes_of(WIDTH, MAPS),
        teachers=(shapes_of(teacher_width, MAPS if same_maps else TEACHER_MAPS),),
        student_network=tiny_student() if student is None else student,
        num_classes=CLASSES,
        num_samples=SAMPLES,
        batch_size=8,
        epochs=3,
        labels=torch.arange(SAMPLES) % CLASSES,
        seed=3,
    )


def shapes_of(width: int, maps: tuple[tuple[int, ...], ...]) -> dict[str, tuple[int, ...]]:
    """Every output's shape."""
    features = {f"{kind}/{number}": shape for number, shape in enumerate(maps) for kind in ("features", "preact")}
    return {"logits": (CLASSES,), "embedding": (width,), **features}


def tiny_student() -> TinyNetwork:
    """Always the same network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return TinyNetwork(maps=MAPS)


def make_step(
    needs: Needs, number: int, rows: slice, *, setting: Setting | None = None, student: nn.Module | None = None
) -> Step:
    """What ``needs`` declares of the ``number``-th global batch, of which only ``rows`` are handed out.

    Without a ``student`` its outputs are random leaves that take gradients.
    """
    setting = setting or tiny_setting()
    generator = torch.Generator().manual_seed(100 + number)
    index = torch.randperm(SAMPLES, generator=generator)[:8]
    columns = {"index": index, "label": index % CLASSES}

    def draw(*shape: int) -> Tensor:
        return torch.randn(8, *shape, generator=generator, dtype=torch.float64)[rows]

    def outputs(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {name: draw(*shapes[name]) for name in sorted(names)}

    images, students, teachers = {}, Only(), Only()
    for view in needs.views:
        images[view] = draw(PIXELS)
        if view in needs.student and student is None:
            made = outputs(needs.student[view], setting.student)
            students[view] = Only({name: value.requires_grad_() for name, value in made.items()})
        elif view in needs.student:
            assert student is not None
            students[view] = Only(student(images[view], outputs=tuple(needs.student[view])))
        if view in needs.teacher:
            teachers[view] = Only(outputs(needs.teacher[view], setting.teacher))
    return Step(
        views=Only({view: images[view] for view in needs.images}),
        student=students,
        teachers=(teachers,),
        columns=Only({name: columns[name][rows] for name in needs.columns}),
        epoch=number,
        progress=number / 10,
    )


def single_step(
    student: Mapping[int, Mapping[str, Tensor]],
    teacher: Mapping[int, Mapping[str, Tensor]],
    *,
    views: Mapping[int, Tensor] | None = None,
    columns: Mapping[str, Tensor] | None = None,
) -> Step:
    """A step from given tensors."""
    return Step(views=views or {}, student=student, teachers=(teacher,), columns=columns or {})


def double_parts(method: Method, setting: Setting) -> Any:
    """Parts in float64."""
    return method.parts(setting).double()


def tensor(array: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """A stored array as a tensor; integers stay integers."""
    made = torch.from_numpy(np.array(array))
    return made.to(dtype) if made.is_floating_point() else made


def close(actual: Any, expected: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Assert agreement with a stored value."""
    value, expected = (x.detach().numpy() if isinstance(x, Tensor) else x for x in (actual, expected))
    np.testing.assert_allclose(value, np.asarray(expected).reshape(np.shape(value)), rtol=rtol, atol=atol)
