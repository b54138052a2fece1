"""What an experiment says about its images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from raydistill.data.augment_config import AugmentConfig
from raydistill.data.names import DATA_SETS, MODALITIES, KnownSet
from raydistill.errors import did_you_mean
from raydistill.section import PathText, Section, Share

# Fields that mean something to some data sets only; elsewhere any value but the default is a mistake to be told.
_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "image_size": tuple(name for name, known in DATA_SETS.items() if known.decodes),
    "image_column": ("parquet",),
    "label_column": ("parquet",),
    "id_column": ("parquet",),
    "spool": ("parquet",),
    "download": tuple(name for name, known in DATA_SETS.items() if known.can_download),
    "synthetic_size": ("synthetic",),
    "synthetic_classes": ("synthetic",),
    "synthetic_image_size": ("synthetic",),
    "synthetic_channels": ("synthetic",),
    "num_classes": ("image_folder", "parquet", "voc07"),
}

_DECODED_CHANNELS = 3  # of encoded images, whatever colours their files have


ModalityName = Literal["rgb", "luminance", "chrominance", "grey"]


class ModalitiesConfig(Section):
    """What student and teacher see of a pair: parts of one colour image, or images of two folders.

    ``luminance`` is L and ``chrominance`` are a and b of CIE Lab; ``grey`` is the one channel of files without colour,
    such as depth maps. With ``teacher_root`` the teacher's images lie in a folder of their own, laid out as ``root``,
    and an image's partner is the one of the same path but for the ending. The student's mean and std are those of
    ``data``.
    """

    student: ModalityName = Field(default="rgb", description="what the student sees")
    teacher: ModalityName = Field(default="rgb", description="what the teacher sees")
    teacher_root: PathText | None = Field(default=None, min_length=1, description="folder of the teacher's images")
    teacher_mean: tuple[float, ...] | None = Field(default=None, description="as data.mean, of the teacher's images")
    teacher_std: tuple[float, ...] | None = Field(default=None, description="as data.std, of the teacher's images")


class DataConfig(Section):
    """A data set by name, how much of it is used, and how its images are changed."""

    name: str = Field(description="one of the known data sets")
    root: PathText | None = Field(default=None, description="folder (or Parquet file) that holds the data set")
    download: bool = Field(default=False, description="fetch missing files into root")
    subset: int | None = Field(default=None, gt=0, description="number of training images kept, chosen by split_seed")
    validation: float = Field(
        default=0.1, gt=0.0, lt=1.0, description="share of the training images kept for validation"
    )
    split_seed: int = Field(default=0, ge=0, description="decides the subset and the validation images")
    image_size: int | None = Field(
        default=64,
        gt=0,
        le=4096,
        description="shorter side is scaled to it, then the centre is cut; null keeps equal sizes",
    )
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    reading: Literal["auto", "resident", "stream"] = Field(
        default="auto",
        description="pixels of encoded images in memory, or decoded when they are asked for; auto keeps in memory what "
        "takes no more than a quarter of it",
    )
    spool: PathText | None = Field(
        default=None,
        min_length=1,
        description="folder for a copy of the images in Parquet files that are decoded when they are asked for: any of "
        "them is then one read, not that of its whole row group; it takes their space once more",
    )
    on_error: Literal["stop", "skip"] = Field(
        default="stop", description="what to do with an image that can't be decoded"
    )
    max_errors: Share = Field(
        default=0.01, description="share of skipped images above which reading stops all the same"
    )
    image_column: str = Field(default="image", min_length=1, description="bytes, {bytes, path} or path")
    label_column: str | None = Field(
        default=None, description="whole numbers or names; null takes 'label' where there is one"
    )
    id_column: str | None = Field(
        default=None, description="whole numbers or names, unique; null takes the row's number"
    )
    mean: tuple[float, ...] | None = Field(
        default=None, description="mean of each channel in [0, 1], if not the data set's"
    )
    std: tuple[float, ...] | None = Field(default=None, description="deviation of each channel, if not the data set's")
    num_classes: int | None = Field(
        default=None, gt=0, description="width of all logits where images have no labels, such as the teacher's"
    )
    modalities: ModalitiesConfig | None = Field(
        default=None, description="what student and teacher see, where it is not the same"
    )
    synthetic_size: int = Field(default=2000, gt=1, description="number of training images of the synthetic set")
    synthetic_classes: int = Field(default=10, gt=0)
    synthetic_image_size: int = Field(default=32, gt=1, le=1024)
    synthetic_channels: Literal[1, 3] = 3

    @property
    def known(self) -> KnownSet:
        """The entry of the table of names."""
        return DATA_SETS[self.name]

    @property
    def channels(self) -> int:
        """Channels of the images that the student sees."""
        if self.modalities is not None:
            return MODALITIES[self.modalities.student].channels
        if self.name == "synthetic":
            return self.synthetic_channels
        return self.known.shape[0] if self.known.shape is not None else _DECODED_CHANNELS

    @property
    def side(self) -> int | None:
        """Height of all images; None where only the files tell."""
        if self.name == "synthetic":
            return self.synthetic_image_size
        return self.known.shape[1] if self.known.shape is not None else self.image_size

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of what the student sees; one number where it is that of all channels."""
        known = self.known if self.modalities is None else MODALITIES[self.modalities.student]
        return self.mean or known.mean or self.known.mean, self.std or known.std or self.known.std

    @property
    def of_teacher(self) -> DataConfig:
        """The section with both sides exchanged: its images are those that the teacher sees."""
        sides = self.modalities
        if sides is None:
            return self
        exchanged = ModalitiesConfig(
            student=sides.teacher,
            teacher=sides.student,
            teacher_root=self.root if sides.teacher_root else None,
            teacher_mean=self.mean,
            teacher_std=self.std,
        )
        own = {"root": sides.teacher_root or self.root, "mean": sides.teacher_mean, "std": sides.teacher_std}
        return self.model_copy(update={**own, "modalities": exchanged})

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if value not in DATA_SETS:
            near = did_you_mean(value, DATA_SETS)
            raise ValueError(f"unknown data set '{value}'{near}; known are {', '.join(DATA_SETS)}")
        return value

    @model_validator(mode="after")
    def _check_fields(self) -> DataConfig:
        wrong = [
            *self._missing(),
            *self._misplaced(),
            *self._wrong_modalities(),
            *self._wrong_normalisation(),
            *self._colourless(),
            *self._unmixable(),
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _missing(self) -> list[str]:
        if self.known.needs_root and not self.root:
            return [f"root: the data set '{self.name}' needs the folder that holds it"]
        return []

    def _misplaced(self) -> list[str]:
        fields = type(self).model_fields
        wrong = [
            f"{field}: the data set '{self.name}' does not take it, only {', '.join(names)}"
            for field, names in _ONLY_FOR.items()
            if self.name not in names and getattr(self, field) != fields[field].default
        ]
        if self.reading == "stream" and not self.known.decodes:
            names = ", ".join(name for name, known in DATA_SETS.items() if known.decodes)
            wrong.append(f"reading: 'stream' is for encoded images ({names}), and those of '{self.name}' are not")
        return wrong

    def _wrong_modalities(self) -> list[str]:
        sides = self.modalities
        if sides is None:
            return []
        if self.known.grey or (self.name == "synthetic" and self.synthetic_channels == 1):
            return [f"modalities: made of colour images, but those of the data set '{self.name}' are grey"]
        wrong = []
        if sides.teacher_root and self.name != "image_folder":
            wrong.append(f"modalities.teacher_root: the data set '{self.name}' does not take it, only image_folder")
        if "grey" in (sides.student, sides.teacher) and self.name not in ("image_folder", "parquet"):
            wrong.append(f"modalities: 'grey' is for folders and files of grey images; of '{self.name}' take luminance")
        return wrong

    def _colourless(self) -> list[str]:
        """Return what asks for colours that the images of a side do not have."""
        sides = self.modalities
        if sides is not None:
            found = [f"modality '{name}'" for name in (sides.student, sides.teacher) if MODALITIES[name].channels != 3]
        else:
            grey = self.known.grey or (self.name == "synthetic" and self.synthetic_channels == 1)
            found = [f"data set '{self.name}'"] if grey else []
        fields = self.augment.needs_colour if found else ()
        return [f"augment.{field}: needs colours, which images of the {found[0]} lack; set it to 0" for field in fields]

    def _unmixable(self) -> list[str]:
        """Return what would let both sides draw partners among different images."""
        if self.augment.mixing is None or self.modalities is None or not self.modalities.teacher_root:
            return []
        if self.on_error == "stop":
            return []
        return [
            f"augment.{self.augment.mixing}: draws partners among images that both sides can read, so with "
            "modalities.teacher_root on_error must be 'stop'"
        ]

    def _wrong_normalisation(self) -> list[str]:
        wrong = _wrong_moments("", self.mean, self.std)
        if self.modalities is not None:
            sides = self.modalities
            wrong += _wrong_moments("modalities.teacher_", sides.teacher_mean, sides.teacher_std)
            wrong += _wrong_channels("mean", self.mean, sides.student)
            wrong += _wrong_channels("modalities.teacher_mean", sides.teacher_mean, sides.teacher)
        return wrong


def _wrong_moments(prefix: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> list[str]:
    names = f"{prefix}mean and {prefix}std"
    wrong = []
    if (mean is None) != (std is None):
        wrong.append(f"{names}: give both or neither")
    elif mean is not None and std is not None and len(mean) != len(std):
        wrong.append(f"{names}: {len(mean)} and {len(std)} channels are not alike")
    if std is not None and min(std, default=0.0) <= 0.0:
        wrong.append(f"{prefix}std: every channel's deviation must be above 0")
    return wrong


def _wrong_channels(field: str, mean: tuple[float, ...] | None, modality: str) -> list[str]:
    channels = MODALITIES[modality].channels
    if mean is None or len(mean) in (1, channels):
        return []
    return [f"{field}: {len(mean)} channels, but {modality} has {channels}"]
