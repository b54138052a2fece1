"""Networks of torchvision, timm and of the user, tapped by hooks.

Hooks live only during a call, so a network can be copied, pickled and moved as if it had none.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raydistill.errors import ConfigError, did_you_mean
from raydistill.models.taps import DEFAULT_OUTPUTS, EMBEDDING, LOGITS, Tapped, blank_images, evaluating, share_parts

_MAP_DIMENSIONS = 4
_TOKEN_DIMENSIONS = 3
_EXTRA_TOKENS = (0, 1, 2)  # none, a class token, a class and a distillation token


class _EnoughError(Exception):
    """Ends a forward pass once everything that was asked for is known."""


@dataclass(frozen=True)
class _Stage:
    """A module that returns maps, their side at the size the network was designed for, and their layout."""

    path: str
    side: int
    layout: Literal["channels first", "channels last", "tokens"]

    @property
    def depth(self) -> int:
        """How deeply the module is nested."""
        return self.path.count(".")

    def as_maps(self, output: Tensor) -> Tensor:
        """Return the module's output as [B, C, H, W]; tokens lose the class tokens in front."""
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        if self.layout == "tokens":
            patches = output[:, -self.side * self.side :]
            return patches.transpose(1, 2).reshape(len(output), -1, self.side, self.side)
        return output


