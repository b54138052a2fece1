"""Average precision of a detector, by the rules of COCO."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from raydistill.errors import ConfigError
from raydistill.lazy import Tensor

Boxes = Mapping[str, Tensor]
"""``boxes`` [N, 4] as left, top, right and bottom in pixels, ``labels`` [N]; ``scores`` or ``ignored`` [N] beside."""


def average_precisions(truth: Sequence[Boxes], found: Sequence[Boxes]) -> dict[str, float]:
    """Return ``ap``, ``ap50`` and ``ap75`` in percent, as CoCoRD's Table 8 has them.

    Computed by pycocotools (Lin et al. 2014, https://arxiv.org/abs/1405.0312): the precision at 101 recalls, averaged
    over them and the classes that are there; ``ap`` is the mean over the overlaps 0.5, 0.55, ..., 0.95. The 100 boxes
    of highest score count for an image. VOC2007's own rule has 11 recalls.

    Args:
        truth: of each image what is there; of boxes with ``ignored`` (bool, may be left out) nothing is asked, and what
            is found in their place is not counted: crowds of COCO, difficult objects of VOC.
        found: of each image what a detector says, with ``scores``.

    Raises:
        ValueError: where the numbers of images differ, or no box is to be found.
        ConfigError: where pycocotools is not installed.
    """
    if len(truth) != len(found):
        raise ValueError(f"as many images as truths expected, got {len(found)} and {len(truth)}")
    coco, evaluation = _pycocotools()
    known, said = _annotations(truth), _annotations(found)
    if all(each["iscrowd"] for each in known):
        raise ValueError("there is no box to be found, so nothing can be judged")
    with contextlib.redirect_stdout(io.StringIO()):
        judged = evaluation(_indexed(coco, known, len(truth)), _indexed(coco, said, len(truth)), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {name: 100.0 * float(value) for name, value in zip(("ap", "ap50", "ap75"), judged.stats[:3], strict=True)}


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigError("average precision needs pycocotools: pip install 'raydistill[downstream]'") from error
    return COCO, COCOeval


def _indexed(coco: Any, annotations: list[dict[str, Any]], count: int) -> Any:
    holder = coco()
    categories = sorted({each["category_id"] for each in annotations})
    holder.dataset = {
        "images": [{"id": number} for number in range(count)],
        "categories": [{"id": category} for category in categories],
        "annotations": annotations,
    }
    holder.createIndex()
    return holder


def _annotations(images: Sequence[Boxes]) -> list[dict[str, Any]]:
    """Return COCO's records of all boxes; their numbers begin with 1, as 0 means none there."""
    records: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        labels = image["labels"].tolist()
        scores = image["scores"].tolist() if "scores" in image else [0.0] * len(labels)
        ignored = image["ignored"].tolist() if "ignored" in image else [False] * len(labels)
        for (left, top, right, bottom), label, score, crowd in zip(
            image["boxes"].tolist(), labels, scores, ignored, strict=True
        ):
            width, height = right - left, bottom - top
            records.append(
                {
                    "id": len(records) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": int(crowd),
                    "score": score,
                }
            )
    return records
