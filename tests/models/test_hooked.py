"""Networks of torchvision and timm behind the same face; each is built with fresh weights."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from raydistill.errors import ConfigError
from raydistill.models.loading import build_described
from raydistill.models.weights import load_weights
from raydistill.models.zoo import build_model
from raydistill.network_config import NetworkConfig

_EXPECTED = {
    "torchvision/resnet18": [(64, 112), (64, 56), (128, 28), (256, 14), (512, 7)],
    "torchvision/mobilenet_v3_small": [(16, 112), (16, 56), (24, 28), (48, 14), (576, 7)],
    "torchvision/vit_b_16": [(768, 14)],
    "torchvision/swin_t": [(96, 56), (192, 28), (384, 14), (768, 7)],
    "torchvision/vgg11_bn": [(64, 224), (128, 112), (256, 56), (512, 28), (512, 14), (512, 7)],
    "torchvision/densenet121": [(64, 112), (256, 56), (512, 28), (1024, 14), (1024, 7)],
    "torchvision/convnext_tiny": [(96, 56), (192, 28), (384, 14), (768, 7)],
    "torchvision/efficientnet_b0": [(16, 112), (24, 56), (40, 28), (112, 14), (1280, 7)],
    "torchvision/shufflenet_v2_x0_5": [(24, 112), (24, 56), (48, 28), (96, 14), (1024, 7)],
}
_WIDTHS = {"torchvision/vgg11_bn": 4096, "torchvision/mobilenet_v3_small": 1024}


@pytest.mark.parametrize("name", _EXPECTED)
def test_outputs(name: str) -> None:
    model = build_model(name, num_classes=5).eval()
    expected = _EXPECTED[name]
    assert model.output_names() == (
        "logits",
        "embedding",
        *(f"features/{index}" for index in range(len(expected))),
    )
    with torch.no_grad():
        found = model(torch.randn(2, 3, 224, 224), model.output_names())
    assert [tuple(found[f"features/{i}"].shape) for i in range(len(expected))] == [
        (2, channels, side, side) for channels, side in expected
    ]
    width = _WIDTHS.get(name, expected[-1][0])
    assert found["embedding"].shape == (2, width)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(linear(found["embedding"]), found["logits"])


def test_small_and_oblong_images() -> None:
    model = build_model("torchvision/resnet18", num_classes=5)
    shapes = model.shapes((3, 32, 64))
    assert shapes["features/4"] == (512, 1, 2)
    assert shapes["embedding"] == (512,)


def test_parameters_keep_the_names_of_the_library(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    original = models.resnet18(weights=None, num_classes=5)
    torch.save(original.state_dict(), tmp_path / "resnet18.pth")
    model = build_model("torchvision/resnet18", num_classes=5)
    load_weights(model, tmp_path / "resnet18.pth")
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in original.named_parameters()]
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(images)["logits"], original.eval()(images))


def test_the_pass_ends_where_enough_is_known() -> None:
    model = build_model("torchvision/resnet18", num_classes=5).train()
    ran: list[str] = []
    for path in ("layer2", "layer3", "fc"):
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.append(path))
    model.output_names()
    ran.clear()
    model(torch.randn(2, 3, 64, 64), ("features/2",))
    assert ran == ["layer2"]
    ran.clear()
    model(torch.randn(2, 3, 64, 64), ("embedding",))
    assert ran == ["layer2", "layer3"]


def test_mode_copies_moves_and_gradients() -> None:
    model = build_model("torchvision/mobilenet_v3_small", num_classes=5).train()
    copied = copy.deepcopy(model).double().eval()
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    found = copied(torch.randn(1, 3, 64, 64, dtype=torch.float64), copied.output_names())
    assert found["features/4"].dtype == torch.float64
    sum(value.square().mean() for value in found.values()).backward()
    assert all(parameter.grad is not None for parameter in copied.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_follows_the_mode_given_to_the_wrapper() -> None:
    model = build_model("torchvision/vit_b_16", num_classes=5)
    assert model.eval().train().training
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/googlenet", "torchvision/swin_t"])
def test_one_channel(name: str) -> None:
    model = build_model(name, num_classes=4, in_channels=1).eval()
    assert model(torch.randn(1, 1, 224, 224))["logits"].shape == (1, 4)


def test_a_network_without_linear_classifier_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not end in a linear classifier"):
        build_model("torchvision/squeezenet1_0", num_classes=4)


def test_a_pickled_network_is_the_same() -> None:
    model = build_model("torchvision/resnet18", num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    model(images, ("features/1",))
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(images)["embedding"], model(images)["embedding"])


@pytest.mark.parametrize(("name", "size"), [("resnet10t", 64), ("convnext_atto", 64), ("vit_tiny_patch16_224", 224)])
def test_networks_of_timm_give_what_timm_gives(name: str, size: int, tmp_path: Path) -> None:
    theirs = timm.create_model(name, num_classes=4).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    config = NetworkConfig(model=f"timm/{name}", weights=str(tmp_path / "weights.pt"))
    ours = build_described(config, 4, 3).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        maps = theirs.forward_features(images)
        found = ours(images, ("logits", "embedding"))
        assert torch.equal(found["logits"], theirs(images))
        assert torch.equal(found["embedding"], theirs.forward_head(maps, pre_logits=True))
    assert found["embedding"].shape[1] == theirs.num_features


def test_timm_has_no_such_network() -> None:
    with pytest.raises(ConfigError, match="timm has no network 'resnet19'; did you mean 'resnet18'"):
        build_model("timm/resnet19", num_classes=4)


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install raydistill\[timm\]"):
        build_model("timm/resnet18", num_classes=4)
