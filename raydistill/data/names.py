"""The data sets and modalities known by name, and what can be said of them without reading a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class KnownSet:
    """One named data set.

    ``shape`` is (C, H, W) and ``num_classes`` the number of labels; both are ``None`` where only the files or
    the configuration tell. ``mean`` and ``std`` are those of the training pixels in [0, 1]. ``decodes`` marks
    sets that are made of single encoded images, whose size is a choice and of which some may be damaged.
    """

    reader: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    needs_root: bool = True
    can_download: bool = False
    decodes: bool = False

    @property
    def grey(self) -> bool:
        """Whether the images are known to have a single channel."""
        return self.shape is not None and self.shape[0] == 1


@dataclass(frozen=True)
class Modality:
    """What is made of a colour image: its number of channels, and ``mean`` and ``std`` if not those of the data set."""

    channels: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


# Fixed moments, as measured ones would change with the subset, and a trained teacher with them. Luminance takes the
# whole range; chrominance lies around grey, in photographs mostly within 15 units (0.06 of 255) of it.
MODALITIES: Mapping[str, Modality] = MappingProxyType(
    {
        "rgb": Modality(3),
        "luminance": Modality(1, (0.5,), (0.25,)),
        "chrominance": Modality(2, (128 / 255,) * 2, (0.06,) * 2),
        "grey": Modality(1, (0.5,), (0.25,)),
    }
)

DATA_SETS: Mapping[str, KnownSet] = MappingProxyType(
    {
        "cars196": KnownSet("raydistill.data.cars", _IMAGENET_MEAN, _IMAGENET_STD, num_classes=196, decodes=True),
        "cifar10": KnownSet(
            "raydistill.data.binary",
            (0.4914, 0.4822, 0.4465),
            (0.2470, 0.2435, 0.2616),
            shape=(3, 32, 32),
            num_classes=10,
            can_download=True,
        ),
        "cifar100": KnownSet(
            "raydistill.data.binary",
            (0.5071, 0.4865, 0.4409),
            (0.2673, 0.2564, 0.2762),
            shape=(3, 32, 32),
            num_classes=100,
            can_download=True,
        ),
        "cub200": KnownSet("raydistill.data.cub", _IMAGENET_MEAN, _IMAGENET_STD, num_classes=200, decodes=True),
        "digits": KnownSet(
            "raydistill.data.embedded",
            (0.3053,),
            (0.3760,),
            shape=(1, 8, 8),
            num_classes=10,
            needs_root=False,
        ),
        "fashion_mnist": KnownSet(
            "raydistill.data.idx", (0.2860,), (0.3530,), shape=(1, 28, 28), num_classes=10, can_download=True
        ),
        "image_folder": KnownSet("raydistill.data.folder", _IMAGENET_MEAN, _IMAGENET_STD, decodes=True),
        "mnist": KnownSet(
            "raydistill.data.idx", (0.1307,), (0.3081,), shape=(1, 28, 28), num_classes=10, can_download=True
        ),
        "parquet": KnownSet("raydistill.data.tabular", _IMAGENET_MEAN, _IMAGENET_STD, decodes=True),
        "places365": KnownSet("raydistill.data.folder", _IMAGENET_MEAN, _IMAGENET_STD, num_classes=365, decodes=True),
        "stl10": KnownSet(
            "raydistill.data.binary",
            (0.4467, 0.4398, 0.4066),
            (0.2603, 0.2566, 0.2713),
            shape=(3, 96, 96),
            num_classes=10,
            can_download=True,
        ),
        "synthetic": KnownSet("raydistill.data.embedded", (0.5,), (0.25,), needs_root=False),
        "tiny_imagenet": KnownSet(
            "raydistill.data.folder",
            (0.4802, 0.4481, 0.3975),
            (0.2770, 0.2691, 0.2821),
            num_classes=200,
            decodes=True,
        ),
        "voc07": KnownSet("raydistill.data.voc", _IMAGENET_MEAN, _IMAGENET_STD, num_classes=20, decodes=True),
    }
)
