"""The page docs/methods.md, made from the registry.

python -m raydistill.reporting.methods_page > docs/methods.md
"""

from __future__ import annotations

import torch

from raydistill.methods.base import Method, Setting
from raydistill.methods.describe import Description, describe
from raydistill.methods.registry import METHODS, method_class
from raydistill.models.zoo import build_model

STUDENT, TEACHER, CLASSES, IMAGES = "resnet8x4", "resnet32x4", 100, 50_000

INTRODUCTION = f"""\
# Methods

Made by `python -m raydistill.reporting.methods_page > docs/methods.md`; a test keeps it up to date.

Defaults are the papers' values where the papers give them. *Cache* says whether a cached teacher can serve the method
with `cache.outputs: [logits, embedding]`. *Trains* and *remembers* are for CIFAR-100 ({IMAGES} images, {CLASSES}
classes), teacher {TEACHER}, student {STUDENT}, and the defaults: parameters beside the student's, and the size of
queues, banks, priors and averaged copies in the checkpoint. `raydistill list methods NAME` tells the same.

*Ready-made range* is what a sweep tries of a hyper-parameter with `methods.<label>: auto` in `tune.space`; it is
meant for 5000 images to train on, or more.

B: batch, D: width of an embedding, C: classes, K: prototypes, Q: queue, M: training images, T: temperature."""


def page() -> str:
    """The whole page as Markdown."""
    setting = reference_setting()
    names = sorted(METHODS)
    sizes = {name: _sizes(method_class(name)(), setting) for name in names}
    told = [describe(name) for name in names]
    rows = [
        f"| [`{about.name}`](#{about.name}) | {about.teacher} | {about.cache} | {' | '.join(sizes[about.name])} |"
        for about in told
    ]
    table = "\n".join(["| method | of the teacher | cache | trains | remembers |", "|---|---|---|---|---|", *rows])
    return "\n\n".join([INTRODUCTION, table, *(_section(about, *sizes[about.name]) for about in told)]) + "\n"


def reference_setting() -> Setting:
    """CIFAR-100 with the pair of networks that the page speaks of."""
    student, teacher = (build_model(name, CLASSES) for name in (STUDENT, TEACHER))
    return Setting(
        student=student.shapes((3, 32, 32)),
        teachers=(teacher.shapes((3, 32, 32)),),
        student_network=student,
        num_classes=CLASSES,
        num_samples=IMAGES,
        batch_size=64,
        epochs=240,
        labels=torch.arange(IMAGES) % CLASSES,
        seed=0,
    )


def _sizes(method: Method, setting: Setting) -> tuple[str, str]:
    parts = method.parts(setting)
    trained = {name: value for name, value in parts.named_parameters() if value.requires_grad}
    kept = {name: value for name, value in parts.state_dict().items() if name not in trained}
    count = sum(value.numel() for value in trained.values())
    size = sum(value.numel() * value.element_size() for value in kept.values())
    return f"{count:,}" if count else "-", f"{size / 1e6:,.2f} MB" if size > 1e4 else f"{size} B" if size else "-"


def _section(about: Description, trains: str, remembers: str) -> str:
    rows = "\n".join(
        f"| `{field}` | {default} | {allowed} | {about.ranges.get(field, '')} |"
        for field, (allowed, default) in about.parameters.items()
    )
    return (
        f"## {about.name}\n\n{about.paper}\n\n`{about.equation}`\n\n{about.text}\n\n"
        f"- student: {about.student}\n- teacher: {about.teacher}\n- cache: {about.cache}\n"
        f"- mixup and CutMix: {about.mixing}\n"
        f"- trains: {trains}; remembers: {remembers}\n"
        f"- ready-made ranges: {about.ranges_from}\n\n"
        f"| hyper-parameter | default | allowed | ready-made range |\n|---|---|---|---|\n{rows}"
    )


if __name__ == "__main__":
    print(page(), end="")
