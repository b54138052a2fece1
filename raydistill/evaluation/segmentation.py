"""Semantic segmentation: the share of pixels that are named rightly, and a linear classifier on frozen maps."""

from __future__ import annotations

from raydistill.evaluation.linear import LinearProtocol, descend
from raydistill.lazy import F, Tensor, torch

IGNORE = -1
"""Label of pixels of which nothing is asked."""

PROBE = LinearProtocol(lr=0.1, epochs=40, batch_size=16, momentum=0.9, weight_decay=1e-4, standardise=True)
"""Of no paper: CRD does not say how its Table 5 was trained."""


def pixel_counts(predicted: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """Count how often pixels of each class are taken for each class.

    Args:
        predicted: integers [N, H, W] below ``num_classes``.
        labels: integers [N, H, W] below ``num_classes``, or ``IGNORE``.
        num_classes: C.

    Returns:
        Int64 [C, C] on the CPU: rows are true classes, columns predicted ones. Counts of several batches may be added.

    Raises:
        ValueError: where shapes differ or a class is out of range.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"a class for each pixel expected, got {list(predicted.shape)} for {list(labels.shape)}")
    asked = labels.cpu() != IGNORE
    true, said = labels.cpu()[asked].long(), predicted.cpu()[asked].long()
    for what, classes in (("labels", true), ("predicted", said)):
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            raise ValueError(f"{what} must lie in [0, {num_classes}), got [{int(classes.min())}, {int(classes.max())}]")
    return torch.bincount(true * num_classes + said, minlength=num_classes**2).view(num_classes, num_classes)


def pixel_accuracy(counts: Tensor) -> float:
    """Return the percentage of all pixels that are named rightly (CRD, Table 5: "Pix. Acc.").

    Args:
        counts: [C, C] from ``pixel_counts``.

    Raises:
        ValueError: where there is no pixel.
    """
    _check_counts(counts)
    return 100.0 * int(counts.diagonal().sum()) / int(counts.sum())


def mean_iou(counts: Tensor) -> float:
    """Return the mean over classes of intersection over union, in percent (CRD, Table 5: "mIoU").

    Of a class it is the pixels that are of it and named so, over those that are of it or named so. A class that neither
    is there nor is named anywhere has no such quotient and is left out.

    Args:
        counts: [C, C] from ``pixel_counts`` of all images together.

    Raises:
        ValueError: where there is no pixel.
    """
    _check_counts(counts)
    both = counts.diagonal().double()
    either = counts.sum(dim=0).double() + counts.sum(dim=1).double() - both
    known = either > 0
    return 100.0 * float((both[known] / either[known]).mean())


def pixel_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring scores [N, C, h, w] to the size of the labels, bilinearly -> [N, C, H, W]."""
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of scores [N, C, h, w], brought to the size of labels [N, H, W]; 0 where all are ``IGNORE``."""
    full = pixel_scores(scores.float(), (labels.shape[1], labels.shape[2]))
    asked = (labels != IGNORE).sum().clamp(min=1)
    return F.cross_entropy(full, labels, ignore_index=IGNORE, reduction="sum") / asked


def segmentation_probe(
    train_maps: Tensor,
    train_labels: Tensor,
    test_maps: Tensor,
    *,
    num_classes: int,
    seed: int,
    protocol: LinearProtocol = PROBE,
) -> Tensor:
    """Train one linear classifier of all positions of frozen maps and return its classes of the test images' pixels.

    It is a convolution of 1 x 1, which starts from zero; its scores are brought to the labels' size. The seed decides
    the order of images.

    Args:
        train_maps: [M, D, h, w].
        train_labels: integers [M, H, W] below ``num_classes``, or ``IGNORE``.
        test_maps: [N, D, h, w], on the device of the training maps.
        num_classes: how many classes can be named.
        seed: of the order, which is the same on all devices.
        protocol: of SGD; a batch is of images, and with ``standardise`` each of the D channels gets mean 0 and variance
            1. It has no ``l2_norm``.

    Returns:
        Int64 [N, H, W].

    Raises:
        ValueError: where shapes or labels do not make sense.
    """
    if train_maps.ndim != 4 or test_maps.shape[1:] != train_maps.shape[1:] or len(train_labels) != len(train_maps):
        shapes = ", ".join(str(list(each.shape)) for each in (train_maps, train_labels, test_maps))
        raise ValueError(f"maps [M, D, h, w], labels [M, H, W] and maps [N, D, h, w] expected, got {shapes}")
    if protocol.l2_norm:
        raise ValueError("a probe of pixels has no l2_norm")
    device = train_maps.device
    labels = train_labels.to(device, torch.int64)
    if int(labels.max()) >= num_classes or int(labels.min()) < IGNORE:
        raise ValueError(f"train_labels must lie in [0, {num_classes}) or be {IGNORE}, one is {int(labels.max())}")
    mean, scale = _moments(train_maps) if protocol.standardise else (0.0, 1.0)
    weight = torch.zeros(num_classes, train_maps.shape[1], 1, 1, device=device, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, requires_grad=True)

    def scores_of(maps: Tensor) -> Tensor:
        return F.conv2d((maps.float() - mean) * scale, weight, bias)

    def loss_of(rows: Tensor) -> Tensor:
        return pixel_loss(scores_of(train_maps[rows]), labels[rows])

    descend([weight, bias], loss_of, len(train_maps), protocol=protocol, seed=seed)
    size = (labels.shape[1], labels.shape[2])
    with torch.no_grad():
        found = [
            pixel_scores(scores_of(maps), size).argmax(dim=1) for maps in torch.split(test_maps, protocol.batch_size)
        ]
    return torch.cat(found)


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation of each channel, [1, D, 1, 1]."""
    variance, mean = torch.var_mean(maps.float(), dim=(0, 2, 3), correction=0, keepdim=True)
    return mean, (variance + 1e-5).rsqrt()


def _check_counts(counts: Tensor) -> None:
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"counts [C, C] expected, got {list(counts.shape)}")
    if not int(counts.sum()):
        raise ValueError("there is no pixel to be named, so nothing can be judged")
