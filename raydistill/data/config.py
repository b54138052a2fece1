"""What an experiment says about its images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from raydistill.data.names import DATA_SETS, MODALITIES, KnownSet
from raydistill.errors import did_you_mean
from raydistill.files import possible_path

_Path = Annotated[str, AfterValidator(possible_path)]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]

# Fields that mean something to some data sets only. Elsewhere any value but the default is a mistake to be
# told.
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

# Operations that the first caches did not know.
_LATER = ("randaugment", "color_jitter", "grayscale", "blur", "solarize", "mixup", "cutmix")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ColorJitterConfig(_Section):
    """Random brightness, contrast, saturation and hue, in an order drawn for each view.

    A factor is drawn from [max(0, 1 - strength), 1 + strength], the turn of the hue from [-strength, strength] of a
    whole circle. Saturation and hue need colour images.
    """

    brightness: float = Field(default=0.0, ge=0.0, description="strength of the blend with black")
    contrast: float = Field(default=0.0, ge=0.0, description="strength of the blend with the mean grey")
    saturation: float = Field(default=0.0, ge=0.0, description="strength of the blend with the grey image")
    hue: float = Field(default=0.0, ge=0.0, le=0.5, description="largest turn, as a share of the circle of hues")
    probability: _Share = Field(default=1.0, description="that a view is jittered at all")

    @model_validator(mode="after")
    def _check_strengths(self) -> ColorJitterConfig:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("set at least one of brightness, contrast, saturation and hue above 0, or leave it out")
        return self


class BlurConfig(_Section):
    """Random Gaussian blur; borders are mirrored."""

    probability: _Share = Field(default=0.5, description="that a view is blurred")
    sigma: tuple[float, float] = Field(default=(0.1, 2.0), description="smallest and largest deviation in pixels")

    @field_validator("sigma")
    @classmethod
    def _check_sigma(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 < value[0] <= value[1] <= 100.0:
            raise ValueError(f"sigma takes two deviations in pixels with 0 < low <= high <= 100, not {list(value)}")
        return value


class RandAugmentConfig(_Section):
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719): ``operations`` of one strength, drawn with replacement.

    Of 15: identity, auto_contrast, equalize, invert, posterize, solarize, brightness, color, contrast, sharpness,
    rotate, shear_x, shear_y, translate_x, translate_y. Those with a direction take it at random.
    """

    operations: int = Field(default=2, ge=1, le=16, description="how many operations a view goes through")
    magnitude: int = Field(default=9, ge=0, le=30, description="strength of all of them")


_Alpha = Annotated[float, Field(ge=0.01, le=100.0)]
_Probability = Annotated[float, Field(gt=0.0, le=1.0)]


class MixupConfig(_Section):
    """Mixup (Zhang et al. 2018, arXiv:1710.09412): a view becomes lambda times itself plus 1 - lambda times another's.

    The partner is another training image. Partner and lambda follow from the sample and its view, not from the batch,
    so a cached teacher saw the same mixed pixels.
    """

    alpha: _Alpha = Field(default=0.8, description="lambda is drawn from Beta(alpha, alpha)")
    probability: _Probability = Field(default=0.5, description="that a view is mixed in this way")


class CutMixConfig(_Section):
    """CutMix (Yun et al. 2019, arXiv:1905.04899): a box of a view, 1 - lambda of its area, shows another's pixels.

    Partner, box and lambda are drawn as for mixup. The box is cut off at the edges, and lambda counts what is left.
    """

    alpha: _Alpha = Field(default=1.0, description="lambda is drawn from Beta(alpha, alpha)")
    probability: _Probability = Field(default=0.5, description="that a view is mixed in this way")


