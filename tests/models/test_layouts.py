"""Public checkpoints: files with their names and shapes, made of torchvision's networks, give their outputs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor, nn

from raydistill.errors import ConfigError, RaydistillError, WeightsError
from raydistill.models import imagenet
from raydistill.models.layouts import load_layout, save_prototypes
from raydistill.models.loading import build_described
from raydistill.models.taps import Tapped
from raydistill.models.weights import weights_fingerprint
from raydistill.models.zoo import build_model, names
from raydistill.network_config import TeacherConfig
from tests.models.published import State, dino, dino_head, moco, swav, timm, without_classifier


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return _resnet50()


def _resnet50() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network: nn.Module = models.resnet50(weights=None).eval()
    return network


def _features(network: nn.Module, images: Tensor) -> Tensor:
    """What torchvision's own network computes in front of its classifier."""
    kept: list[Tensor] = []
    with torch.no_grad(), network.get_submodule("fc").register_forward_pre_hook(lambda _, x: kept.append(x[0])):
        network(images)
    return kept[0]


def _loaded(path: Path, content: Any, model: str, layout: str, classes: int = 3, **given: Any) -> Tapped:
    torch.save(content, path / "w.pth.tar")
    config = TeacherConfig(model=model, weights=str(path / "w.pth.tar"), layout=layout, **given)  # type: ignore[arg-type]
    return build_described(config, classes, 3, layout=config.layout).eval()


def _run(model: Tapped, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return model(images)


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_moco_v2(tmp_path: Path, resnet: nn.Module) -> None:
    head = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
    found = _run(_loaded(tmp_path, moco(resnet, head), "torchvision/resnet50", "moco_v2"), IMAGES)
    torch.testing.assert_close(found["embedding"], _features(resnet, IMAGES))
    torch.testing.assert_close(found["logits"], head(found["embedding"]))


def test_swav(tmp_path: Path, resnet: nn.Module) -> None:
    head = nn.Sequential(nn.Linear(2048, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, 128)).eval()
    prototypes = F.normalize(torch.randn(3000, 128), dim=1)
    content = swav(resnet, head, prototypes)
    model = _loaded(tmp_path, content, "torchvision/resnet50", "swav", taps={"embedding": "fc.projection"})
    found = _run(model, IMAGES)
    projected = head(_features(resnet, IMAGES))
    torch.testing.assert_close(found["embedding"], projected)
    torch.testing.assert_close(found["logits"], F.normalize(projected, dim=1) @ prototypes.T)
    assert torch.equal(model.get_parameter("fc.prototypes.weight"), prototypes)
    assert save_prototypes(tmp_path / "w.pth.tar", "swav", tmp_path / "p.safetensors") == (3000, 128)
    assert torch.equal(load_file(tmp_path / "p.safetensors")["prototypes.weight"], prototypes)
    with pytest.raises(ConfigError, match="'moco_v2' has no prototypes"):
        save_prototypes(tmp_path / "w.pth.tar", "moco_v2", tmp_path / "p.safetensors")


def _dino_scores(head: State, embedding: Tensor, *, norm: bool) -> Tensor:
    numbers = (0, 3, 6) if norm else (0, 2, 4)
    hidden = embedding
    for position, number in enumerate(numbers):
        hidden = F.linear(hidden, head[f"mlp.{number}.weight"], head[f"mlp.{number}.bias"])
        if position < 2:
            if norm:
                named = [head[f"mlp.{number + 1}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
                hidden = F.batch_norm(hidden, *named)
            hidden = F.gelu(hidden)
    direction = head["last_layer.weight_v"]
    return F.normalize(hidden, dim=1) @ (head["last_layer.weight_g"] * direction / direction.norm(dim=1)[:, None]).T


def test_dino_resnet50(tmp_path: Path, resnet: nn.Module) -> None:
    head = dino_head(2048, norm=True)
    content = dino(without_classifier(resnet), head)
    found = _run(_loaded(tmp_path, content, "torchvision/resnet50", "dino"), IMAGES)
    torch.testing.assert_close(found["embedding"], _features(resnet, IMAGES))
    torch.testing.assert_close(found["logits"], _dino_scores(head, found["embedding"], norm=True))
    assert save_prototypes(tmp_path / "w.pth.tar", "dino", tmp_path / "p.safetensors") == (512, 256)
    expected = F.normalize(head["last_layer.weight_v"], dim=1)
    torch.testing.assert_close(load_file(tmp_path / "p.safetensors")["prototypes.weight"], expected)


def test_dino_resnet50_without_head(tmp_path: Path, resnet: nn.Module) -> None:
    found = _run(_loaded(tmp_path, without_classifier(resnet), "torchvision/resnet50", "dino"), IMAGES)
    torch.testing.assert_close(found["embedding"], _features(resnet, IMAGES))
    assert torch.equal(found["embedding"], found["logits"])
    with pytest.raises(WeightsError, match="a backbone without head"):
        save_prototypes(tmp_path / "w.pth.tar", "dino", tmp_path / "p.safetensors")


def _timm_forward(state: State, images: Tensor) -> Tensor:
    """A vision transformer written down once more from the names of timm: 12 layers, 6 heads, width 384."""
    patches = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    tokens = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    tokens = tokens + state["pos_embed"]

    def norm(name: str, values: Tensor) -> Tensor:
        return F.layer_norm(values, (384,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, state[f"{name}.weight"], state[f"{name}.bias"])

    for block in (f"blocks.{index}" for index in range(12)):
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens))
        query, key, value = qkv.unflatten(2, (3, 6, 64)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + linear(f"{block}.attn.proj", attended)
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens)))
        tokens = tokens + linear(f"{block}.mlp.fc2", hidden)
    return norm("norm", tokens)[:, 0]