class HookedNetwork(Tapped):
    """A network of another library.

    ``embedding`` is the input of its classifier. A stage is a span in which the maps keep their size (to a
    factor of two); ``features/<i>`` is the output of the outermost module in it, the last of them if there
    are several: an expansion inside the block that leaves a stage does not end it. Vision transformers have
    one stage, whose feature is the last layer's tokens laid out as a map. Maps are always [B, C, H, W], also
    where the network keeps channels last.
    """

    _network: nn.Module

    def __init__(self, network: nn.Module, classifier: str, image_shape: tuple[int, int, int] | None) -> None:
        """Take over a network.

        Args:
            network: returns logits [B, classes].
            classifier: path of its last linear layer; empty where the output itself is the embedding.
            image_shape: (C, H, W) for which the network was designed; stages are found on such an image, and without
                it there are none.
        """
        super().__init__()
        share_parts(self, network)
        self._classifier = classifier
        self._image_shape = image_shape
        self._stages: tuple[_Stage, ...] | None = None

    def train(self, mode: bool = True) -> HookedNetwork:
        """Set the mode of all parts and of the network that ties them together."""
        self._network.training = mode
        super().train(mode)
        return self

    def output_names(self) -> tuple[str, ...]:
        """Return all names; the first call runs one image to find the stages."""
        return (*DEFAULT_OUTPUTS, *(f"features/{index}" for index in range(len(self._find_stages()))))

    def forward(self, images: Tensor, outputs: Iterable[str] = DEFAULT_OUTPUTS) -> dict[str, Tensor]:
        """Compute the named outputs of ``images`` [B, C, H, W]; the pass ends with the last of them."""
        names = self.check_outputs(outputs)
        found: dict[str, Tensor] = {}
        self._network.training = self.training
        with ExitStack() as hooks:
            for name in set(names) - {LOGITS} - ({EMBEDDING} if not self._classifier else set()):
                hooks.enter_context(self._hook(name, names, found))
            try:
                result = self._network(images)
            except _EnoughError:
                pass
            else:
                found |= self._checked(result)
        if EMBEDDING in found and found[EMBEDDING].dim() != 2:
            raise ConfigError(
                f"the last linear layer, '{self._classifier}', sees {list(found[EMBEDDING].shape)} and no vectors; "
                f"name the embedding's module in `taps`, such as taps.embedding=blocks.11"
            )
        return {name: found[name] for name in names}

    @property
    def classifier_path(self) -> str:
        """Path of the last linear layer, or of what was put in its place."""
        return self._classifier

    def replace_classifier(self, head: nn.Module) -> None:
        """Put another module behind the embedding: [B, D] -> what is called logits from now on."""
        parent, _, leaf = self._classifier.rpartition(".")
        setattr(self.get_submodule(parent), leaf, head)

    def _checked(self, result: Any) -> dict[str, Tensor]:
        """Return what the network's own output stands for."""
        if not isinstance(result, Tensor):
            raise ConfigError(f"the network returns {type(result).__name__}; it must return one tensor [B, classes]")
        return {LOGITS: result} if self._classifier else {LOGITS: result, EMBEDDING: result}

    def _hook(self, name: str, names: tuple[str, ...], found: dict[str, Tensor]) -> RemovableHandle:
        """Attach the hook that keeps one output; the handle detaches it at the end of a ``with``."""

        def keep(value: Tensor) -> None:
            found[name] = value
            if found.keys() >= set(names):
                raise _EnoughError

        if name == EMBEDDING:
            layer = self.get_submodule(self._classifier)
            return layer.register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
        stage = self._find_stages()[int(name.rpartition("/")[2])]
        layer = self.get_submodule(stage.path)
        return layer.register_forward_hook(lambda _, __, output: keep(stage.as_maps(output)))

    def _find_stages(self) -> tuple[_Stage, ...]:
        """Return the module that ends each stage, found once by running one blank image."""
        if self._image_shape is None:
            return ()
        if self._stages is None:
            chosen: dict[int, _Stage] = {}
            for runs in self._observe().values():
                # A module that runs twice (a shared activation) cannot stand for the end of a stage.
                if len(runs) == 1 and runs[0].side > 1:
                    level = round(math.log2(self._image_shape[1] / runs[0].side))
                    if runs[0].depth <= chosen.get(level, runs[0]).depth:
                        chosen[level] = runs[0]
            self._stages = tuple(chosen[level] for level in sorted(chosen))
        return self._stages

    def _observe(self) -> dict[str, list[_Stage]]:
        """Return for each module what it returned as maps, ordered by when the modules completed."""
        runs: dict[str, list[_Stage]] = {}
        sides: set[int] = set()

        def note(path: str, _: nn.Module, __: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.shape[0] != 1:
                return
            if output.dim() == _MAP_DIMENSIONS:
                stage = _stage_of_map(path, output)
            elif output.dim() == _TOKEN_DIMENSIONS and len(sides) == 1:
                stage = _stage_of_tokens(path, output, *sides)
            else:
                return
            if stage is not None:
                sides.add(stage.side)
                runs[path] = [*runs.pop(path, []), stage]

        assert self._image_shape is not None
        with evaluating(self), torch.no_grad(), ExitStack() as hooks:
            self._network.training = False
            for path, module in self.named_modules():
                if path and not isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
                    hooks.enter_context(module.register_forward_hook(partial(note, path)))
            self._network(blank_images(self, self._image_shape))
        return runs


def _stage_of_map(path: str, output: Tensor) -> _Stage | None:
    """Tell [1, C, H, W] from [1, H, W, C] by the two dimensions that agree: the observed image is square."""
    _, second, third, fourth = output.shape
    if third == fourth:
        return _Stage(path, third, "channels first")
    return _Stage(path, second, "channels last") if second == third else None


def _stage_of_tokens(path: str, output: Tensor, side: int) -> _Stage | None:
    """Recognise tokens [1, N, C] of a network whose maps all had one side so far: its grid of patches."""
    return _Stage(path, side, "tokens") if output.shape[1] - side * side in _EXTRA_TOKENS else None


def build_torchvision(name: str, num_classes: int, in_channels: int) -> HookedNetwork:
    """Build ``torchvision.models.<name>`` with fresh weights."""
    models = importlib.import_module("torchvision.models")
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f"torchvision has no network '{name}'{did_you_mean(name, known)}")
    options: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        # Their auxiliary classifiers would make the output a tuple while training.
        options |= {"aux_logits": False, "init_weights": True}
    network: nn.Module = models.get_model(name, **options)
    if in_channels != 3:
        _replace_first_convolution(network, in_channels)
    size = 299 if name == "inception_v3" else int(getattr(network, "image_size", 224))
    return HookedNetwork(network, _last_linear(network, name), (in_channels, size, size))