class AugmentConfig(_Section):
    """Random changes of training images; view 0 of an image never has any.

    In this order: crop and flip, RandAugment, colour jitter, grayscale, blur, solarize, cutout, then mixup or CutMix
    with a partner that went through the same operations by draws of its own.
    """

    crop: int = Field(
        default=0, ge=0, description="pixels of black padding before a random crop back to the image's size"
    )
    flip: float = Field(default=0.0, ge=0.0, le=1.0, description="probability of a horizontal flip")
    resized_crop: tuple[float, float] | None = Field(
        default=None,
        description="smallest and largest share of the area of a random crop scaled to the image's size",
    )
    cutout: int = Field(default=0, ge=0, description="side in pixels of a square set to the mean colour")
    randaugment: RandAugmentConfig | None = Field(default=None, description="random operations of one strength")
    color_jitter: ColorJitterConfig | None = Field(default=None, description="random colours")
    grayscale: float = Field(default=0.0, ge=0.0, le=1.0, description="probability that a colour image turns grey")
    blur: BlurConfig | None = Field(default=None, description="random Gaussian blur")
    solarize: float = Field(default=0.0, ge=0.0, le=1.0, description="probability that levels from 128 up are inverted")
    mixup: MixupConfig | None = Field(default=None, description="blends with other training images")
    cutmix: CutMixConfig | None = Field(default=None, description="boxes out of other training images")

    @property
    def mixing(self) -> str | None:
        """The first field that mixes views with those of other images, if any does."""
        return next((name for name in ("mixup", "cutmix") if getattr(self, name) is not None), None)

    @property
    def changes(self) -> bool:
        """Whether any operation on an image by itself is switched on."""
        return bool(self.crop or self.flip or self.resized_crop or self.cutout or self.changes_colours)

    @property
    def changes_colours(self) -> bool:
        """Whether any operation beside crop, flip and cutout is switched on."""
        return bool(self.randaugment or self.color_jitter or self.grayscale or self.blur or self.solarize)

    @property
    def operations(self) -> dict[str, Any]:
        """Plain values that decide the pixels, as a cache's manifest records them.

        Fields that came later appear only where they are switched on, so caches built before still have the same key.
        """
        fields = type(self).model_fields
        off = {name for name in _LATER if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=off)

    @property
    def needs_colour(self) -> tuple[str, ...]:
        """The switched on fields that only images of three channels can go through."""
        jitter = self.color_jitter
        found = {
            "color_jitter.saturation": jitter and jitter.saturation,
            "color_jitter.hue": jitter and jitter.hue,
            "grayscale": self.grayscale,
        }
        return tuple(name for name, value in found.items() if value)

    @field_validator("resized_crop")
    @classmethod
    def _check_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0.0 < value[0] <= value[1] <= 1.0:
            raise ValueError(f"resized_crop takes two shares of the area with 0 < low <= high <= 1, not {list(value)}")
        return value

    @model_validator(mode="after")
    def _check_crops(self) -> AugmentConfig:
        if self.crop and self.resized_crop is not None:
            raise ValueError("crop and resized_crop exclude each other: set one of them")
        return self

    @model_validator(mode="after")
    def _check_probabilities(self) -> AugmentConfig:
        if self.mixup is not None and self.cutmix is not None:
            total = self.mixup.probability + self.cutmix.probability
            if total > 1.0 + 1e-9:
                raise ValueError(
                    f"mixup.probability and cutmix.probability are {total:g} together, but a view is mixed in one way: "
                    "they must not exceed 1"
                )
        return self


ModalityName = Literal["rgb", "luminance", "chrominance", "grey"]


class ModalitiesConfig(_Section):
    """What student and teacher see of a pair: parts of one colour image, or images of two folders.

    ``luminance`` is L and ``chrominance`` are a and b of CIE Lab; ``grey`` is the one channel of files without colour,
    such as depth maps. With ``teacher_root`` the teacher's images lie in a folder of their own, laid out as ``root``,
    and an image's partner is the one of the same path but for the ending. The student's mean and std are those of
    ``data``.
    """

    student: ModalityName = Field(default="rgb", description="what the student sees")
    teacher: ModalityName = Field(default="rgb", description="what the teacher sees")
    teacher_root: _Path | None = Field(default=None, min_length=1, description="folder of the teacher's images")
    teacher_mean: tuple[float, ...] | None = Field(default=None, description="as data.mean, of the teacher's images")
    teacher_std: tuple[float, ...] | None = Field(default=None, description="as data.std, of the teacher's images")


class DataConfig(_Section):
    """A data set by name, how much of it is used, and how its images are changed."""

    name: str = Field(description="one of the known data sets")
    root: _Path | None = Field(default=None, description="folder (or Parquet file) that holds the data set")
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
    spool: _Path | None = Field(
        default=None,
        min_length=1,
        description="folder for a copy of the images in Parquet files that are decoded when they are asked for: any of "
        "them is then one read, not that of its whole row group; it takes their space once more",
    )
    on_error: Literal["stop", "skip"] = Field(
        default="stop", description="what to do with an image that can't be decoded"
    )
    max_errors: _Share = Field(
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
