"""The head is found in networks of every family, and the rest of a file goes into a network with a fresh one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raydistill.errors import ConfigError, WeightsError
from raydistill.models.head import build_with_fresh_head, freeze_all_but, head_modules, head_names
from raydistill.models.loading import build_described
from raydistill.models.weights import save_weights
from raydistill.network_config import NetworkConfig

SMALL, LARGE = (1, 16, 16), (3, 224, 224)
LAYERS = {
    "resnet8": (SMALL, "fc"),
    "resnet50_cifar": (SMALL, "linear"),
    "wrn_16_1": (SMALL, "fc"),
    "vgg8": ((1, 32, 32), "classifier"),
    "mobilenet_v2_half": (SMALL, "classifier.0"),
    "shufflenet_v1": (SMALL, "linear"),
    "shufflenet_v2": (SMALL, "linear"),
    "deit_small_16": (LARGE, "heads.head"),
    "torchvision/resnet18": ((3, 64, 64), "fc"),
    "torchvision/vgg11_bn": ((3, 32, 32), "classifier.6"),
    "torchvision/mobilenet_v3_small": ((3, 32, 32), "classifier.3"),
    "torchvision/swin_t": ((3, 64, 64), "head"),
    "timm/vit_tiny_patch16_224": (LARGE, "head"),
    "timm/mobilenetv3_small_050": ((3, 32, 32), "classifier"),
    "tests.models.foreign:convolutions": (SMALL, "fc"),
    "tests.models.foreign:deep_head": (SMALL, "head.6"),
}


@pytest.mark.parametrize("model", LAYERS)
def test_the_head_of_most_networks_is_their_last_layer(model: str) -> None:
    shape, layer = LAYERS[model]
    torch.manual_seed(0)
    network = build_described(NetworkConfig(model=model), 5, shape[0])
    head = head_names(network, shape)
    assert head == {f"{layer}.weight", f"{layer}.bias"}
    *around, last = head_modules(network, head)
    assert last is network.get_submodule(layer)
    assert all(set(module.parameters()) == set(last.parameters()) for module in around)
    assert network.training and all(value.requires_grad for value in network.parameters())
    assert all(value.grad is None for value in network.parameters())


TAPPED = {
    "resnet8": {"embedding": "layer2"},
    "tests.models.foreign:deep_head": {"embedding": "head.0"},
    "timm/vit_tiny_patch16_224": {"embedding": "blocks.10@mean"},
}


@pytest.mark.parametrize("model", TAPPED)
def test_all_behind_a_tapped_embedding_belongs_to_the_head(model: str) -> None:
    """Running statistics and counters, too: whatever becomes of the head, the embedding stays, the logits do not."""
    shape = LAYERS[model][0]
    torch.manual_seed(0)
    network = build_described(NetworkConfig(model=model, taps=TAPPED[model]), 5, shape[0]).eval()
    head, parts = head_names(network, shape), network.state_dict()
    assert len(head) > 2
    buffers = head - dict(network.named_parameters()).keys()
    assert all(name in parts for name in head) and bool(buffers) == (model != "timm/vit_tiny_patch16_224")
    images = torch.randn(2, *shape)
    before = _seen(network, images)
    _perturb(network, head)
    after = _seen(network, images)
    assert torch.equal(before["embedding"], after["embedding"])
    assert not torch.equal(before["logits"], after["logits"])
    for module in head_modules(network, head):
        module.train()
    assert torch.equal(_seen(network, images)["embedding"], before["embedding"])


def test_buffers_without_parameters_go_with_the_module_around_them() -> None:
    network = build_described(NetworkConfig(model="tests.models.foreign:deep_head"), 5, 1)
    tapped = build_described(NetworkConfig(model="tests.models.foreign:deep_head", taps={"embedding": "body"}), 5, 1)
    statistics = {f"head.{index}.{name}" for index in (2, 4) for name in ("running_mean", "running_var")}
    assert statistics <= head_names(tapped, SMALL)
    assert statistics.isdisjoint(head_names(network, SMALL))
    assert "body.2.running_mean" not in head_names(tapped, SMALL)


def test_a_network_without_a_head_is_told() -> None:
    network = build_described(NetworkConfig(model="tests.models.foreign:backbone"), 5, 3)
    with pytest.raises(ConfigError, match="the network has no head"):
        head_names(network, (3, 16, 16))


def test_what_the_user_froze_stays_frozen_and_all_else_but_the_head_is() -> None:
    network = build_described(NetworkConfig(model="resnet8"), 5, 1)
    network.get_parameter("fc.bias").requires_grad_(False)
    freeze_all_but(network, head_names(network, SMALL))
    assert [name for name, value in network.named_parameters() if value.requires_grad] == ["fc.weight"]


@pytest.mark.parametrize("model", ["resnet8", "torchvision/mobilenet_v3_small", "tests.models.foreign:deep_head"])
def test_a_fresh_head_stands_on_the_weights_of_a_file(tmp_path: Path, model: str) -> None:
    """It is what a network of its own, built from the same random state, would begin with."""
    shape, layer = (1, 32, 32), LAYERS[model][1]
    torch.manual_seed(0)
    source = build_described(NetworkConfig(model=model), 10, shape[0])
    _perturb(source, source.state_dict())
    save_weights(source, tmp_path / "source.safetensors")
    torch.manual_seed(1)
    fresh = build_described(NetworkConfig(model=model), 4, shape[0])
    torch.manual_seed(1)
    config = NetworkConfig(model=model, weights=str(tmp_path / "source.safetensors"))
    found = build_with_fresh_head(config, 4, shape).state_dict()
    for name, value in found.items():
        origin = fresh if name.startswith(f"{layer}.") else source
        assert torch.equal(value, origin.state_dict()[name]), name
    assert found[f"{layer}.weight"].shape[0] == 4


def test_the_rest_of_the_file_has_to_fit(tmp_path: Path) -> None:
    path = tmp_path / "source.safetensors"
    save_weights(build_described(NetworkConfig(model="resnet8"), 10, 3), path)
    with pytest.raises(WeightsError, match=r"wrong shape \(1\): conv1.weight \(16, 3, 3, 3\)"):
        build_with_fresh_head(NetworkConfig(model="resnet8", weights=str(path)), 4, SMALL)
    with pytest.raises(WeightsError, match=r"missing \(\d+\): "):
        build_with_fresh_head(NetworkConfig(model="resnet14", weights=str(path)), 4, (3, 16, 16))


def _seen(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        found: dict[str, Tensor] = network(images, ("logits", "embedding"))
    return found


@torch.no_grad()
def _perturb(network: nn.Module, names: object) -> None:
    for name, value in network.state_dict().items():
        if name in names and value.is_floating_point():  # type: ignore[operator]
            value.add_(0.5 + torch.rand_like(value))
