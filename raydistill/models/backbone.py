"""A network as the backbone of a detector: its maps alone, one for each stride."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from raydistill.errors import ConfigError
from raydistill.models.taps import Tapped, blank_images, evaluating

_FEATURES = "features/"


class Backbone(nn.Module):
    """Images [B, C, H, W] -> name -> maps [B, ``out_channels[i]``, H / s, W / s], finest first, s of ``strides``.

    A batch-norm whose weights are frozen keeps its statistics, too, whatever the mode. The network keeps its classifier
    and the names of its parameters; what no map depends on is frozen.

    Attributes:
        network: whose maps they are, in place: nothing is copied.
        names: the maps' names, ``features/<i>``.
        out_channels: of each map.
        strides: of each map, powers of two: how many pixels of the image lie between two of its positions.
    """

    network: Tapped

    def __init__(self, network: Tapped, out_channels: dict[str, int], strides: dict[str, int]) -> None:
        """Take over a network; ``backbone_of`` finds the rest."""
        super().__init__()
        self.network = network
        self.names = tuple(out_channels)
        self.out_channels = tuple(out_channels.values())
        self.strides = tuple(strides[name] for name in self.names)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Compute the maps of normalised images."""
        found = self.network(images, self.names)
        return OrderedDict((name, found[name]) for name in self.names)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of all parts but the batch-norms that are frozen."""
        super().train(mode)
        for part in self.network.modules():
            if isinstance(part, _BatchNorm) and not any(weight.requires_grad for weight in part.parameters()):
                part.eval()
        return self


class PyramidBackbone(nn.Module):
    """A backbone with a feature pyramid on it (Lin et al. 2017, https://arxiv.org/abs/1612.03144), for torchvision.

    Attributes:
        body: the network's maps.
        out_channels: of all maps of the pyramid.
        strides: of the pyramid's maps; the last of them, ``pool``, is the coarsest one at half its size.
    """

    def __init__(self, body: Backbone, out_channels: int = 256) -> None:
        """Put a pyramid with fresh weights on a body."""
        super().__init__()
        self.body = body
        self.pyramid = FeaturePyramidNetwork(list(body.out_channels), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels
        self.strides = (*body.strides, 2 * body.strides[-1])

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Images [B, C, H, W] -> name -> maps [B, ``out_channels``, h, w], finest first."""
        maps: OrderedDict[str, Tensor] = self.pyramid(self.body(images))
        return maps


def backbone_of(
    network: Tapped,
    in_channels: int = 3,
    *,
    levels: int = 4,
    frozen_stages: int = 0,
    train_batch_norm: bool = False,
    side: int = 256,
) -> Backbone:
    """Make a backbone of a network, in place; strides, channels and stages are found by running one blank image.

    Of several stages with one stride the last is taken, as in feature pyramids; of the strides the ``levels`` coarsest,
    which for a ResNet of ImageNet are 4, 8, 16 and 32.

    Args:
        network: any network with ``features/<i>``.
        in_channels: channels of its images.
        levels: the most maps to return.
        frozen_stages: the stages that are not trained: what ``features/<frozen_stages - 1>`` is computed from.
        train_batch_norm: train batch-norms, too. Usually they are frozen with the statistics of the network's own
            training, since a detector's batches are small.
        side: of the blank image, in pixels.

    Raises:
        ConfigError: if the network has no maps or too few stages, takes no images of that size, or no map is wanted.
    """
    names = [name for name in network.output_names() if name.startswith(_FEATURES)]
    if not names:
        raise ConfigError("a backbone needs maps, but the network has no features/<i>; name modules in student.taps")
    if not 0 <= frozen_stages <= len(names):
        raise ConfigError(f"frozen stages: {frozen_stages}, but the network has {len(names)} ({', '.join(names)})")
    if levels < 1:
        raise ConfigError(f"levels: {levels}, but a detector needs one map at least")
    network.requires_grad_(True)
    maps = _maps(network, names, in_channels, side)
    of_stride = {_stride(side, maps[name]): name for name in names}
    chosen = {of_stride[stride]: stride for stride in sorted(of_stride)[-levels:]}
    _train_only(network, maps, list(chosen), names[:frozen_stages], train_batch_norm)
    return Backbone(network, {name: maps[name].shape[1] for name in chosen}, chosen)


def _maps(network: Tapped, names: list[str], in_channels: int, side: int) -> dict[str, Tensor]:
    try:
        with evaluating(network), torch.enable_grad():
            maps: dict[str, Tensor] = network(blank_images(network, (in_channels, side, side)), names)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"a backbone sees images of many sizes, but the network takes none of {in_channels} x {side} x {side}: "
            f"{reason}"
        ) from None
    return maps


def _stride(side: int, maps: Tensor) -> int:
    """Return the power of two that is nearest: where convolutions do not pad, maps are a little smaller."""
    power: int = 2 ** round(torch.tensor(side / maps.shape[2]).log2().item())
    return power


def _train_only(
    network: Tapped, maps: dict[str, Tensor], used: list[str], frozen: list[str], train_batch_norm: bool
) -> None:
    """Leave trainable what the used maps depend on and no frozen one does."""
    wanted = _behind(network, [maps[name] for name in used])
    fixed = _behind(network, [maps[name] for name in frozen])
    for name, weight in network.named_parameters():
        weight.requires_grad_(name in wanted and name not in fixed)
    if not train_batch_norm:
        for part in network.modules():
            if isinstance(part, _BatchNorm):
                part.requires_grad_(False)


def _behind(network: Tapped, maps: list[Tensor]) -> set[str]:
    """Names of the parameters that some maps were computed from."""
    if not maps:
        return set()
    total = torch.stack([each.sum() for each in maps]).sum()
    named = dict(network.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}
