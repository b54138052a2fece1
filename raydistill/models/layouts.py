"""Public checkpoints by the layout of their keys: ``teacher.layout: moco_v2`` and the like.

A layout chooses the tensors of a file that make up the network, gives them this platform's (torchvision's) names, and
puts the checkpoint's own head, of the file's width, behind the embedding: ``logits`` are then the head's output. Every
tensor that is missing, of another shape, or neither used nor known to belong to the training alone is an error.

====================  ================================================================================================
``torchvision``       torchvision's files, or any with the network's own names; the classifier is the file's, whatever
                      the number of classes here
``simclr``            SimCLR converted to PyTorch, ``{state_dict: ...}`` with torchvision's names; ``resnet50x4``. The
                      public converter does not write the classifier's bias, so use the embedding, not the logits
``moco_v2``           ``{state_dict: {module.encoder_q.*, ...}}``; head ``fc.0``, ``fc.2`` (MoCo v1: ``fc``)
``swav``              ``module.*`` with ``projection_head.*`` and ``prototypes.weight``
``dino``              ``{teacher: {backbone.*, head.*}, student: ...}``, of which the teacher is taken, or the bare
                      backbone; ``torchvision/resnet50`` and ``deit_small_16``
``crd``               ``{model: ...}`` of the CIFAR-100 benchmark, whose names our CIFAR networks share
====================  ================================================================================================

The heads of SwAV and DINO are ``projection``, then unit length, then ``prototypes``. With
``taps: {embedding: fc.projection}`` (``heads.head.projection`` of ``deit_small_16``) the teacher's embedding is what
its prototypes were trained on; ``save_prototypes`` writes those for ProtoCPC's ``teacher_prototypes: pretrained``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save
from torch import Tensor, nn

from raydistill.errors import ConfigError, WeightsError, did_you_mean
from raydistill.files import write_atomically
from raydistill.models.hooked import HookedNetwork
from raydistill.models.taps import StagedNetwork, Tapped
from raydistill.models.weights import fit_state, listing, read_file, state_dict_in

State = dict[str, Tensor]
_COUNTER = ".num_batches_tracked"


class PrototypeHead(nn.Module):
    """Projection to unit length, then cosines (times their length) with prototypes."""

    def __init__(self, projection: nn.Module, prototypes: nn.Linear) -> None:
        """Put both together; the parameter ``prototypes.weight`` is [K, D]."""
        super().__init__()
        self.projection = projection
        self.prototypes = prototypes

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, E] -> [B, K]."""
        scores: Tensor = self.prototypes(F.normalize(self.projection(embedding), dim=1))
        return scores


@dataclass(frozen=True)
class _Chosen:
    """Tensors of the network without its classifier, those of the head, and the head that holds them."""

    backbone: State
    head_state: State
    head: nn.Module