def test_dino_deit_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = timm(without_classifier(build_model("deit_small_16", 3), "heads."))
    backbone = {name: value + 0.02 * torch.randn_like(value) for name, value in backbone.items()}
    assert backbone["blocks.11.attn.qkv.weight"].shape == (1152, 384)
    assert backbone["pos_embed"].shape == (1, 197, 384)
    head = dino_head(384, norm=False)
    images = torch.randn(2, 3, 224, 224)
    expected = _timm_forward(backbone, images)
    found = _run(_loaded(tmp_path, dino(backbone, head), "deit_small_16", "dino"), images)
    torch.testing.assert_close(found["embedding"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["logits"], _dino_scores(head, found["embedding"], norm=False))
    bare = _run(_loaded(tmp_path, backbone, "deit_small_16", "dino"), images)
    assert torch.equal(bare["embedding"], found["embedding"])


def test_simclr_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter's file of the network that is twice as wide; four times takes 1.5 GB."""
    torch.manual_seed(0)
    source = imagenet.wide_resnet50(1000, width=2).eval()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "resnet50-2x.pth")
    network = imagenet.wide_resnet50(3, width=2)
    load_layout(network, tmp_path / "resnet50-2x.pth", "simclr")
    found = _run(network.eval(), IMAGES)
    assert found["logits"].shape == (2, 1000)
    assert found["embedding"].shape == (2, 4096)
    torch.testing.assert_close(found["embedding"], _run(source, IMAGES)["embedding"])


@pytest.mark.parametrize("counters", [True, False])
def test_torchvision(tmp_path: Path, resnet: nn.Module, counters: bool) -> None:
    state = {k: v for k, v in resnet.state_dict().items() if counters or not k.endswith("num_batches_tracked")}
    found = _run(_loaded(tmp_path, state, "torchvision/resnet50", "torchvision"), IMAGES)
    torch.testing.assert_close(found["logits"], resnet(IMAGES).detach())


