"""What lies in a folder of images, as far as names tell."""

from __future__ import annotations

import os
from pathlib import Path

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
_SHOWN = 3


def entries(folder: Path) -> list[Path]:
    """All that is not hidden, sorted."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def classes_in(folder: Path) -> list[str]:
    """Names of the folders in it, sorted."""
    return [path.name for path in entries(folder) if path.is_dir()]


def images_below(folder: Path) -> list[Path]:
    """Images in it and in its folders, sorted."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [Path(parent, name) for name in names if Path(name).suffix.lower() in ENDINGS]
    return sorted(path for path in found if not path.name.startswith("."))


def layout_advice(root: Path) -> str:
    """Say where images are to lie below ``root``, and what to move where class folders lie there without a split."""
    classes = classes_in(root) if root.is_dir() and not (root / "train").is_dir() else []
    if not classes or not images_below(root / classes[0]):
        return "images lie in train and test, those with labels in a folder for each class"
    shown = ", ".join([*classes[:_SHOWN], *(["..."] if len(classes) > _SHOWN else [])])
    return (
        f"move its folders ({shown}) into {root / 'train'}, then about a fifth of each one's images into "
        f"{root / 'test' / classes[0]} and so on"
    )
