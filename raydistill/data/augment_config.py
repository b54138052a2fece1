"""What an experiment says about random changes of its training images."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from raydistill.section import Section, Share

# Operations that the first caches did not know.
_LATER = ("randaugment", "color_jitter", "grayscale", "blur", "solarize", "mixup", "cutmix")


class ColorJitterConfig(Section):
    """Random brightness, contrast, saturation and hue, in an order drawn for each view.

    A factor is drawn from [max(0, 1 - strength), 1 + strength], the turn of the hue from [-strength, strength] of a
    whole circle. Saturation and hue need colour images.
    """

    brightness: float = Field(default=0.0, ge=0.0, description="strength of the blend with black")
    contrast: float = Field(default=0.0, ge=0.0, description="strength of the blend with the mean grey")
    saturation: float = Field(default=0.0, ge=0.0, description="strength of the blend with the grey image")
    hue: float = Field(default=0.0, ge=0.0, le=0.5, description="largest turn, as a share of the circle of hues")
    probability: Share = Field(default=1.0, description="that a view is jittered at all")

    @model_validator(mode="after")
    def _check_strengths(self) -> ColorJitterConfig:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("set at least one of brightness, contrast, saturation and hue above 0, or leave it out")
        return self


class BlurConfig(Section):
    """Random Gaussian blur; borders are mirrored."""

    probability: Share = Field(default=0.5, description="that a view is blurred")
    sigma: tuple[float, float] = Field(default=(0.1, 2.0), description="smallest and largest deviation in pixels")

    @field_validator("sigma")
    @classmethod
    def _check_sigma(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 < value[0] <= value[1] <= 100.0:
            raise ValueError(f"sigma takes two deviations in pixels with 0 < low <= high <= 100, not {list(value)}")
        return value


class RandAugmentConfig(Section):
    """RandAugment (Cubuk et al. 2020, arXiv:1909.13719): ``operations`` of one strength, drawn with replacement.

    Of 15: identity, auto_contrast, equalize, invert, posterize, solarize, brightness, color, contrast, sharpness,
    rotate, shear_x, shear_y, translate_x, translate_y. Those with a direction take it at random.
    """

    operations: int = Field(default=2, ge=1, le=16, description="how many operations a view goes through")
    magnitude: int = Field(default=9, ge=0, le=30, description="strength of all of them")


_Alpha = Annotated[float, Field(ge=0.01, le=100.0)]
_Probability = Annotated[float, Field(gt=0.0, le=1.0)]


class MixupConfig(Section):
    """Mixup (Zhang et al. 2018, arXiv:1710.09412): a view becomes lambda times itself plus 1 - lambda times another's.

    The partner is another training image. Partner and lambda follow from the sample and its view, not from the batch,
    so a cached teacher saw the same mixed pixels.
    """

    alpha: _Alpha = Field(default=0.8, description="lambda is drawn from Beta(alpha, alpha)")
    probability: _Probability = Field(default=0.5, description="that a view is mixed in this way")


class CutMixConfig(Section):
    """CutMix (Yun et al. 2019, arXiv:1905.04899): a box of a view, 1 - lambda of its area, shows another's pixels.

    Partner, box and lambda are drawn as for mixup. The box is cut off at the edges, and lambda counts what is left.
    """

    alpha: _Alpha = Field(default=1.0, description="lambda is drawn from Beta(alpha, alpha)")
    probability: _Probability = Field(default=0.5, description="that a view is mixed in this way")


class AugmentConfig(Section):
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