def test_torchvision_files_with_old_names(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    network = models.densenet121(weights=None).eval()
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    found = _run(_loaded(tmp_path, state, "torchvision/densenet121", "torchvision"), IMAGES)
    torch.testing.assert_close(found["logits"], network(IMAGES).detach())


@pytest.mark.parametrize("name", names())
def test_crd(tmp_path: Path, name: str) -> None:
    """Names, order and shapes of our networks are those of the benchmark: see test_golden_models.py."""
    source = build_model(name, 100)
    content = {
        "opt": argparse.Namespace(model=name),
        "model": source.state_dict(),
        "best_acc": torch.tensor(70.0),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}},
    }
    model = _loaded(tmp_path, content, name, "crd", classes=100)
    assert weights_fingerprint(model) == weights_fingerprint(source)


def _drop(name: str) -> Callable[[State], None]:
    def edit(state: State) -> None:
        del state[name]

    return edit


def _put(name: str, *shape: int) -> Callable[[State], None]:
    def edit(state: State) -> None:
        state[name] = torch.zeros(shape)

    return edit


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (_drop("module.encoder_q.layer1.0.conv1.weight"), "missing (1): layer1.0.conv1.weight"),
        (_drop("module.encoder_q.bn1.num_batches_tracked"), "missing (1): bn1.num_batches_tracked"),
        (_drop("module.encoder_q.fc.2.weight"), "unexpected (1): fc.2.bias"),
        (_put("module.encoder_q.extra", 1), "unexpected (1): extra"),
        (_put("module.predictor.weight", 1), "unexpected (1): predictor.weight"),
        (_put("module.encoder_q.conv1.weight", 64, 3, 3, 3), "wrong shape (1): conv1.weight (64, 3, 3, 3)"),
    ],
)
def test_what_does_not_fit_is_listed_and_changes_nothing(
    tmp_path: Path, resnet: nn.Module, edit: Callable[[State], None], text: str
) -> None:
    head = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
    content = moco(resnet, head)
    edit(content["state_dict"])
    torch.save(content, tmp_path / "w.pth")
    network = build_model("torchvision/resnet50", 3)
    before = weights_fingerprint(network)
    with pytest.raises(WeightsError) as caught:
        load_layout(network, tmp_path / "w.pth", "moco_v2")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert weights_fingerprint(network) == before


@pytest.mark.parametrize(
    ("model", "layout", "content", "text"),
    [
        (
            "torchvision/resnet50",
            "moco_v2",
            {"conv1.weight": torch.zeros(1)},
            "no 'encoder_q.*' in it, but conv1.weight",
        ),
        ("torchvision/resnet50", "swav", {"conv1.weight": torch.zeros(1)}, "no 'projection_head.*' in it"),
        (
            "torchvision/resnet50",
            "swav",
            {"projection_head.weight": torch.zeros(2, 2)},
            "missing (1): prototypes.weight",
        ),
        ("torchvision/resnet50", "dino", {"teacher": {"head.x": torch.zeros(1)}}, "no 'backbone.*' in it"),
        (
            "torchvision/resnet50",
            "dino",
            {"teacher": {"backbone.x": torch.zeros(1), "head.last_layer.weight_g": torch.zeros(1, 1)}},
            "missing (1): last_layer.weight_v in 'head'",
        ),
        ("resnet8", "crd", {"state_dict": {"conv1.weight": torch.zeros(1)}}, "it has no entry 'model'"),
        ("torchvision/resnet50", "crd", {"model": {}}, "belongs to the networks for CIFAR"),
        ("resnet8", "moco_v2", {"x": torch.zeros(1)}, "belongs to networks such as torchvision/resnet50"),
    ],
)
def test_files_and_networks_of_another_layout(tmp_path: Path, model: str, layout: str, content: Any, text: str) -> None:
    with pytest.raises(RaydistillError) as caught:
        _loaded(tmp_path, content, model, layout)
    assert text in str(caught.value)


def test_unknown_layout() -> None:
    with pytest.raises(ConfigError, match="did you mean 'moco_v2'"):
        load_layout(build_model("resnet8", 3), "w.pth", "moco")
