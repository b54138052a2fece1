"""Small settings and steps for tests of methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raydistill.methods.base import Method, Needs, Setting, Step

CLASSES, SAMPLES, WIDTH, TEACHER_WIDTH, PIXELS = 5, 24, 6, 7, 12


class TinyNetwork(nn.Module):
    """Body, tanh, classifier: the embedding and the logits of images of any shape."""

    def __init__(self, pixels: int = PIXELS, width: int = WIDTH, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Linear(pixels, width)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor, outputs: Iterable[str] = ("logits", "embedding")) -> dict[str, Tensor]:
        embedding = torch.tanh(self.body(images.flatten(1)))
        found = {"embedding": embedding, "logits": self.fc(embedding)}
        return {name: found[name] for name in outputs}


class Only(dict[Any, Any]):
    """A dictionary that fails a test where a key is read that is not there."""

    def __missing__(self, key: Any) -> Any:
        raise AssertionError(f"read undeclared {key!r}")

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key]


def tiny_setting(student: nn.Module | None = None, *, teacher_width: int = TEACHER_WIDTH) -> Setting:
    """A training set of 24 samples in 5 classes."""
    return Setting(
        student={"logits": (CLASSES,), "embedding": (WIDTH,)},
        teachers=({"logits": (CLASSES,), "embedding": (teacher_width,)},),
        student_network=tiny_student() if student is None else student,
        num_classes=CLASSES,
        num_samples=SAMPLES,
        batch_size=8,
        labels=torch.arange(SAMPLES) % CLASSES,
        seed=3,
    )


def tiny_student() -> TinyNetwork:
    """Always the same network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return TinyNetwork()


def make_step(needs: Needs, number: int, rows: slice, *, student: nn.Module | None = None) -> Step:
    """What ``needs`` declares of the ``number``-th global batch, of which only ``rows`` are handed out.

    Without a ``student`` its outputs are random leaves that take gradients.
    """
    generator = torch.Generator().manual_seed(100 + number)
    index = torch.randperm(SAMPLES, generator=generator)[:8]
    columns = {"index": index, "label": index % CLASSES}
    widths = {"logits": (CLASSES, CLASSES), "embedding": (WIDTH, TEACHER_WIDTH)}

    def draw(width: int) -> Tensor:
        return torch.randn(8, width, generator=generator, dtype=torch.float64)[rows]

    images, students, teachers = {}, Only(), Only()
    for view in needs.views:
        images[view] = draw(PIXELS)
        made = {name: draw(width[0]).requires_grad_() for name, width in widths.items()}
        if student is not None:
            made = student(images[view])
        taught = {name: draw(width[1]) for name, width in widths.items()}
        if view in needs.student:
            students[view] = Only({name: made[name] for name in needs.student[view]})
        if view in needs.teacher:
            teachers[view] = Only({name: taught[name] for name in needs.teacher[view]})
    return Step(
        views=Only({view: images[view] for view in needs.images}),
        student=students,
        teachers=(teachers,),
        columns=Only({name: columns[name][rows] for name in needs.columns}),
        epoch=number,
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
