"""Depth and colour images of NYU-Depth V2's training part as two folders, from which a student can be distilled.

    python experiments/downstream/nyu_folders.py nyu_depth_v2_labeled.mat --splits splits.mat --out data/nyu

    data: {name: image_folder, root: data/nyu/depth, image_size: 224, num_classes: 1000,
           modalities: {student: grey, teacher: rgb, teacher_root: data/nyu/rgb}}

in an experiment's file is CRD's transfer from RGB to depth (section 4.2): the teacher sees colours, the student the
depth of the same scene. There are no labels, so `ce` has no place among the methods. Written for the official files;
tested with small ones of their layout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nyu import SIDES, read_splits, scenes
from torchvision.transforms.functional import to_pil_image

from raydistill.errors import RaydistillError
from raydistill.files import make_folders


def main() -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="nyu_depth_v2_labeled.mat")
    parser.add_argument("--splits", type=Path, required=True, help="splits.mat")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        count = write(given.file, given.splits, given.out)
    except RaydistillError as error:
        print(f"nyu_folders: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{count} pairs in {given.out}")


def write(file: Path, splits: Path, out: Path) -> int:
    """Write a PNG for each side of each training image and return their number."""
    train, _ = read_splits(splits)
    for side in SIDES:
        folder = out / side / "train"
        make_folders(folder)
        for position, (pixels, _) in zip(train, scenes(file, train, side), strict=True):
            to_pil_image(pixels).save(folder / f"{position + 1:04d}.png")
    return len(train)


if __name__ == "__main__":
    main()
