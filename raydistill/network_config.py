"""The sections ``student`` and ``teacher`` of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raydistill.errors import ConfigError
from raydistill.models.zoo import FUNCTION, check_name, split_tap
from raydistill.section import Count, PathText, Section
from raydistill.train_config import TrainConfig

ModelName = Annotated[
    str, Field(description="a name of `raydistill list models`; package.module:function is code, and is run")
]


class NetworkConfig(Section):
    """A network by name, with weights of one's own where ``weights`` is a path.

    ``taps`` maps ``embedding`` or ``features/<i>`` to the path
    of the module whose output it shall be, such as ``{embedding: blocks.11, features/3: layer4}``; of tokens the
    embedding takes the class token, or what ``@cls`` or ``@mean`` behind the path says.
    """

    model: ModelName
    weights: PathText | None = None
    taps: dict[str, str] = Field(default_factory=dict)

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            check_name(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("taps")
    @classmethod
    def _tappable(cls, value: dict[str, str]) -> dict[str, str]:
        try:
            for name, path in value.items():
                split_tap(name, path)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def brings_weights(self) -> bool:
        """Whether the network is not fresh: weights are named, or the user's own function may load them."""
        return self.weights is not None or FUNCTION in self.model


class StudentConfig(NetworkConfig):
    """The small network, which is trained.

    Its head is whatever has parameters between embedding and logits; of most networks the last linear layer.
    ``head: fresh`` takes all but the head from ``weights`` and draws the head anew, for other classes than those that
    the weights were trained on, or because nothing trained it there.

    ``trains: head`` trains the head alone, on frozen features: the rest of the network keeps its weights, and is in
    evaluation mode throughout, so that the running statistics of its batch-norms stay as well.
    """

    head: Literal["keep", "fresh"] = "keep"
    trains: Literal["all", "head"] = "all"

    @model_validator(mode="after")
    def _features_come_from_somewhere(self) -> StudentConfig:
        if self.head == "fresh" and self.weights is None:
            raise ValueError("head: 'fresh' takes the rest of the network from 'weights', but that is not given")
        if self.trains == "head" and not self.brings_weights:
            raise ValueError(
                "trains: 'head' leaves the features as they are, but no 'weights' are given to have them from"
            )
        return self


class TeacherConfig(NetworkConfig):
    """The large network. ``source`` says whether its outputs come from the cache or from a live forward pass.

    ``layout`` says how a public checkpoint names its tensors; its head then takes the classifier's place.
    ``train`` is used by ``raydistill teacher`` alone and defaults to the experiment's own ``train``.
    """

    layout: Literal["torchvision", "simclr", "moco_v2", "swav", "dino", "crd"] | None = None

    source: Literal["cache", "live"] = "cache"
    batch_size: Count = 128
    train: TrainConfig | None = None

    @model_validator(mode="after")
    def _layout_of_a_file(self) -> TeacherConfig:
        if self.layout is not None and self.weights is None:
            raise ValueError("layout: tells how the file of 'weights' is laid out, but that is not given")
        return self
