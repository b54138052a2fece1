"""Places365 as lists of paths and classes beside folders of images (Zhou et al. 2018, Places, the devkit's layout)."""

from __future__ import annotations

from pathlib import Path

from raydistill.data.image_set import Split
from raydistill.data.listed import read_pairs
from raydistill.errors import DataError

CLASSES = 365
_SOURCE = (
    "the small images of MIT's page 'Places365: download', with easy directory structure or with the devkit's lists"
)
_LISTS = {"train": "places365_train_standard.txt", "test": "places365_val.txt"}
_FOLDERS = {
    "train": ("data_256", "data_256_standard", "data_large", "data_large_standard"),
    "test": ("val_256", "val_large"),
}


def list_images(root: Path, split: Split) -> list[tuple[Path, int]]:
    """Paths with their labels; the validation images are the test images, as nobody knows the labels of those.

    Raises:
        DataError: a list or the images' folder is missing, or a line cannot be understood.
    """
    if not (root / _LISTS["train"]).is_file():
        raise DataError(
            f"data set 'places365' at {root}: neither a folder train nor {_LISTS['train']} there or in its folder "
            f"places365_standard; unpack {_SOURCE}"
        )
    folder = next((root / name for name in _FOLDERS[split] if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(f"{root}: no folder {' or '.join(_FOLDERS[split])} there; unpack Places365's images into it")
    expected = f"a path and a class from 0 to {CLASSES - 1}"
    lines = read_pairs(root / _LISTS[split], expected, range(CLASSES))
    return [(folder / path.lstrip("/"), int(label)) for path, label in lines]