def load_layout(network: Tapped, path: str | os.PathLike[str], layout: str) -> None:
    """Load a public checkpoint strictly; the network keeps its embedding and gets the checkpoint's head.

    Raises:
        ConfigError: if there is no such layout, or it belongs to other networks.
        WeightsError: naming the tensors that are missing, unexpected or of another shape.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout '{layout}'{did_you_mean(layout, LAYOUTS)} (known: {', '.join(LAYOUTS)})")
    LAYOUTS[layout](network, Path(path))


def save_prototypes(path: str | os.PathLike[str], layout: str, target: str | os.PathLike[str]) -> tuple[int, int]:
    """Write the prototypes of a public checkpoint as the tensor ``prototypes.weight`` [K, D] of a safetensors file.

    Args:
        path: the checkpoint.
        layout: ``swav`` or ``dino``.
        target: the file that is written, for ``methods.protocpc.prototypes_file``.

    Returns:
        (K, D): ``methods.protocpc.prototypes`` and the width that the teacher's embedding must have.

    Raises:
        ConfigError: if the layout has no prototypes.
        WeightsError: if the file is unreadable or holds none.
    """
    choose = {"swav": _swav, "dino": _dino}.get(layout)
    if choose is None:
        raise ConfigError(f"layout '{layout}' has no prototypes; swav and dino have")
    weight = choose(read_file(Path(path)), "", Path(path)).head_state.get("prototypes.weight")
    if weight is None:
        raise WeightsError(f"{path} holds a backbone without head, hence no prototypes")
    write_atomically(Path(target), save({"prototypes.weight": weight.contiguous()}))
    count, width = weight.shape
    return count, width


def _crd(network: Tapped, source: Path) -> None:
    if not isinstance(network, StagedNetwork):
        raise ConfigError("layout 'crd' belongs to the networks for CIFAR, such as resnet32x4")
    content = read_file(source)
    if not isinstance(content, Mapping) or "model" not in content:
        raise WeightsError(f"{source} does not have the layout 'crd': it has no entry 'model'")
    fit_state(network, state_dict_in(content, source), source)


def _with_head(layout: str, choose: Callable[[Any, str, Path], _Chosen]) -> Callable[[Tapped, Path], None]:
    def load(network: Tapped, source: Path) -> None:
        if not isinstance(network, HookedNetwork) or not network.classifier_path:
            raise ConfigError(f"layout '{layout}' belongs to networks such as torchvision/resnet50")
        classifier = network.classifier_path
        chosen = choose(read_file(source), classifier, source)
        own = network.get_submodule(classifier)
        before = {name: value for name, value in network.state_dict().items() if not name.startswith(f"{classifier}.")}
        wanted = [*before, *(f"{classifier}.{name}" for name in chosen.head.state_dict())]
        state = chosen.backbone | {f"{classifier}.{name}": value for name, value in chosen.head_state.items()}
        network.replace_classifier(chosen.head)
        try:
            fit_state(network, _with_counters(state, wanted), source)
        except WeightsError:
            network.replace_classifier(own)
            raise

    return load


def _torchvision(content: Any, classifier: str, source: Path) -> _Chosen:
    state = {name: value for name, value in state_dict_in(content, source).items() if not _AUXILIARY.match(name)}
    state = {_renamed(name, _OLD_NAMES): value for name, value in state.items()}
    return _split(state, f"{classifier}.", lambda head: _layers(head, nn.ReLU))


def _moco(content: Any, classifier: str, source: Path) -> _Chosen:
    state = state_dict_in(content, source)
    query = _under(state, "encoder_q.", "moco_v2", source)
    _refuse(state, r"encoder_[qk]\..*|queue|queue_ptr", source)
    return _split(query, "fc.", lambda head: _layers(head, nn.ReLU))


def _swav(content: Any, classifier: str, source: Path) -> _Chosen:
    state = state_dict_in(content, source)
    _under(state, "projection_head.", "swav", source)
    backbone, head = {}, {}
    for name, value in state.items():
        if name.startswith(("projection_head.", "prototypes.")):
            head[name.replace("projection_head.", "projection.", 1)] = value
        else:
            backbone[name] = value
    return _prototypes(backbone, head, nn.ReLU, source)


def _dino(content: Any, classifier: str, source: Path) -> _Chosen:
    if not isinstance(content, Mapping) or "teacher" not in content:
        state = {_renamed(name, _VIT_NAMES): value for name, value in state_dict_in(content, source).items()}
        return _Chosen(state, {}, nn.Identity())
    state = state_dict_in(content["teacher"], source)
    backbone = _under(state, "backbone.", "dino", source)
    head = _under(state, "head.", "dino", source)
    _refuse(state, r"(backbone|head)\..*", source)
    lacking = [name for name in ("last_layer.weight_g", "last_layer.weight_v") if name not in head]
    if lacking:
        raise WeightsError(f"{source} does not fit the layout 'dino': {listing('missing', lacking)} in 'head'")
    gain, direction = head.pop("last_layer.weight_g"), head.pop("last_layer.weight_v")
    renamed = {name.replace("mlp.", "projection.", 1): value for name, value in head.items()}
    renamed["prototypes.weight"] = gain * F.normalize(direction, dim=1)
    backbone = {_renamed(name, _VIT_NAMES): value for name, value in backbone.items()}
    return _prototypes(backbone, renamed, nn.GELU, source)


LAYOUTS: dict[str, Callable[[Tapped, Path], None]] = {
    "torchvision": _with_head("torchvision", _torchvision),
    "simclr": _with_head("simclr", _torchvision),
    "moco_v2": _with_head("moco_v2", _moco),
    "swav": _with_head("swav", _swav),
    "dino": _with_head("dino", _dino),
    "crd": _crd,
}
"""Layout -> what loads it."""

# Auxiliary classifiers of GoogLeNet and Inception, which serve training alone.
_AUXILIARY = re.compile(r"aux[12]\.|AuxLogits\.")

# Names in torchvision's older files.
_OLD_NAMES = (
    (r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)$", r"\1\2"),
    (r"^(encoder\.layers\..*\.mlp)\.linear_1\.", r"\1.0."),
    (r"^(encoder\.layers\..*\.mlp)\.linear_2\.", r"\1.3."),
)

# timm's vision transformer, which DINO follows, in torchvision's words.
_BLOCK = r"encoder.layers.encoder_layer_\1."
_VIT_NAMES = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.(\d+)\.norm1\.", f"{_BLOCK}ln_1."),
    (r"^blocks\.(\d+)\.norm2\.", f"{_BLOCK}ln_2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", f"{_BLOCK}self_attention.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj\.", f"{_BLOCK}self_attention.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", f"{_BLOCK}mlp.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", f"{_BLOCK}mlp.3."),
)


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        new, count = re.subn(pattern, replacement, name)
        if count:
            return new
    return name


def _under(state: State, prefix: str, layout: str, source: Path) -> State:
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not found:
        some = ", ".join(list(state)[:3])
        raise WeightsError(f"{source} does not have the layout '{layout}': no '{prefix}*' in it, but {some}, ...")
    return found


def _refuse(state: State, known: str, source: Path) -> None:
    unknown = [name for name in state if not re.fullmatch(known, name)]
    if unknown:
        raise WeightsError(f"{source} does not fit the network: {listing('unexpected', unknown)}")


def _split(state: State, prefix: str, build: Callable[[State], nn.Module]) -> _Chosen:
    """Part a state dict into backbone and the head under ``prefix``."""
    head = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    backbone = {name: value for name, value in state.items() if not name.startswith(prefix)}
    return _Chosen(backbone, head, build(head))


def _prototypes(backbone: State, head: State, activation: Callable[[], nn.Module], source: Path) -> _Chosen:
    weight = head.get("prototypes.weight")
    if weight is None or weight.dim() != 2:
        raise WeightsError(f"{source} does not fit the network: missing (1): prototypes.weight [K, D]")
    inner = {name.removeprefix("projection."): value for name, value in head.items() if name.startswith("projection.")}
    prototypes = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    return _Chosen(backbone, head, PrototypeHead(_layers(inner, activation), prototypes))


def _layers(state: State, activation: Callable[[], nn.Module]) -> nn.Module:
    """Build the layers that hold these tensors: a linear one, or a sequence of them, norms and activations between.

    Tensors that belong to none of them stay without a place and are told as unexpected.
    """
    if "weight" in state and state["weight"].dim() == 2:
        return _linear(state, "")
    numbers = [int(name.partition(".")[0]) for name in state if name[:1].isdigit()]
    return nn.Sequential(*(_layer(state, f"{index}.", activation) for index in range(max(numbers, default=-1) + 1)))


def _layer(state: State, prefix: str, activation: Callable[[], nn.Module]) -> nn.Module:
    if f"{prefix}running_mean" in state:
        return nn.BatchNorm1d(len(state[f"{prefix}running_mean"]))
    if f"{prefix}weight" in state and state[f"{prefix}weight"].dim() == 2:
        return _linear(state, prefix)
    return activation()


def _linear(state: State, prefix: str) -> nn.Module:
    outputs, inputs = state[f"{prefix}weight"].shape
    return nn.Linear(inputs, outputs, bias=f"{prefix}bias" in state)


def _with_counters(state: State, wanted: list[str]) -> State:
    """Add zeros for the batch counters to a file that has none at all, as it was before PyTorch 0.4.1."""
    if any(name.endswith(_COUNTER) for name in state):
        return state
    return state | {name: torch.tensor(0) for name in wanted if name.endswith(_COUNTER)}
