"""A network as a configuration describes it: name, weights, layout of their file, taps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from raydistill.models.weights import load_weights
from raydistill.models.zoo import build_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raydistill.models.taps import Tapped


class Described(Protocol):
    """What is said about a network, such as ``NetworkConfig``."""

    @property
    def model(self) -> str:
        """Its name."""

    @property
    def weights(self) -> str | None:
        """Path of its weights; fresh ones, or those of the user's function, where there is none."""

    @property
    def taps(self) -> Mapping[str, str]:
        """Outputs taken at modules of the user's choice."""


def build_described(described: Described, num_classes: int, in_channels: int, *, layout: str | None = None) -> Tapped:
    """Build the network and load its weights, from a public checkpoint where a ``layout`` is given.

    Raises:
        ConfigError: if name, layout or taps do not fit.
        WeightsError: if the weights are missing, unreadable or do not fit.
    """
    network = build_model(described.model, num_classes, in_channels)
    if described.weights is not None:
        if layout is None:
            load_weights(network, described.weights)
        else:
            from raydistill.models.layouts import load_layout

            load_layout(network, described.weights, layout)
    return with_taps(network, described.taps)


def with_taps(network: Tapped, taps: Mapping[str, str]) -> Tapped:
    """Return the network with outputs taken at modules of the user's choice, if there are any.

    Raises:
        ConfigError: if the network has no such module.
    """
    if not taps:
        return network
    from raydistill.models.retapped import RetappedNetwork

    return RetappedNetwork(network, taps)