def build_timm(name: str, num_classes: int, in_channels: int) -> HookedNetwork:
    """Build ``timm.create_model(name)`` with fresh weights."""
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(f"model 'timm/{name}' needs the package timm: pip install raydistill[timm]") from error
    if not timm.is_model(name):
        raise ConfigError(f"timm has no network '{name}'{did_you_mean(name, timm.list_models())}")
    create: Callable[..., nn.Module] = timm.create_model
    network = create(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    settings = getattr(network, "pretrained_cfg", {}) or {}
    size = int(settings.get("input_size", (3, 224, 224))[-1])
    return HookedNetwork(network, _last_linear(network, name), (in_channels, size, size))


def build_function(name: str, num_classes: int, in_channels: int) -> Tapped:
    """Call ``package.module:function``, with ``num_classes`` and ``in_channels`` where it has such parameters.

    ``embedding`` is the input of the network's last linear layer, or its output where it has none; it has no
    ``features/<i>`` but those that ``taps`` name. A ``Tapped`` network is taken as it is.

    Raises:
        ConfigError: if there is no such function or it returns no network.
    """
    function = _imported(name)
    try:
        parameters = set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        parameters = set()
    given = {"num_classes": num_classes, "in_channels": in_channels}
    network = function(**{key: value for key, value in given.items() if key in parameters})
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model '{name}': it returned {type(network).__name__}, not a torch.nn.Module")
    if isinstance(network, Tapped):
        return network
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if linear == [""]:  # a bare linear layer has no path of its own
        raise ConfigError(f"model '{name}': one linear layer alone has no embedding")
    return HookedNetwork(network, linear[-1] if linear else "", None)


def _imported(name: str) -> Callable[..., Any]:
    """Find what ``package.module:function`` names."""
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"model '{name}': importing {module_name} failed: {error}") from error
        if Path(*error.name.split(".")).with_suffix(".py").is_file():
            raise ConfigError(
                f"model '{name}': '{error.name}' lies here, but is not on PYTHONPATH; run `PYTHONPATH=. raydistill ...`"
            ) from None
        near = did_you_mean(error.name, _siblings(error.name))
        raise ConfigError(f"model '{name}': there is no module '{error.name}'{near} (is it on PYTHONPATH?)") from None
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"model '{name}': importing {module_name} failed: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = did_you_mean(part, (key for key in dir(found) if not key.startswith("_")))
            raise ConfigError(f"model '{name}': {module_name} has no '{attribute}'{near}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"model '{name}': it is {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def _siblings(name: str) -> list[str]:
    """Names of the modules beside one that is missing."""
    parent, _, _ = name.rpartition(".")
    if not parent:
        return [module.name for module in pkgutil.iter_modules() if module.name not in sys.stdlib_module_names]
    paths = getattr(importlib.import_module(parent), "__path__", [])
    return [f"{parent}.{module.name}" for module in pkgutil.iter_modules(paths)]


def _last_linear(network: nn.Module, name: str) -> str:
    linear: list[str] = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(f"network '{name}' does not end in a linear classifier, so it has no embedding")
    return linear[-1]


def _replace_first_convolution(network: nn.Module, in_channels: int) -> None:
    """Give the network a first convolution for ``in_channels``; all else about it stays."""
    path, old = next(item for item in network.named_modules() if isinstance(item[1], nn.Conv2d))
    assert isinstance(old, nn.Conv2d)
    kept = [key for key in inspect.signature(nn.Conv2d).parameters if hasattr(old, key)]
    options = {key: getattr(old, key) for key in kept} | {"in_channels": in_channels}
    new = nn.Conv2d(**options | {"bias": old.bias is not None})
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)
