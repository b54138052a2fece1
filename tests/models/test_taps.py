"""Named outputs: only what was asked for is computed, and nothing of the network changes by asking."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from raydistill.errors import ConfigError
from raydistill.models.zoo import build_model, names


def _count_calls(layer: nn.Module) -> list[int]:
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("name", names())
def test_one_channel_and_small_images(name: str) -> None:
    model = build_model(name, num_classes=7, in_channels=1).eval()
    with torch.no_grad():
        found = model(torch.randn(2, 1, 8, 8), model.output_names())
    assert found["logits"].shape == (2, 7)
    assert all(bool(torch.isfinite(value).all()) for value in found.values())
    assert {key: tuple(value.shape[1:]) for key, value in found.items()} == model.shapes((1, 8, 8))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenet_v2_half", "shufflenet_v2"])
@pytest.mark.parametrize("size", [(28, 28), (64, 64), (33, 20)])
def test_other_sizes(name: str, size: tuple[int, int]) -> None:
    model = build_model(name, num_classes=3).eval()
    assert model(torch.randn(1, 3, *size))["logits"].shape == (1, 3)


def test_vgg_halves_a_fourth_time_on_large_images() -> None:
    model = build_model("vgg8", num_classes=3)
    assert model.shapes((3, 32, 32))["features/4"] == (512, 4, 4)
    assert model.shapes((3, 64, 64))["features/4"] == (512, 4, 4)


def test_default_outputs_and_their_order() -> None:
    model = build_model("resnet8", num_classes=5)
    images = torch.randn(2, 3, 16, 16)
    assert list(model(images)) == ["logits", "embedding"]
    assert list(model(images, ("features/2", "embedding"))) == ["features/2", "embedding"]
    assert list(model(images, ["preact/1"])) == ["preact/1"]
    assert model(images, ()) == {}


def test_the_classifier_does_not_run_for_an_embedding() -> None:
    model = build_model("resnet8", num_classes=5)
    classifier = _count_calls(model.get_submodule("fc"))
    model(torch.randn(2, 3, 8, 8), ("embedding",))
    assert not classifier


def test_stages_behind_the_last_named_one_do_not_run() -> None:
    model = build_model("resnet8", num_classes=5)
    second, third = (_count_calls(model.get_submodule(f"layer{index}")) for index in (2, 3))
    model(torch.randn(2, 3, 8, 8), ("features/0", "preact/2"))
    assert len(second) == 1
    assert not third


def test_asking_for_more_changes_no_value_and_no_statistics() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    for name in ("wrn_16_2", "shufflenet_v2", "mobilenet_v2_half"):
        plain = build_model(name, num_classes=5).train()
        asked = copy.deepcopy(plain)
        logits = plain(images, ("logits",))["logits"]
        found = asked(images, asked.output_names())
        assert torch.equal(found["logits"], logits)
        for (key, left), right in zip(plain.state_dict().items(), asked.state_dict().values(), strict=True):
            assert torch.equal(left, right), key


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "shufflenet_v1", "resnet50_cifar"])
def test_features_follow_from_their_preactivations(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=5).train()
    found = model(torch.randn(3, 3, 16, 16), model.output_names())
    if name.startswith("wrn"):
        mean = found["preact/2"].mean(dim=(0, 2, 3))
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    else:
        assert torch.equal(torch.relu(found["preact/2"]), found["features/2"])


@pytest.mark.parametrize("name", ["resnet8", "torchvision/resnet18"])
def test_unknown_output_is_named_with_the_nearest(name: str) -> None:
    model = build_model(name, num_classes=5)
    with pytest.raises(ConfigError, match=r"unknown output 'feature/1'.*features/0.*did you mean 'features/1'"):
        model(torch.randn(1, 3, 32, 32), ("logits", "feature/1"))


def test_one_name_as_text() -> None:
    assert list(build_model("resnet8", 5)(torch.randn(1, 3, 8, 8), "logits")) == ["logits"]


def test_shapes_restore_the_mode_of_every_part() -> None:
    model = build_model("resnet8", num_classes=5).train()
    frozen = model.get_submodule("layer1.0.bn1").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.shapes((3, 32, 32))
    assert model.training
    assert not frozen.training
    assert model.get_submodule("layer2.0.bn1").training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenet_v2_half", "shufflenet_v1", "shufflenet_v2"])
@pytest.mark.parametrize("above", [0, 1])
def test_a_second_end_is_the_upper_part_with_fresh_weights(name: str, above: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=5).train()
    first = len([key for key in model.output_names() if key.startswith("features/")]) - 1 - above
    shared = f"features/{first - 1}"
    shape = model.shapes((3, 16, 16))[shared]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tail = model.tail(first, shape)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    own = {f"network.{key}": value for key, value in model.state_dict().items()}
    drawn = [key for key, value in tail.named_parameters() if value.dim() > 1]
    assert drawn
    assert not any(torch.equal(tail.get_parameter(key), own[key]) for key in drawn)
    deviation = {key: float(tail.get_parameter(key).detach().std() / own[key].std()) for key in drawn}
    assert all(0.5 < ratio < 2.0 for ratio in deviation.values()), deviation

    found = model(torch.randn(4, 3, 16, 16), (shared, "logits"))
    tail(found[shared]).sum().backward()
    assert all(value.grad is not None for value in tail.parameters())
    tail.load_state_dict({key: own[key] for key in tail.state_dict()})
    assert torch.equal(tail.train()(found[shared]), found["logits"])


def test_gradients_flow_through_every_tap() -> None:
    for name in names():
        if name.startswith(("resnet110", "vgg1", "resnet32x4", "resnet50")):
            continue
        model = build_model(name, num_classes=3).train()
        found = model(torch.randn(2, 3, 32, 32), model.output_names())
        sum(value.square().mean() for value in found.values()).backward()
        missing = [key for key, value in model.named_parameters() if value.grad is None]
        assert not missing, (name, missing)
