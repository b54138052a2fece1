"""Costs of networks; multiply-adds of the CIFAR networks are compared with the reference in tests/models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from raydistill.evaluation.cost import latency, mult_adds, parameter_count, peak_memory, peak_on_cpu, weight_bytes
from raydistill.models.weights import save_weights
from raydistill.models.zoo import build_model


def test_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
    )
    assert parameter_count(model) == 6 * 2 * 9 + 6 + 12 + 96 * 5 + 5
    assert mult_adds(model, (4, 8, 8)) == 6 * 4 * 4 * 2 * 9 + 96 * 5


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(4, 4)
    assert parameter_count(nn.Sequential(layer, layer)) == 20


def test_networks_of_torchvision() -> None:
    resnet = build_model("torchvision/resnet18", num_classes=1000)
    assert parameter_count(resnet) == 11_689_512
    assert mult_adds(resnet, (3, 224, 224)) == 1_814_073_344
    transformer = build_model("torchvision/vit_b_16", num_classes=1000)
    tokens, width, layers = 197, 768, 12
    projections = layers * tokens * 12 * width * width
    assert mult_adds(transformer, (3, 224, 224)) == projections + 196 * width * 3 * 256 + width * 1000


def test_measuring_changes_nothing() -> None:
    model = build_model("resnet8", num_classes=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mult_adds(model, (3, 32, 32))
    latency(model, (3, 32, 32), repeats=1)
    peak_memory(model, (3, 32, 32), 1)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_latency() -> None:
    model = build_model("resnet8", num_classes=4)
    found = latency(model, (3, 32, 32), batch_size=2, repeats=4)
    assert 0 < found["p50_ms"] <= found["p95_ms"]
    with pytest.raises(ValueError, match="repeats"):
        latency(model, (3, 32, 32), repeats=0)


def test_weights_take_what_their_file_does_without_its_header(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2).half())
    assert weight_bytes(model) == 4 * (3 * 4 * 9 + 4 * 4) + 8 + 2 * (4 * 2 + 2)
    shared = nn.Sequential(model[3], model[3])
    for number, each in enumerate((model, shared)):
        path = tmp_path / f"{number}.safetensors"
        save_weights(each, path)
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size == 8 + header + weight_bytes(each)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_linear_layer_holds_its_output(batch_size: int) -> None:
    flat = nn.Flatten()
    assert peak_memory(nn.Sequential(flat, nn.Linear(48, 32)), (3, 4, 4), batch_size) == batch_size * 32 * 4


def test_a_pass_holds_two_neighbouring_outputs_at_once() -> None:
    """Of widths 64, 256, 8 and 128 the second layer holds most: its input and its output."""
    layers = [nn.Linear(12, 64), nn.Linear(64, 256), nn.Linear(256, 8), nn.Linear(8, 128)]
    model = nn.Sequential(nn.Flatten(), *layers).double()
    assert peak_memory(model, (3, 2, 2), 10) == 10 * (64 + 256) * 8


def test_what_a_call_frees_is_not_held() -> None:
    def call() -> None:
        for _ in range(3):
            torch.zeros(1000)

    assert peak_on_cpu(call) == 4000
    with pytest.raises(ValueError, match="batch_size"):
        peak_memory(nn.Linear(1, 1), (1, 1, 1), 0)
