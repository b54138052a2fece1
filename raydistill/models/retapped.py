"""Outputs taken at modules that the user names by their paths.

``teacher.taps: {embedding: blocks.11, features/3: layer4}`` replaces or adds outputs of any network. A module's output
becomes what the name promises:

- ``embedding`` [B, D]: vectors [B, D] as they are, maps [B, C, H, W] averaged over all positions, tokens [B, N, D] as
  the class token where there is one in front (N is a square and one or two more), else as their mean. ``@cls`` or
  ``@mean`` behind the path chooses (``blocks.11@mean`` averages all tokens but those in front).
- ``features/<i>`` [B, C, H, W]: maps as they are (channels last, as Swin has them, are brought to the front), tokens
  without those in front laid out as a square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from raydistill.errors import ConfigError, did_you_mean
from raydistill.models.taps import DEFAULT_OUTPUTS, EMBEDDING, LOGITS, Tapped, pool, share_parts
from raydistill.models.zoo import split_tap

_EXTRA_TOKENS = (0, 1, 2)  # none, a class token, a class and a distillation token


@dataclass(frozen=True)
class _Result:
    """What a module returned, and how often it had been written to by then."""

    value: Any
    version: int


class RetappedNetwork(Tapped):
    """Another network with further or other outputs; parameters keep their names."""

    _network: Tapped

    def __init__(self, network: Tapped, taps: Mapping[str, str]) -> None:
        """Take over a network.

        Args:
            network: gives all outputs that are not named here.
            taps: ``embedding`` or ``features/<i>`` -> path of a module, with ``@cls`` or ``@mean`` where wanted.

        Raises:
            ConfigError: if the network has no module of that path.
        """
        super().__init__()
        share_parts(self, network)
        self._taps = {name: split_tap(name, path) for name, path in taps.items()}
        known = [path for path, _ in network.named_modules() if path]
        for name, (path, _) in self._taps.items():
            if path not in known:
                near = did_you_mean(path, known)
                raise ConfigError(f"taps.{name} = '{path}': the network has no module of that path{near}")

    def train(self, mode: bool = True) -> RetappedNetwork:
        """Set the mode of all parts and of the network that ties them together."""
        self._network.train(mode)
        self.training = mode
        return self

    def output_names(self) -> tuple[str, ...]:
        """Return the network's own names and those of the taps."""
        own = [name for name in self._network.output_names() if name not in DEFAULT_OUTPUTS]
        return (*DEFAULT_OUTPUTS, *dict.fromkeys([*own, *sorted(set(self._taps) - {EMBEDDING})]))

    def forward(self, images: Tensor, outputs: Iterable[str] = DEFAULT_OUTPUTS) -> dict[str, Tensor]:
        """Compute the named outputs of ``images`` [B, C, H, W]; with a tap among them the whole network runs.

        Raises:
            ConfigError: if what a tapped module returns cannot become the output, it runs several times, or what it
                returned is overwritten afterwards.
        """
        names = self.check_outputs(outputs)
        results: dict[str, list[_Result]] = {self._taps[name][0]: [] for name in names if name in self._taps}
        own = [name for name in names if name not in self._taps]
        with ExitStack() as hooks:
            for path, kept in results.items():
                hooks.enter_context(self.get_submodule(path).register_forward_hook(_keeper(kept)))
            # The logits are behind every module, so asking for them lets all taps run.
            found = self._network(images, dict.fromkeys([*own, LOGITS]) if results else own)
        for name in set(names) & set(self._taps):
            path, how = self._taps[name]
            found[name] = _converted(name, path, how, results[path])
        return {name: found[name] for name in names}


def _keeper(kept: list[_Result]) -> Callable[[nn.Module, Any, Any], None]:
    return lambda _, __, output: kept.append(_Result(output, _version(output)))


def _version(output: Any) -> int:
    return output._version if isinstance(output, Tensor) and not output.is_inference() else 0


def _converted(name: str, path: str, how: str, results: list[_Result]) -> Tensor:
    """Turn what a module returned into the output of that name."""
    where = f"taps.{name} = '{path}'"
    if len(results) != 1:
        raise ConfigError(f"{where}: the module runs {len(results)} times in a pass; name the block around it")
    value = results[0].value
    if not isinstance(value, Tensor):
        raise ConfigError(f"{where}: the module returns no tensor but {type(value).__name__}; name another")
    if _version(value) != results[0].version:
        raise ConfigError(f"{where}: what the module returns is overwritten later; name the block around it")
    found = _embedding(value, how) if name == EMBEDDING else _maps(value)
    if found is None:
        wanted = "vectors, maps or tokens" if name == EMBEDDING else "maps or a square of tokens"
        raise ConfigError(f"{where}: the module returns {list(value.shape)}, which are not {wanted}")
    return found


def _embedding(value: Tensor, how: str) -> Tensor | None:
    """[B, D], [B, N, D] or maps -> [B, D]."""
    if value.dim() == 3:
        extra = _extra_tokens(value)
        if how == "mean" or (not how and not extra):
            return value[:, extra or 0 :].mean(dim=1)
        return value[:, 0]
    if value.dim() == 4:
        maps = _maps(value)
        return None if maps is None else pool(maps)
    return value if value.dim() == 2 else None


def _maps(value: Tensor) -> Tensor | None:
    """[B, N, D], [B, C, H, W] or [B, H, W, C] of a square image -> [B, C, H, W]."""
    if value.dim() == 3:
        extra = _extra_tokens(value)
        if extra is None:
            return None
        patches = value[:, extra:]
        side = math.isqrt(patches.shape[1])
        return patches.transpose(1, 2).reshape(len(value), -1, side, side)
    if value.dim() != 4:
        return None
    _, second, third, fourth = value.shape
    return value.permute(0, 3, 1, 2) if second == third != fourth else value


def _extra_tokens(tokens: Tensor) -> int | None:
    """How many tokens stand in front of a square of patches; None where no square is left."""
    for extra in _EXTRA_TOKENS:
        patches = tokens.shape[1] - extra
        if patches > 0 and math.isqrt(patches) ** 2 == patches:
            return extra
    return None
