"""Networks whose inner outputs can be asked for by name.

Every network of the platform is a ``Tapped``: ``model(images, outputs)`` computes the named outputs and
nothing beyond them. ``StagedNetwork`` is the base of the CIFAR networks, which are written in stages;
``hooked.py`` gives networks of other libraries the same face.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from raydistill.errors import ConfigError, did_you_mean

LOGITS = "logits"
EMBEDDING = "embedding"
DEFAULT_OUTPUTS = (LOGITS, EMBEDDING)


class Tapped(nn.Module):
    """A network that returns its outputs by name.

    Names: ``logits`` [B, classes], ``embedding`` [B, D] (what the classifier sees), ``features/<i>`` [B, C,
    H, W] (the map at the end of stage i) and, where a network has it, ``preact/<i>`` [B, C, H, W] (that map
    before its activation).
    """

    def output_names(self) -> tuple[str, ...]:
        """Return all names that can be asked for."""
        raise NotImplementedError

    def forward(self, images: Tensor, outputs: Iterable[str] = DEFAULT_OUTPUTS) -> dict[str, Tensor]:
        """Compute the named outputs of ``images`` [B, C, H, W], in the order in which they were named."""
        raise NotImplementedError

    def check_outputs(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Return the names as a tuple; raise ``ConfigError`` for a name that this network does not have."""
        names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        if set(names) <= set(DEFAULT_OUTPUTS):
            return names
        known = self.output_names()
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"unknown output '{name}'; this network has {', '.join(known)}{hint}")
        return names

    def shapes(self, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every output, without the batch, for images of ``image_shape`` (C, H, W)."""
        with evaluating(self), torch.no_grad():
            found = self(blank_images(self, image_shape), self.output_names())
        return {name: tuple(value.shape[1:]) for name, value in found.items()}


def share_parts(wrapper: nn.Module, network: nn.Module) -> None:
    """Give a wrapper the network's own parts instead of the network as a child.

    Every parameter then keeps the name that it has in the network, and checkpoints load unchanged.
    """
    wrapper._modules = network._modules
    wrapper._parameters = network._parameters
    wrapper._buffers = network._buffers
    wrapper._non_persistent_buffers_set = network._non_persistent_buffers_set
    wrapper.__dict__["_network"] = network
    wrapper.training = network.training


class StagedNetwork(Tapped):
    """A network made of stages, a pooled embedding and one linear classifier.

    A stage ends before its activation, so that the map can be tapped on both sides of it. Activations are
    never in
    place: that would overwrite the tap.
    """

    num_stages: int = 4

    def initialise(self) -> None:
        """Draw weights by the rule of the network's authors; by default PyTorch's layers stay as they were made."""

    def run_stage(self, index: int, maps: Tensor) -> Tensor:
        """Run one stage up to its last activation: the maps before it [B, C, H, W] -> its raw ones."""
        raise NotImplementedError

    def activate(self, index: int, raw: Tensor) -> Tensor:
        """Turn what ``run_stage`` returned into ``features/<index>``."""
        return F.relu(raw)

    def preactivation(self, index: int, raw: Tensor) -> Tensor:
        """Turn what ``run_stage`` returned into ``preact/<index>``."""
        return raw

    def embed(self, features: Tensor) -> Tensor:
        """Turn the last features [B, C, H, W] into the embedding [B, D]."""
        return pool(features)

    def classify(self, embedding: Tensor) -> Tensor:
        """Turn the embedding [B, D] into logits [B, classes]."""
        raise NotImplementedError

    def output_names(self) -> tuple[str, ...]:
        """Return all names; the stem has no ``preact``, following the public benchmark."""
        features = [f"features/{index}" for index in range(self.num_stages)]
        preacts = [f"preact/{index}" for index in range(1, self.num_stages)]
        return (*DEFAULT_OUTPUTS, *features, *preacts)

    def forward(self, images: Tensor, outputs: Iterable[str] = DEFAULT_OUTPUTS) -> dict[str, Tensor]:
        """Compute the named outputs of ``images`` [B, C, H, W]; stages behind the last of them do not run."""
        names = self.check_outputs(outputs)
        found: dict[str, Tensor] = {}
        maps = images
        for index in range(self._stages_to_run(names)):
            raw = self.run_stage(index, maps)
            maps = self.activate(index, raw)
            if f"features/{index}" in names:
                found[f"features/{index}"] = maps
            if f"preact/{index}" in names:
                found[f"preact/{index}"] = self.preactivation(index, raw)
        if LOGITS in names or EMBEDDING in names:
            found[EMBEDDING] = self.embed(maps)
        if LOGITS in names:
            found[LOGITS] = self.classify(found[EMBEDDING])
        return {name: found[name] for name in names}

    def tail(self, first: int, map_shape: tuple[int, int, int]) -> Tail:
        """Return a second end of the network: the stages from ``first`` on and the classifier, with fresh weights.

        Its input is ``features/<first - 1>``, of shape ``map_shape`` (C, H, W) without the batch. It is made on the
        CPU, whose random state decides the weights.
        """
        tail = Tail(copy.deepcopy(self).cpu(), first)
        _keep_what_runs(tail, blank_images(tail, map_shape))
        for part in tail.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        tail.network.initialise()
        return tail

    def _stages_to_run(self, names: tuple[str, ...]) -> int:
        if LOGITS in names or EMBEDDING in names:
            return self.num_stages
        return max((int(name.rpartition("/")[2]) + 1 for name in names), default=0)


class Tail(nn.Module):
    """Upper stages and classifier of a network; made by ``StagedNetwork.tail``."""

    def __init__(self, network: StagedNetwork, first: int) -> None:
        """Take over a network, of which only the stages from ``first`` on will run."""
        super().__init__()
        self.network = network
        self.first = first

    def forward(self, maps: Tensor) -> Tensor:
        """``features/<first - 1>`` [B, C, H, W] -> logits [B, classes]."""
        for index in range(self.first, self.network.num_stages):
            maps = self.network.activate(index, self.network.run_stage(index, maps))
        return self.network.classify(self.network.embed(maps))


class Blocks(nn.Sequential):
    """Blocks that each end before their activation; it is applied between them, not behind the last."""

    def activate(self, raw: Tensor) -> Tensor:
        """Apply the activation that separates two blocks."""
        return F.relu(raw)

    def forward(self, maps: Tensor) -> Tensor:
        """Run the blocks on activated maps [B, C, H, W]; return the last block's maps, not activated."""
        for index, block in enumerate(self):
            maps = block(self.activate(maps) if index else maps)
        return maps


def _keep_what_runs(module: nn.Module, example: Tensor) -> None:
    """Remove all parts that a forward pass of ``example`` does not call."""
    used: set[nn.Module] = set()

    def note(part: nn.Module, _: object) -> None:
        used.add(part)

    with evaluating(module), torch.no_grad(), ExitStack() as hooks:
        for part in module.modules():
            hooks.enter_context(part.register_forward_pre_hook(note))
        module(example)
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if used.isdisjoint(child.modules()):
                setattr(part, name, nn.Identity())  # not deleted: the number of a list's other parts must stay


def pool(maps: Tensor) -> Tensor:
    """Average maps [B, C, H, W] over all positions -> [B, C]; works at every input size."""
    return F.adaptive_avg_pool2d(maps, 1).flatten(1)


def initialise_fan_out(module: nn.Module, *, linear_std: float | None = None) -> None:
    """Draw convolutions from He's normal distribution by fan-out, as the CIFAR networks of the papers do.

    ``linear_std`` draws the linear layers from a normal distribution and zeroes their biases; ``None`` leaves
    them as PyTorch made them.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear) and linear_std is not None:
            nn.init.normal_(part.weight, std=linear_std)
            nn.init.zeros_(part.bias)


def blank_images(model: nn.Module, image_shape: tuple[int, int, int], batch_size: int = 1) -> Tensor:
    """Return zeros [batch_size, C, H, W] on the device and in the precision of the model."""
    like = next(model.parameters(), torch.empty(0))
    return torch.zeros(batch_size, *image_shape, device=like.device, dtype=like.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while; each part gets its own mode back (it may be frozen)."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
