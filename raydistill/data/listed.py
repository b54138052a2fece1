"""Sets whose images are files named in lists, as most data sets are published."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.data.encoded import Files
from raydistill.data.image_set import ImageSet, Split, choose_subset
from raydistill.data.opening import open_images
from raydistill.errors import DataError
from raydistill.lazy import Tensor, torch

if TYPE_CHECKING:
    from raydistill.data.config import DataConfig


def path_id(path: str) -> int:
    """A stable number of 63 bits for a path or another name."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") >> 1


def open_files(
    config: DataConfig,
    split: Split,
    names: Sequence[str],
    files: Sequence[Path],
    *,
    num_classes: int,
    labels: Tensor | None = None,
    targets: Tensor | None = None,
) -> ImageSet:
    """Make a set of ``files``, the training images' subset of them; an id is a hash of an image's name.

    Args:
        config: the section; of training images it chooses a subset, before any is decoded.
        split: which images these are.
        names: of the images, which do not change with the folder that they lie in.
        files: a path for each name.
        num_classes: of labels or targets.
        labels: int64 [N].
        targets: int8 [N, C], of images that show several classes each.

    Raises:
        DataError: as ``open_images``, or fewer images than the subset.
    """
    ids = torch.tensor([path_id(name) for name in names], dtype=torch.int64)
    if split == "train" and config.subset is not None:
        chosen = choose_subset(ids, config)
        ids, files = ids[chosen], [files[position] for position in chosen.tolist()]
        labels, targets = (None if values is None else values[chosen] for values in (labels, targets))
    encoded = Files.of(files)
    return open_images(config, encoded, ids, labels, targets=targets, num_classes=num_classes)


def folder_with(config: DataConfig, markers: Sequence[str], below: Sequence[str], source: str) -> Path:
    """Find a data set's folder, which holds one of the files ``markers``: the root, or one ``below`` it.

    Raises:
        DataError: there is none; it tells from which ``source`` the data set comes.
    """
    root = Path(str(config.root))
    for folder in (root, *(root / name for name in below)):
        if any((folder / marker).is_file() for marker in markers):
            return folder
    raise DataError(
        f"data set '{config.name}' at {root}: no {' or '.join(markers)} there or in its folder {' or '.join(below)}; "
        f"unpack {source}"
    )


def read_lines(path: Path) -> list[str]:
    """Lines of a text file in UTF-8. Raises ``DataError`` where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def read_pairs(path: Path, expected: str, second: range | None = None) -> Iterator[tuple[str, str]]:
    """Lines of two words each; the second is a number in ``second`` where that is given.

    Raises:
        DataError: the file cannot be read, or a line is not what is ``expected``.
    """
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if len(words) != 2 or (second is not None and not _is_in(words[1], second)):
            raise DataError(f"{path}:{number}: expected {expected}, found '{line}'")
        yield words[0], words[1]


def _is_in(word: str, numbers: range) -> bool:
    try:
        return int(word) in numbers
    except ValueError:
        return False
