"""Names of networks, checked without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raydistill.errors import ConfigError
from raydistill.models.zoo import build_model, check_name, names


@pytest.mark.parametrize("name", [*names(), "torchvision/resnet18", "torchvision/vit_b_16", "timm/anything"])
def test_known_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet22", "resnet"),
        ("wrn_40_3", "wrn_40_"),
        ("torchvision/resnet1", "torchvision/resnet1"),
        ("mobilenetv2_half", "mobilenet_v2_half"),
        ("resnet18", "torchvision/resnet18'"),
        ("mobilenet_v3_small", "torchvision/mobilenet_v3_small'"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'; did you mean '{nearest}"):
        check_name(name)


@pytest.mark.parametrize("name", ["", "timm/", "torchvision/", "xyz/resnet18"])
def test_names_without_a_network(name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name)


def test_names_of_torchvision_found_in_its_sources_are_those_it_lists() -> None:
    models = pytest.importorskip("torchvision.models")
    for name in models.list_models(module=models):
        check_name(f"torchvision/{name}")


def test_checking_names_imports_no_heavy_library() -> None:
    code = (
        "import sys; from raydistill.models.zoo import check_name, names; import raydistill.models;"
        "[check_name(n) for n in (*names(), 'torchvision/resnet18', 'timm/resnet18')];"
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'ray', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_own_networks_do_not_import_torchvision() -> None:
    code = (
        "import sys; from raydistill.models.zoo import build_model; build_model('resnet8', 10);"
        "sys.exit('torchvision' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(("classes", "channels"), [(0, 3), (10, 0)])
def test_impossible_sizes(classes: int, channels: int) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        build_model("resnet8", classes, channels)
