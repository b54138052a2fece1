"""Detection that begins with a distilled student (CoCoRD, section 4.4 and Table 8).

    python experiments/downstream/detection.py runs/NAME --data voc --root /data/voc            # AP, AP50, AP75
    python experiments/downstream/detection.py runs/NAME --data voc --root /data/voc --fresh    # from random weights
    python experiments/downstream/detection.py runs/NAME --data voc07 --root /data/voc          # trained on 2007 alone
    python experiments/downstream/detection.py runs/NAME --data coco --root /data/coco
    python experiments/downstream/detection.py runs/NAME --data synthetic --channels 32 --levels 2   # drawn images

Published for ResNet-50: AP 55.0 of CoCoRD's student on VOC07 test after training on trainval07+12, against 53.5 of a
ResNet-50 trained alone and 33.8 from scratch; on COCO val2017 41.0, 40.0 and 26.4. raydistill/reporting/papers has all.

Hardware and time: VOC and COCO were not run here, so no time can be told; one GPU, if there is one. The drawn images: 2
CPU cores, about a minute.

What differs from the table: its detectors are Faster R-CNN (VOC) and Mask R-CNN (COCO) with an R50-C4 backbone, whose
last stage is the head; here any network goes under a feature pyramid, and masks are not learned. Its schedule is in a
supplement that was not at hand; the schedules below are the usual ones of such comparisons. AP is COCO's on VOC, too.

Results go to detection.json in the run's folder, from where `raydistill compare --layout cocord-table8` takes those of
the student. `--fresh` is the control: the same network, detector and budget, and no weights of the run; its batch-norms
are trained, as there are no statistics to keep.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from boxes import Item, training_and_test
from students import beginning
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from raydistill.display import say
from raydistill.errors import DataError, RaydistillError, RunError
from raydistill.evaluation.card_files import DETECTION
from raydistill.evaluation.detection import average_precisions
from raydistill.evaluation.downstream import FRESH, STUDENT, write_downstream
from raydistill.exporting.deployed import Description
from raydistill.models.backbone import PyramidBackbone, backbone_of
from raydistill.models.taps import Tapped

_RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Schedule:
    """How a detector is trained: SGD with momentum 0.9; the rate grows linearly, then falls tenfold at milestones.

    ``sizes`` are lengths of the shorter side, one of which is drawn for a training image; the last is that of tests.
    Gradients longer than ``clip``, if it is set, are shortened to it. Of an image Faster R-CNN looks at ``proposals``
    boxes of a map and learns from ``sampled`` of them.
    """

    steps: int
    batch_size: int
    lr: float
    warm_up: int
    milestones: tuple[int, ...]
    sizes: tuple[int, ...]
    longest: int = 1333
    proposals: int = 2000
    sampled: int = 512
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float | None = None

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, the first of which is 0."""
        begun = min(1.0, (step + 1) / max(1, self.warm_up))
        return self.lr * begun * 0.1 ** sum(step >= milestone for milestone in self.milestones)


SCHEDULES = {
    "voc": Schedule(24000, 16, 0.02, 100, (18000, 22000), tuple(range(480, 801, 32))),
    # As many passes over fewer images.
    "voc07": Schedule(7200, 16, 0.02, 100, (5400, 6600), tuple(range(480, 801, 32))),
    "coco": Schedule(90000, 16, 0.02, 1000, (60000, 80000), tuple(range(640, 801, 32))),
    "synthetic": Schedule(150, 4, 0.02, 10, (110,), (64,), longest=64, clip=5.0, proposals=64, sampled=32),
}


