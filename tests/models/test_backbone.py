"""Networks under a detector: which maps, which weights are trained, and what stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raydistill.errors import ConfigError
from raydistill.models.backbone import PyramidBackbone, backbone_of
from raydistill.models.zoo import build_model, names


@pytest.mark.parametrize("name", [*names(), "torchvision/resnet18", "torchvision/mobilenet_v3_small"])
def test_maps_are_what_the_backbone_says_of_them(name: str) -> None:
    body = backbone_of(build_model(name, 5), side=64).eval()
    with torch.no_grad():
        maps = body(torch.randn(2, 3, 96, 64))
    assert tuple(maps) == body.names and 1 <= len(maps) <= 4
    assert [each.shape[1] for each in maps.values()] == list(body.out_channels)
    assert [tuple(each.shape[2:]) for each in maps.values()] == [(96 // s, 64 // s) for s in body.strides]
    assert sorted({*body.strides}) == list(body.strides)


def test_of_stages_with_one_stride_the_last_is_taken_and_of_strides_the_coarsest() -> None:
    network = build_model("resnet8", 5)
    body = backbone_of(network, side=64)
    assert (body.names, body.strides) == (("features/1", "features/2", "features/3"), (1, 2, 4))
    assert backbone_of(network, side=64, levels=2).names == ("features/2", "features/3")
    imagenet = backbone_of(build_model("torchvision/resnet18", 5))
    assert (imagenet.strides, imagenet.out_channels) == ((4, 8, 16, 32), (64, 128, 256, 512))


def test_the_maps_are_those_of_the_network_and_no_weight_changes() -> None:
    network = build_model("resnet8", 5, in_channels=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    body = backbone_of(network, 1, side=32).eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        wanted = network(images, body.names)
        found = body(images)
    assert all(torch.equal(found[name], wanted[name]) for name in body.names)
    after = body.network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def trained(body: nn.Module) -> set[str]:
    return {name for name, weight in body.network.named_parameters() if weight.requires_grad}  # type: ignore[union-attr, operator]


def test_frozen_stages_batch_norms_and_the_classifier_are_not_trained() -> None:
    def at(stages: int, **options: bool) -> set[str]:
        return trained(backbone_of(build_model("torchvision/resnet18", 5), side=64, frozen_stages=stages, **options))

    everything, network = at(0), build_model("torchvision/resnet18", 5)
    norms = {
        f"{path}.{name}"
        for path, part in network.named_modules()
        if isinstance(part, nn.BatchNorm2d)
        for name, _ in part.named_parameters()
    }
    names = {name for name, _ in network.named_parameters()}
    assert everything == names - norms - {"fc.weight", "fc.bias"}
    assert at(0, train_batch_norm=True) == names - {"fc.weight", "fc.bias"}
    assert at(2) == {name for name in everything if name.startswith(("layer2", "layer3", "layer4"))}
    assert at(2, train_batch_norm=True) & norms == {
        name for name in norms if name.startswith(("layer2", "layer3", "layer4"))
    }
    assert at(5) == set()


@pytest.mark.parametrize(("train_batch_norm", "changed"), [(False, set()), (True, {"bn2", "bn3"})])
def test_a_frozen_batch_norm_keeps_its_statistics(train_batch_norm: bool, changed: set[str]) -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for number in (1, 2, 3):
                setattr(self, f"conv{number}", nn.Conv2d(3, 3, 3, stride=2, padding=1))
                setattr(self, f"bn{number}", nn.BatchNorm2d(3))
            self.fc = nn.Linear(3, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for number in (1, 2, 3):
                images = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(images))
            return self.fc(images.mean(dim=(2, 3)))  # type: ignore[no-any-return]

    from raydistill.models.hooked import HookedNetwork

    network = HookedNetwork(Three(), "fc", (3, 64, 64))
    body = backbone_of(network, side=64, frozen_stages=1, train_batch_norm=train_batch_norm).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    body(torch.randn(4, 3, 64, 64))
    found = {name.split(".")[0] for name, value in network.named_buffers() if not torch.equal(value, before[name])}
    assert found == changed


def test_a_pyramid_has_one_more_map_of_half_the_size() -> None:
    pyramid = PyramidBackbone(backbone_of(build_model("resnet8", 5), side=64), 16).eval()
    with torch.no_grad():
        maps = pyramid(torch.randn(1, 3, 64, 48))
    assert pyramid.strides == (1, 2, 4, 8) and pyramid.out_channels == 16
    sizes = [tuple(each.shape) for each in maps.values()]
    assert sizes == [(1, 16, 64 // stride, 48 // stride) for stride in pyramid.strides]


def _pooled_only(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, num_classes))


def test_what_cannot_be_a_backbone_is_told_in_a_line() -> None:
    from raydistill.models.hooked import HookedNetwork

    with pytest.raises(ConfigError, match=r"no features/<i>; name modules in student.taps"):
        backbone_of(HookedNetwork(_pooled_only(5), "1", None), side=64)
    with pytest.raises(ConfigError, match=r"frozen stages: 5, but the network has 4"):
        backbone_of(build_model("resnet8", 5), side=64, frozen_stages=5)
    with pytest.raises(ConfigError, match="levels: 0, but a detector needs one map"):
        backbone_of(build_model("resnet8", 5), side=64, levels=0)
    with pytest.raises(ConfigError, match="the network takes none of 3 x 256 x 256") as error:
        backbone_of(build_model("torchvision/vit_b_32", 5))
    assert "\n" not in str(error.value)
