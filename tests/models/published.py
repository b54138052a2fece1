"""Checkpoints with the names and shapes of published ones, made of networks whose weights may be anything."""

from __future__ import annotations

import argparse
import re
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def without_classifier(network: nn.Module, classifier: str = "fc.") -> State:
    return {name: value for name, value in network.state_dict().items() if not name.startswith(classifier)}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def moco(network: nn.Module, head: nn.Module) -> dict[str, Any]:
    query = without_classifier(network) | prefixed("fc.", head.state_dict())
    state = prefixed("module.encoder_q.", query) | prefixed("module.encoder_k.", query)
    state |= {"module.queue": torch.zeros(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}, "param_groups": [{}]}}


def swav(network: nn.Module, head: nn.Module, prototypes: Tensor) -> State:
    state = (
        without_classifier(network)
        | prefixed("projection_head.", head.state_dict())
        | {"prototypes.weight": prototypes}
    )
    return prefixed("module.", state)


def dino_head(width: int, *, norm: bool, outputs: int = 512) -> State:
    """The names of the published head, whose last layer is parametrised by length and direction."""
    linear = [nn.Linear(width, 2048), nn.Linear(2048, 2048), nn.Linear(2048, 256)]
    norms = [nn.BatchNorm1d(2048), nn.BatchNorm1d(2048)]
    layers: list[nn.Module] = []
    for index, layer in enumerate(linear):
        layers.append(layer)
        if index < 2:
            layers += [norms[index], nn.GELU()] if norm else [nn.GELU()]
    state = prefixed("mlp.", nn.Sequential(*layers).state_dict())
    return state | {"last_layer.weight_g": torch.ones(outputs, 1), "last_layer.weight_v": torch.randn(outputs, 256)}


def dino(backbone: State, head: State) -> dict[str, Any]:
    both = prefixed("backbone.", backbone) | prefixed("head.", head)
    return {
        "student": prefixed("module.", both),
        "teacher": both,
        "optimizer": {"state": {}},
        "epoch": 400,
        "args": argparse.Namespace(arch="resnet50", lr=0.3),
        "dino_loss": {"center": torch.zeros(1, 512)},
    }


_TO_TIMM = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)


def timm(state: State) -> State:
    renamed = {}
    for name, value in state.items():
        timm_name = name
        for pattern, replacement in _TO_TIMM:
            timm_name = re.sub(pattern, replacement, timm_name)
        renamed[timm_name] = value
    return renamed