def main() -> None:
    """Train a detector, judge it and note the result."""
    given = _arguments()
    try:
        _run(given)
    except RaydistillError as error:
        print(f"detection: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _run(given: argparse.Namespace) -> None:
    changed = {"steps": given.steps, "batch_size": given.batch_size, "lr": given.lr}
    schedule = shortened(SCHEDULES[given.data], {name: value for name, value in changed.items() if value is not None})
    network, description = beginning(given.run, fresh=given.fresh, seed=given.seed)
    train, test, classes = training_and_test(
        given.data, given.root, description.image_shape[0], download=given.download, seed=given.seed
    )
    detector = detector_on(
        network,
        description,
        classes,
        schedule,
        kind=given.detector,
        channels=given.channels,
        levels=given.levels,
        frozen_stages=given.frozen_stages,
        train_batch_norm=given.fresh or given.train_batch_norm,
        seed=given.seed,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    losses = fit(detector.to(device), train, schedule, seed=given.seed, workers=given.workers)
    values = judge(detector, test, workers=given.workers)
    role = FRESH if given.fresh else STUDENT
    settings = {
        "detector": given.detector,
        "seed": given.seed,
        "frozen_stages": given.frozen_stages,
        "train_batch_norm": given.fresh or given.train_batch_norm,
        "levels": given.levels,
        "channels": given.channels,
        "loss": {"first tenth": _mean(losses[: _tenth(losses)]), "last tenth": _mean(losses[-_tenth(losses) :])},
        "seconds": round(time.monotonic() - started, 1),
        **asdict(schedule),
    }
    named = {f"detection_{name}": value for name, value in values.items()}
    write_downstream(given.run / DETECTION, role, given.data, named, {"detection": settings})
    loss = settings["loss"]
    say(f"loss {loss['first tenth']:.3f} to {loss['last tenth']:.3f} in {settings['seconds']:.0f} s")
    print(f"{role} on {given.data}: " + ", ".join(f"{name} {value:.1f}" for name, value in values.items()))


def shortened(schedule: Schedule, changed: dict[str, Any]) -> Schedule:
    """Change a schedule; with other steps its milestones keep their share of them."""
    steps = changed.get("steps", schedule.steps)
    milestones = tuple(round(milestone * steps / schedule.steps) for milestone in schedule.milestones)
    return replace(schedule, milestones=milestones, **changed)


def detector_on(
    network: Tapped,
    description: Description,
    classes: int,
    schedule: Schedule,
    *,
    kind: str,
    channels: int,
    levels: int,
    frozen_stages: int,
    train_batch_norm: bool,
    seed: int,
) -> nn.Module:
    """Put a pyramid and a detector's heads with fresh weights on a network; its images are float, in [0, 1]."""
    body = backbone_of(
        network,
        description.image_shape[0],
        levels=levels,
        frozen_stages=frozen_stages,
        train_batch_norm=train_batch_norm,
    )
    torch.manual_seed(seed)
    backbone = PyramidBackbone(body, channels)
    transform = {
        "image_mean": list(description.mean),
        "image_std": list(description.std),
        "min_size": schedule.sizes,
        "max_size": schedule.longest,
    }
    if kind == "retinanet":
        # Three sizes between two octaves; 32 pixels at the stride 8.
        sizes = tuple(tuple(round(4 * stride * 2 ** (third / 3)) for third in range(3)) for stride in backbone.strides)
        anchors = AnchorGenerator(sizes, (_RATIOS,) * len(sizes))
        return RetinaNet(backbone, classes + 1, anchor_generator=anchors, **transform)
    anchors = AnchorGenerator(tuple((8 * stride,) for stride in backbone.strides), (_RATIOS,) * len(backbone.strides))
    align = MultiScaleRoIAlign(list(body.names), output_size=7, sampling_ratio=2)
    return FasterRCNN(
        backbone,
        classes + 1,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=schedule.proposals,
        rpn_post_nms_top_n_train=schedule.proposals,
        rpn_pre_nms_top_n_test=schedule.proposals // 2,
        rpn_post_nms_top_n_test=schedule.proposals // 2,
        box_roi_pool=align,
        box_batch_size_per_image=schedule.sampled,
        **transform,
    )


def fit(detector: nn.Module, data: Dataset[Item], schedule: Schedule, *, seed: int, workers: int = 0) -> list[float]:
    """Train a detector in place and return the loss of each step; the seed decides batches, flips and proposals.

    Raises:
        DataError: where there are fewer images than in a batch.
        RunError: where a loss is not finite.
    """
    if len(data) < schedule.batch_size:  # type: ignore[arg-type]
        raise DataError(f"--batch-size {schedule.batch_size}: there are {len(data)} images")  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    weights = [weight for weight in detector.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, schedule.lr, schedule.momentum, weight_decay=schedule.weight_decay)
    batches = _endless(data, schedule.batch_size, generator, workers)
    losses: list[float] = []
    detector.train()
    for step in range(schedule.steps):
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        images, targets = _prepared(next(batches), weights[0].device, generator)
        terms: dict[str, Tensor] = detector(images, targets)
        loss = torch.stack(list(terms.values())).sum()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            told = ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
            raise RunError(f"the loss of step {step + 1} is not finite ({told}); try a smaller --lr")
        optimizer.zero_grad()
        loss.backward()
        if schedule.clip is not None:
            nn.utils.clip_grad_norm_(weights, schedule.clip)
        optimizer.step()
        if (step + 1) % max(1, schedule.steps // 10) == 0:
            say(f"step {step + 1} of {schedule.steps}: loss {_mean(losses[-_tenth(losses) :]):.3f}")
    return losses


def judge(detector: nn.Module, data: Dataset[Item], *, workers: int = 0) -> dict[str, float]:
    """Return AP, AP50 and AP75 of a detector in percent."""
    truth, found = [], []
    device = next(detector.parameters()).device
    detector.eval()
    with torch.inference_mode():
        for images, targets in DataLoader(data, 8, collate_fn=_columns, num_workers=workers):
            said = detector([image.to(device) for image in images])
            truth += targets
            found += [{name: value.cpu() for name, value in each.items()} for each in said]
    return average_precisions(truth, found)


def _endless(
    data: Dataset[Item], batch_size: int, generator: torch.Generator, workers: int
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    loader = DataLoader(
        data,
        batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=_columns,
        num_workers=workers,
        generator=generator,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def _columns(items: list[Item]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    return [image for image, _ in items], [target for _, target in items]


def _prepared(
    batch: tuple[list[Tensor], list[dict[str, Tensor]]], device: torch.device, generator: torch.Generator
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Flip half of the images, leave out what is ignored, and bring all to the device."""
    images, targets = [], []
    flips = torch.rand(len(batch[0]), generator=generator) < 0.5
    for image, target, flip in zip(*batch, flips.tolist(), strict=True):
        asked = ~target["ignored"]
        boxes = target["boxes"][asked]
        if flip:
            left, top, right, bottom = boxes.unbind(1)
            boxes = torch.stack([image.shape[2] - right, top, image.shape[2] - left, bottom], dim=1)
        images.append((image.flip(2) if flip else image).to(device))
        targets.append({"boxes": boxes.to(device), "labels": target["labels"][asked].to(device)})
    return images, targets


def _tenth(losses: list[float]) -> int:
    return max(1, len(losses) // 10)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--data", choices=SCHEDULES, required=True)
    parser.add_argument("--root", type=Path, help="folder that holds VOCdevkit, or train2017, val2017 and annotations")
    parser.add_argument("--download", action="store_true", help="fetch VOC into the root (COCO is not fetched)")
    parser.add_argument("--detector", choices=("faster_rcnn", "retinanet"), default="faster_rcnn")
    parser.add_argument("--fresh", action="store_true", help="the control: random weights instead of the student's")
    parser.add_argument("--frozen-stages", type=int, default=0, help="first stages whose weights stay as they are")
    parser.add_argument("--train-batch-norm", action="store_true", help="else batch-norms stay as they are")
    parser.add_argument("--levels", type=int, default=4, help="the most maps of the network under the pyramid")
    parser.add_argument("--channels", type=int, default=256, help="of the pyramid")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    return parser.parse_args()


if __name__ == "__main__":
    main()
