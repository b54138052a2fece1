"""Semantic segmentation that begins with a distilled student (CRD, section 4.2 and Table 5).

    python experiments/downstream/segmentation.py runs/NAME --data nyu_depth_v2 --root nyu_depth_v2_labeled.mat \
        --splits splits.mat --classes classMapping40.mat
    python experiments/downstream/segmentation.py runs/NAME ... --fresh      # the control: from random weights
    python experiments/downstream/segmentation.py runs/NAME ... --frozen     # a linear classifier on the frozen maps
    python experiments/downstream/segmentation.py runs/NAME --data synthetic # drawn images, a minute

Published, of a 5-layer CNN on depth images: pixel accuracy 61.6 and mean IoU 41.8 after CRD from a ResNet-18 on the RGB
images, 58.9 and 38.0 after KD, 56.4 and 35.8 from random weights. The student "is further trained to predict semantic
segmentation maps", hence nothing is frozen unless `--frozen` says so.

Hardware and time: NYU-Depth V2 was not run here. The drawn images: 2 CPU cores, about a minute.

What the paper leaves open: the classes (all 894 labels of the file unless `--classes` gives a mapping), the head (here
one convolution of 1 x 1 on the last map, its scores brought to the labels' size), the schedule (that here is of no
paper), the 5 layers, and which images judge. It contrasts local with global features while it distils; raydistill does
not.

A student of one channel sees depth, one of three colours; nyu_folders.py makes what it is distilled on. Results go to
segmentation.json in the run's folder, from where `raydistill compare --layout crd-table5` takes those of the student.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from drawing import SHAPES, drawn
from nyu import read_mapping, read_splits, scenes
from students import beginning
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from raydistill.display import say
from raydistill.errors import DataError, RaydistillError, RunError
from raydistill.evaluation.card_files import SEGMENTATION
from raydistill.evaluation.downstream import FRESH, STUDENT, write_downstream
from raydistill.evaluation.segmentation import (
    IGNORE,
    PROBE,
    mean_iou,
    pixel_accuracy,
    pixel_counts,
    pixel_loss,
    pixel_scores,
    segmentation_probe,
)
from raydistill.exporting.deployed import Description
from raydistill.models.backbone import Backbone, backbone_of

_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4


@dataclass(frozen=True)
class Part:
    """Images uint8 [N, C, H, W] and the classes of their pixels, int64 [N, H, W]; ``IGNORE`` where there is none."""

    images: Tensor
    classes: Tensor


class Segmenter(nn.Module):
    """The last map of a backbone with a convolution of 1 x 1 on it: images in [0, 1] -> scores [N, C, h, w]."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: Backbone, description: Description, classes: int) -> None:
        """Put a head with fresh weights on a body."""
        super().__init__()
        self.body = body
        self.head = nn.Conv2d(body.out_channels[-1], classes, 1)
        self.register_buffer("mean", torch.tensor(description.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(description.std)[:, None, None], persistent=False)

    def maps(self, images: Tensor) -> Tensor:
        """Normalise uint8 images and compute the map that the head sees."""
        found: Tensor = self.body((images.float() / 255 - self.mean) / self.std)[self.body.names[-1]]
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of uint8 images [N, C, H, W] at the map's size."""
        scores: Tensor = self.head(self.maps(images))
        return scores


def main() -> None:
    """Train, judge and note the result."""
    given = _arguments()
    try:
        _run(given)
    except RaydistillError as error:
        print(f"segmentation: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _run(given: argparse.Namespace) -> None:
    network, description = beginning(given.run, fresh=given.fresh, seed=given.seed)
    channels = description.image_shape[0]
    train, test, classes = _parts(given, channels)
    body = backbone_of(network, channels, levels=1, train_batch_norm=True)
    torch.manual_seed(given.seed)
    model = Segmenter(body, description, classes)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    if given.frozen:
        predicted = probed(model, train, test, classes, seed=given.seed)
    else:
        fit(model, train, epochs=given.epochs, batch_size=given.batch_size, lr=given.lr, seed=given.seed)
        predicted = segmented(model, test)
    counts = pixel_counts(predicted, test.classes, num_classes=classes)
    what = "probe" if given.frozen else "segmentation"
    values = {f"{what}_pixel_accuracy": pixel_accuracy(counts), f"{what}_miou": mean_iou(counts)}
    role = FRESH if given.fresh else STUDENT
    schedule = {"epochs": given.epochs, "batch_size": given.batch_size, "lr": given.lr}
    settings = {
        "seed": given.seed,
        "height": test.images.shape[2],
        "classes": classes,
        "seconds": round(time.monotonic() - started, 1),
        **(asdict(PROBE) if given.frozen else schedule),
    }
    write_downstream(given.run / SEGMENTATION, role, given.data, values, {what: settings})
    print(f"{role} on {given.data}: " + ", ".join(f"{name} {value:.1f}" for name, value in values.items()))


def fit(model: Segmenter, data: Part, *, epochs: int, batch_size: int, lr: float, seed: int) -> list[float]:
    """Train a model in place by SGD, with a cosine and flips, and return each epoch's mean loss.

    Raises:
        RunError: where a loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    device = model.mean.device
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr, _MOMENTUM, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history: list[float] = []
    model.train()
    for epoch in range(epochs):
        losses = []
        for rows in torch.randperm(len(data.images), generator=generator).split(batch_size):
            flips = torch.rand(len(rows), generator=generator) < 0.5
            images, classes = _flipped(data.images[rows], flips), _flipped(data.classes[rows], flips)
            loss = pixel_loss(model(images.to(device)), classes.to(device))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise RunError(f"the loss of epoch {epoch + 1} is not finite; try a smaller --lr")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        history.append(sum(losses) / len(losses))
        if (epoch + 1) % max(1, epochs // 10) == 0:
            say(f"epoch {epoch + 1} of {epochs}: loss {history[-1]:.3f}")
    return history


def segmented(model: Segmenter, data: Part, batch_size: int = 8) -> Tensor:
    """Return a model's class of each pixel, int64 [N, H, W]."""
    size = (data.classes.shape[1], data.classes.shape[2])
    model.eval()
    with torch.inference_mode():
        found = [
            pixel_scores(model(images.to(model.mean.device)), size).argmax(dim=1).cpu()
            for images in data.images.split(batch_size)
        ]
    return torch.cat(found)


def probed(model: Segmenter, train: Part, test: Part, classes: int, *, seed: int) -> Tensor:
    """Return the classes, int64 [N, H, W], that a linear classifier of the body's frozen maps gives the test images."""
    model.eval()
    with torch.no_grad():
        known, asked = (
            torch.cat([model.maps(images.to(model.mean.device)) for images in part.images.split(8)])
            for part in (train, test)
        )
    return segmentation_probe(known, train.classes, asked, num_classes=classes, seed=seed, protocol=PROBE)


def _parts(given: argparse.Namespace, channels: int) -> tuple[Part, Part, int]:
    if given.data == "synthetic":
        return synthetic(64, channels, seed=1000 + given.seed), synthetic(32, channels, seed=0), len(SHAPES) + 1
    for name, wanted in (("root", "nyu_depth_v2_labeled.mat"), ("splits", "splits.mat")):
        if getattr(given, name) is None:
            raise DataError(f"--{name}: --data {given.data} needs {wanted}")
    train, test = read_splits(given.splits)
    mapping = None if given.classes is None else read_mapping(given.classes)
    side = "depth" if channels == 1 else "rgb"
    parts = [gathered(scenes(given.root, positions, side), given.height, mapping) for positions in (train, test)]
    return parts[0], parts[1], 1 + max(int(part.classes.max()) for part in parts)


def synthetic(count: int, channels: int, *, seed: int, side: int = 48) -> Part:
    """Draw images; the ground is a class, too."""
    generator = torch.Generator().manual_seed(seed)
    made = [drawn(generator, channels, side) for _ in range(count)]
    images = torch.stack([(scene.image * 255).round().to(torch.uint8) for scene in made])
    return Part(images, torch.stack([scene.classes for scene in made]))


def gathered(found: Iterable[tuple[Tensor, Tensor]], height: int, mapping: Tensor | None) -> Part:
    """Scale images and labels to a height, and turn labels from 1 into classes from 0.

    Raises:
        DataError: a label has no class in the mapping.
    """
    images, classes = [], []
    for pixels, labels in found:
        size = (height, round(height * labels.shape[1] / labels.shape[0]))
        scaled = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
        images.append(scaled[0].round().clamp(0, 255).to(torch.uint8))
        few = F.interpolate(labels[None, None].double(), size, mode="nearest-exact")[0, 0].long()
        if mapping is not None and int(few.max()) >= len(mapping):
            raise DataError(f"--classes: {len(mapping) - 1} labels have a class, but there is a label {int(few.max())}")
        classes.append(few + IGNORE if mapping is None else mapping[few])
    return Part(torch.stack(images), torch.stack(classes))


def _flipped(values: Tensor, flips: Tensor) -> Tensor:
    shape = (-1, *[1] * (values.ndim - 1))
    return torch.where(flips.view(shape), values.flip(-1), values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--data", choices=("nyu_depth_v2", "synthetic"), required=True)
    parser.add_argument("--root", type=Path, help="nyu_depth_v2_labeled.mat")
    parser.add_argument("--splits", type=Path, help="splits.mat; images of one scene are all on one side of it")
    parser.add_argument("--classes", type=Path, help="a file with mapClass, such as classMapping40.mat")
    parser.add_argument("--fresh", action="store_true", help="the control: random weights instead of the student's")
    parser.add_argument("--frozen", action="store_true", help="train a linear classifier on the frozen maps alone")
    parser.add_argument("--height", type=int, default=240, help="of images and labels, in pixels (NYU-Depth V2)")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
