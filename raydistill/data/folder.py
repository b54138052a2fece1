"""Folders of encoded images: a folder for each class, none at all, or the layouts of Tiny ImageNet and Places365."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.data import places
from raydistill.data.image_set import ImageSet, Split
from raydistill.data.layout import ENDINGS, classes_in, entries, images_below, layout_advice
from raydistill.data.listed import open_files, read_lines
from raydistill.data.modalities import check_pairs, pair_name
from raydistill.errors import DataError
from raydistill.lazy import torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig

_SPLITS: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}
_NESTED: Mapping[str, str] = {"tiny_imagenet": "tiny-imagenet-200", "places365": "places365_standard"}
_Labelled = tuple[Path, int | None]


def read(config: DataConfig, split: Split) -> ImageSet:
    """Read a folder of images; an id is a hash of the path below the root, so new files leave old ids alone.

    Of images with partners in another folder it is a hash of what both paths have in common.

    Raises:
        DataError: a folder is missing or empty, classes of train and test differ, images are damaged or training
            images lack their partners.
    """
    root = _root(config)
    files, num_classes = _list_images(config, root, split)
    partners = _partners_root(config)
    if partners is not None and split == "train":
        other_files, _ = _list_plain(partners, split)
        check_pairs(root, (path for path, _ in files), partners, (path for path, _ in other_files))
    return _load(config, split, root, files, num_classes)


def has_test_images(config: DataConfig) -> bool:
    """Whether there are test images, of which one of two paired folders may have none."""
    return _partners_root(config) is None or any(Path(str(config.root), name).is_dir() for name in _SPLITS["test"])


def class_names(config: DataConfig) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers: those of the training folder's folders; none elsewhere."""
    if config.known.reader != __name__:
        return ()
    root = _root(config)
    return tuple(classes_in(root / "train")) if (root / "train").is_dir() else ()


def _load(config: DataConfig, split: Split, root: Path, files: Sequence[_Labelled], num_classes: int) -> ImageSet:
    paired = _partners_root(config) is not None
    names = [pair_name(path, root) if paired else path.relative_to(root).as_posix() for path, _ in files]
    labels = torch.tensor([label for _, label in files], dtype=torch.int64) if num_classes else None
    return open_files(config, split, names, [path for path, _ in files], labels=labels, num_classes=num_classes)


def _root(config: DataConfig) -> Path:
    """The folder that holds the splits' folders."""
    root = Path(str(config.root))
    nested = root / _NESTED.get(config.name, "")
    return nested if nested.is_dir() else root


def _list_images(config: DataConfig, root: Path, split: Split) -> tuple[Sequence[_Labelled], int]:
    """Images with their labels, and the number of classes."""
    if config.name == "tiny_imagenet":
        return _list_tiny(root, split)
    if config.name == "places365" and not (root / "train").is_dir():
        return places.list_images(root, split), places.CLASSES
    return _list_plain(root, split)


def _list_plain(root: Path, split: Split) -> tuple[list[_Labelled], int]:
    """Images below the split's folder with their labels, and the number of the training folder's classes."""
    folder = _split_folder(root, split)
    classes = classes_in(_split_folder(root, "train"))
    found = classes_in(folder)
    if found != classes:
        missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise DataError(
            f"{folder}: classes are not those of the training images: missing {missing or 'none'}, "
            f"unknown {extra or 'none'}; both need a folder for each class"
        )
    direct = [path for path in entries(folder) if path.is_file() and path.suffix.lower() in ENDINGS]
    if classes and direct:
        raise DataError(f"{direct[0]}: an image beside class folders; move it into one of them")
    if not classes:
        return _not_empty([(path, None) for path in direct], folder), 0
    files: list[_Labelled] = []
    for label, name in enumerate(classes):
        images = images_below(folder / name)
        if not images:
            raise DataError(f"{folder / name}: a class without an image; fill it or remove it")
        files += [(path, label) for path in images]
    return files, len(classes)


def _list_tiny(root: Path, split: Split) -> tuple[list[_Labelled], int]:
    classes = classes_in(_split_folder(root, "train"))
    labels = {name: label for label, name in enumerate(classes)}
    if split == "train":
        files: list[_Labelled] = [
            (path, label) for name, label in labels.items() for path in images_below(root / "train" / name / "images")
        ]
        return _not_empty(files, root / "train"), len(classes)
    annotations = root / "val" / "val_annotations.txt"
    files = []
    for number, line in enumerate(read_lines(annotations), start=1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in labels or Path(fields[0]).name != fields[0]:
            raise DataError(f"{annotations}:{number}: expected a file name and a class of the training images")
        files.append((root / "val" / "images" / fields[0], labels[fields[1]]))
    return _not_empty(sorted(files), annotations), len(classes)


def _partners_root(config: DataConfig) -> Path | None:
    root = config.modalities and config.modalities.teacher_root
    return Path(root) if root else None


def _split_folder(root: Path, split: Split) -> Path:
    names = _SPLITS[split]
    for name in names:
        if (root / name).is_dir():
            return root / name
    missing = f"no folder {' or '.join(names)} there" if root.is_dir() else "no such folder"
    raise DataError(f"{root}: {missing}; {layout_advice(root)}")


def _not_empty(files: list[_Labelled], where: Path) -> list[_Labelled]:
    if not files:
        raise DataError(f"{where}: no image in it (endings are {', '.join(sorted(ENDINGS))})")
    return files
