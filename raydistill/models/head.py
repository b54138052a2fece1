"""The head of a network: whatever has parameters between its embedding and its logits.

It is found by what gradients reach, not by names, so it is found in every network: of most it is the last linear layer,
of one whose embedding is tapped further in also all that stands behind the tap.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from raydistill.errors import ConfigError
from raydistill.models.loading import Described, with_taps
from raydistill.models.taps import EMBEDDING, LOGITS, Tapped, blank_images
from raydistill.models.weights import fit_state, read_file, state_dict_in
from raydistill.models.zoo import build_model


def head_names(network: Tapped, image_shape: tuple[int, int, int]) -> frozenset[str]:
    """Return the names, as in the state dict, of all parameters and buffers of the head.

    These are the parameters that the logits depend on and the embedding does not. A buffer goes with its module's
    parameters, or, where that has none, with those of the innermost module around it that has some.

    Args:
        network: stays as it is.
        image_shape: (C, H, W) of the images that it is to see.

    Raises:
        ConfigError: if there is nothing between embedding and logits.
    """
    probe = copy.deepcopy(network).requires_grad_(True).eval()
    images = blank_images(probe, image_shape)
    head = _reached(probe, images, LOGITS) - _reached(probe, images, EMBEDDING)
    if not head:
        raise ConfigError("the network has no head: no parameters stand between embedding and logits")
    parameters = dict(network.named_parameters(remove_duplicate=False))
    buffers = [name for name in network.state_dict() if name not in parameters]
    return frozenset(head) | {name for name in buffers if head.issuperset(_nearest(name, parameters))}


def build_with_fresh_head(described: Described, num_classes: int, image_shape: tuple[int, int, int]) -> Tapped:
    """Build a network whose head is as its maker draws it, and all else as in the file of ``described.weights``.

    What the file holds of a head, of however many classes, is not looked at.

    Raises:
        ConfigError: if name or taps do not fit, or there is no head.
        WeightsError: if the weights are missing, unreadable or do not fit.
    """
    assert described.weights is not None
    network = with_taps(build_model(described.model, num_classes, image_shape[0]), described.taps)
    _load_all_but(network, described.weights, head_names(network, image_shape))
    return network


def freeze_all_but(network: nn.Module, head: Collection[str]) -> None:
    """Let no parameter take gradients but those of the head."""
    for name, parameter in network.named_parameters():
        if name not in head:
            parameter.requires_grad_(False)


def head_modules(network: nn.Module, head: Collection[str]) -> list[nn.Module]:
    """Return the modules all of whose parameters are the head's."""
    found = []
    for path, module in network.named_modules():
        names = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        if names and all(name in head for name in names):
            found.append(module)
    return found


def _reached(network: Tapped, images: Tensor, output: str) -> set[str]:
    """Names of the parameters that an output's gradient reaches."""
    with torch.enable_grad():
        found = network(images, (output,))[output]
    if not found.requires_grad:
        return set()
    named = dict(network.named_parameters(remove_duplicate=False))
    gradients = torch.autograd.grad(found.sum(), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


def _nearest(buffer: str, parameters: Collection[str]) -> Sequence[str]:
    """Names of the parameters of the innermost module around a buffer that has any."""
    path = buffer
    while path := path.rpartition(".")[0]:
        if inside := [name for name in parameters if name.startswith(f"{path}.")]:
            return inside
    return list(parameters)


def _load_all_but(network: nn.Module, path: str | os.PathLike[str], head: Collection[str]) -> None:
    """Load weights strictly, but for the head, of which the network keeps its own."""
    source, own = Path(path), network.state_dict()
    given = state_dict_in(read_file(source), source)
    body = {name: value for name, value in given.items() if name not in head}
    fit_state(network, body | {name: own[name] for name in head if name in own}, source)
