"""Folders of encoded images: a folder for each class, no classes at all, or the layout of Tiny ImageNet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.data.encoded import Files
from raydistill.data.image_set import ImageSet, Split, choose_subset
from raydistill.data.modalities import check_pairs, pair_name
from raydistill.data.opening import open_images
from raydistill.errors import DataError
from raydistill.lazy import torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

_ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
_SPLITS: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}
_Labelled = tuple[Path, int | None]


def read(config: DataConfig, split: Split) -> ImageSet:
    """Read a folder of images; an id is a hash of the path below the root, so new files leave old ids alone.

    Of images with partners in another folder it is a hash of what both paths have in common.

    Raises:
        DataError: a folder is missing or empty, classes of train and test differ, images are damaged or training
            images lack their partners.
    """
    root = Path(str(config.root))
    if config.name == "tiny_imagenet":
        root = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
        files, classes = _list_tiny(root, split)
    else:
        files, classes = _list_plain(root, split)
    partners = _partners_root(config)
    if partners is not None and split == "train":
        other_files, _ = _list_plain(partners, split)
        check_pairs(root, (path for path, _ in files), partners, (path for path, _ in other_files))
    return _load(config, split, root, files, len(classes))


def has_test_images(config: DataConfig) -> bool:
    """Whether there are test images, of which one of two paired folders may have none."""
    return _partners_root(config) is None or any(Path(str(config.root), name).is_dir() for name in _SPLITS["test"])


def class_names(config: DataConfig) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers: those of the training folder's folders; none elsewhere."""
    if config.known.reader != __name__:
        return ()
    root = Path(str(config.root))
    nested = root / "tiny-imagenet-200"
    root = nested if config.name == "tiny_imagenet" and nested.is_dir() else root
    return tuple(_classes(root / "train")) if (root / "train").is_dir() else ()


def path_id(path: str) -> int:
    """A stable number of 63 bits for a path or another name."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") >> 1


def _load(config: DataConfig, split: Split, root: Path, files: Sequence[_Labelled], num_classes: int) -> ImageSet:
    paired = _partners_root(config) is not None
    names = [pair_name(path, root) if paired else path.relative_to(root).as_posix() for path, _ in files]
    ids = torch.tensor([path_id(name) for name in names], dtype=torch.int64)
    if split == "train":
        chosen = choose_subset(ids, config)
        ids, files = ids[chosen], [files[position] for position in chosen.tolist()]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64) if num_classes else None
    encoded = Files.of([path for path, _ in files])
    return open_images(config, encoded, ids, labels, num_classes=num_classes)


def _list_plain(root: Path, split: Split) -> tuple[list[_Labelled], list[str]]:
    """Images below the split's folder with their labels, and the classes of the training folder."""
    folder = _split_folder(root, split)
    classes = _classes(_split_folder(root, "train"))
    found = _classes(folder)
    if found != classes:
        missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise DataError(
            f"{folder}: classes are not those of the training images: missing {missing or 'none'}, "
            f"unknown {extra or 'none'}"
        )
    direct = [path for path in _entries(folder) if path.is_file() and path.suffix.lower() in _ENDINGS]
    if classes and direct:
        raise DataError(f"{direct[0]}: an image beside class folders; move it into one of them")
    if not classes:
        return _not_empty([(path, None) for path in direct], folder), []
    files: list[_Labelled] = []
    for label, name in enumerate(classes):
        images = _images_below(folder / name)
        if not images:
            raise DataError(f"{folder / name}: a class without an image")
        files += [(path, label) for path in images]
    return files, classes


def _list_tiny(root: Path, split: Split) -> tuple[list[_Labelled], list[str]]:
    classes = _classes(_split_folder(root, "train"))
    labels = {name: label for label, name in enumerate(classes)}
    if split == "train":
        files: list[_Labelled] = [
            (path, label) for name, label in labels.items() for path in _images_below(root / "train" / name / "images")
        ]
        return _not_empty(files, root / "train"), classes
    annotations = root / "val" / "val_annotations.txt"
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{annotations}: cannot be read ({error})") from error
    files = []
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in labels or Path(fields[0]).name != fields[0]:
            raise DataError(f"{annotations}:{number}: expected a file name and a class of the training images")
        files.append((root / "val" / "images" / fields[0], labels[fields[1]]))
    return _not_empty(sorted(files), annotations), classes


def _partners_root(config: DataConfig) -> Path | None:
    root = config.modalities and config.modalities.teacher_root
    return Path(root) if root else None


def _split_folder(root: Path, split: Split) -> Path:
    names = _SPLITS[split]
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root}: no folder {' or '.join(names)} there")


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _classes(folder: Path) -> list[str]:
    return [path.name for path in _entries(folder) if path.is_dir()]


def _images_below(folder: Path) -> list[Path]:
    found = []
    for parent, _, names in os.walk(folder):
        found += [Path(parent, name) for name in names if Path(name).suffix.lower() in _ENDINGS]
    return sorted(path for path in found if not path.name.startswith("."))


def _not_empty(files: list[_Labelled], where: Path) -> list[_Labelled]:
    if not files:
        raise DataError(f"{where}: no image in it (endings are {', '.join(sorted(_ENDINGS))})")
    return files
