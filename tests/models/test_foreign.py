"""Networks of the user's own code, and outputs taken at modules of the user's choice."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from raydistill.errors import ConfigError
from raydistill.models.loading import build_described
from raydistill.models.taps import Tapped
from raydistill.models.weights import weights_fingerprint
from raydistill.models.zoo import build_model
from raydistill.network_config import NetworkConfig, TeacherConfig

HERE = "tests.models.foreign"


def tapped(model: str, taps: dict[str, str], classes: int = 4) -> Tapped:
    return build_described(NetworkConfig(model=model, taps=taps), classes, 3).eval()


def test_a_function_gives_the_network() -> None:
    torch.manual_seed(0)
    model = build_model(f"{HERE}:convolutions", 5, in_channels=2).eval()
    images = torch.randn(3, 2, 8, 8)
    found = model(images)
    assert found["logits"].shape == (3, 5)
    assert found["embedding"].shape == (3, 8)
    torch.testing.assert_close(model.get_submodule("fc")(found["embedding"]), found["logits"])
    assert model.output_names() == ("logits", "embedding")
    assert build_model(f"{HERE}:without_parameters", 5)(torch.randn(2, 3, 8, 8))["logits"].shape == (2, 7)


def test_without_a_linear_layer_the_output_is_the_embedding() -> None:
    found = build_model(f"{HERE}:backbone", 5)(torch.randn(2, 3, 8, 8))
    assert found["embedding"].shape == (2, 5)
    assert torch.equal(found["logits"], found["embedding"])


def test_a_module_beside_the_experiment_is_told_how_to_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("beside_it.py").write_text("def build(): ...\n")
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry not in ("", ".")])
    with pytest.raises(ConfigError, match=r"`PYTHONPATH=\. raydistill"):
        build_model("beside_it:build", 5)


def test_modules_of_python_itself_are_not_proposed() -> None:
    with pytest.raises(ConfigError) as caught:
        build_model("fnmatchh:build", 5)
    assert "fnmatch'" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tests.models.forein:convolutions", "no module 'tests.models.forein'; did you mean 'tests.models.foreign'"),
        ("no_such_package_at_all:f", "no module 'no_such_package_at_all'"),
        (f"{HERE}:convolution", "no 'convolution'; did you mean 'convolutions'"),
        (f"{HERE}:constant", "it is int, not a function"),
        (f"{HERE}:no_network", "returned int, not a torch.nn.Module"),
        ("not a name:f", "is named package.module:function"),
        ("a:", "is named package.module:function"),
    ],
)
def test_wrong_functions(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, 5)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_taps_of_a_convolutional_network() -> None:
    plain = build_model("torchvision/resnet18", 4)
    model = tapped("torchvision/resnet18", {"embedding": "layer3", "features/9": "layer4", "features/0": "layer1.0"})
    model.load_state_dict(plain.state_dict())
    names = ("embedding", "features/9", "features/0", "features/4", "logits")
    images = torch.randn(2, 3, 64, 64)
    found, expected = model(images, names), plain.eval()(images, ("logits", "features/3", "features/4"))
    assert tuple(found) == names
    assert "features/9" in model.output_names()
    assert torch.equal(found["logits"], expected["logits"])
    assert torch.equal(found["embedding"], expected["features/3"].mean(dim=(2, 3)))
    assert torch.equal(found["features/9"], expected["features/4"])
    assert found["features/0"].shape == (2, 64, 16, 16)
    assert model.shapes((3, 64, 64))["embedding"] == (256,)


def test_taps_of_a_network_in_stages_and_modes() -> None:
    model = tapped("resnet8", {"features/1": "layer1.0.conv1"})
    assert weights_fingerprint(model) == weights_fingerprint(copy.deepcopy(model))
    assert model(torch.randn(2, 3, 16, 16), ("features/1", "preact/1"))["features/1"].shape == (2, 16, 16, 16)
    before = model.get_buffer("bn1.running_mean").clone()
    copy.deepcopy(model).train()(torch.randn(2, 3, 16, 16))
    assert torch.equal(before, model.get_buffer("bn1.running_mean"))
    assert all(not part.training for part in model.modules())
    model.train()(torch.randn(2, 3, 16, 16))
    assert not torch.equal(before, model.get_buffer("bn1.running_mean"))


def test_tokens_become_class_token_mean_or_map() -> None:
    torch.manual_seed(0)
    block = "encoder.layers.encoder_layer_2"
    plain = build_model("deit_small_16", 4).eval()
    kept: list[torch.Tensor] = []
    plain.get_submodule(block).register_forward_hook(lambda _, __, output: kept.append(output))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        plain(images, ("logits",))
        for how, expected in (("", kept[0][:, 0]), ("@cls", kept[0][:, 0]), ("@mean", kept[0][:, 1:].mean(dim=1))):
            model = tapped("deit_small_16", {"embedding": block + how, "features/1": block})
            model.load_state_dict(plain.state_dict())
            found = model(images, ("embedding", "features/1"))
            torch.testing.assert_close(found["embedding"], expected)
    assert found["features/1"].shape == (2, 384, 14, 14)
    assert torch.equal(found["features/1"][:, :, 1, 2], kept[0][:, 1 + 14 + 2])


@pytest.mark.parametrize(
    ("model", "taps", "text"),
    [
        ("torchvision/resnet18", {"embedding": "layer5"}, "no module of that path; did you mean 'layer"),
        (f"{HERE}:convolutions", {"embedding": "relu"}, "runs 2 times"),
        (f"{HERE}:convolutions", {"embedding": "pair"}, "runs 0 times"),
        (f"{HERE}:convolutions", {"features/1": "fc"}, "[2, 4], which are not maps"),
        (f"{HERE}:overwriting", {"features/1": "0"}, "is overwritten later"),
        ("torchvision/vit_b_32", {"embedding": "encoder.layers.encoder_layer_0.self_attention"}, "no tensor but tuple"),
    ],
)
def test_taps_that_cannot_be(model: str, taps: dict[str, str], text: str) -> None:
    size = 224 if "vit" in model else 8
    with pytest.raises(ConfigError) as caught:
        tapped(model, taps)(torch.randn(2, 3, size, size), list(taps))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("taps", "text"),
    [
        ({"logits": "fc"}, "taps.logits: the outputs that can be tapped"),
        ({"embedding": "fc@max"}, "with @cls or @mean behind it"),
        ({"features/0": "layer1@mean"}, "with @cls or @mean behind it"),
    ],
)
def test_wrong_taps_are_told_with_the_configuration(taps: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError, match="taps") as caught:
        NetworkConfig(model="resnet8", taps=taps)
    assert text in str(caught.value)


def test_a_layout_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'weights'"):
        TeacherConfig(model="torchvision/resnet50", layout="moco_v2")


def test_networks_of_the_papers_have_names() -> None:
    with torch.device("meta"):
        wide = build_model("resnet50x4", 1000)
    state = wide.state_dict()
    assert state["conv1.weight"].shape == (256, 3, 7, 7)
    assert state["layer1.0.conv1.weight"].shape == (256, 256, 1, 1)
    assert state["layer1.0.downsample.0.weight"].shape == (1024, 256, 1, 1)
    assert state["layer4.2.conv3.weight"].shape == (8192, 2048, 1, 1)
    backbone = sum(value.numel() for name, value in wide.named_parameters() if not name.startswith("fc."))
    assert round(backbone / 1e6) == 375
    assert build_model("torchvision/alexnet", 4).shapes((3, 224, 224))["embedding"] == (4096,)
    small = build_model("deit_small_16", 1000)
    assert sum(parameter.numel() for parameter in small.parameters()) == 22050664
    assert isinstance(build_model("deit_small_16", 4, in_channels=1).get_submodule("conv_proj"), nn.Conv2d)
