"""The CIFAR networks against numbers that the public benchmark's networks gave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from raydistill.evaluation.cost import mult_adds, parameter_count
from raydistill.models.taps import Tapped
from raydistill.models.zoo import build_model, names
from tests.golden import golden

_PUBLIC_NAMES = {
    "mobilenet_v2_half": "MobileNetV2",
    "shufflenet_v1": "ShuffleV1",
    "shufflenet_v2": "ShuffleV2",
    "resnet50_cifar": "ResNet50",
}
_RTOL = 1e-9


def _hash_u(count: int, seed: int) -> NDArray[np.float64]:
    """Portable pseudo-random numbers in (-1, 1), as the reference values were made with."""
    h = np.arange(count, dtype=np.uint32) * np.uint32(2654435761)
    h += np.uint32((seed * 2246822519 + 374761393) % 2**32)
    h ^= h >> np.uint32(15)
    h *= np.uint32(2246822519)
    h ^= h >> np.uint32(13)
    h *= np.uint32(3266489917)
    h ^= h >> np.uint32(16)
    return (h.astype(np.float64) + 0.5) / 2**32 * 2 - 1


def _filled(model: Tapped, gain: float) -> Tapped:
    """Fill a network in the order of its state dict ("fill B") and turn it to float64."""
    for index, (name, value) in enumerate(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        u = _hash_u(value.numel(), index)
        if value.dim() >= 2:
            u *= np.sqrt(6 / (value.numel() / value.shape[0]))
        elif name.endswith("running_var"):
            u = 1 + 0.5 * u
        elif name.endswith("weight"):
            u = gain + 0.2 * u
        else:
            u *= 0.1
        value.copy_(torch.from_numpy(u.astype(np.float32)).reshape(value.shape))
    return model.double()


def _stat(value: Tensor) -> NDArray[np.float64]:
    flat = value.detach().numpy().reshape(-1)
    samples = flat[np.linspace(0, flat.size - 1, 16).astype(int)]
    return np.concatenate([[flat.sum(), np.abs(flat).sum(), np.sqrt((flat**2).sum())], samples])


def _reference(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    public = _PUBLIC_NAMES.get(name, name)
    arrays = {
        key.removeprefix(f"{public}/"): value
        for key, value in golden("models.npz").items()
        if key.startswith((f"{public}/", "in/"))
    }
    return golden("models.json")[public], arrays


def _assert_close(actual: Any, expected: Any) -> None:
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=_RTOL, atol=1e-11 * scale)


def test_portable_numbers_are_those_of_the_reference() -> None:
    np.testing.assert_allclose(_hash_u(4, 5), [0.02805119, -0.2462901, -0.0210522, -0.1456643], atol=5e-8)


def test_every_reference_network_has_a_name() -> None:
    assert {_PUBLIC_NAMES.get(name, name) for name in names()} == set(golden("models.json"))


@pytest.mark.parametrize("name", names())
def test_size_and_order_equal_the_reference(name: str) -> None:
    facts, _ = _reference(name)
    model = build_model(name, num_classes=100)
    state = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert state == facts["state_dict"]
    assert parameter_count(model) == facts["params"]
    assert mult_adds(model, (3, 32, 32)) == facts["macs_conv_linear"]
    shapes = model.shapes((3, 32, 32))
    expected = [tuple(shape[1:]) for shape in facts["feat_shapes"]]
    assert [shapes[f"features/{index}"] for index in range(len(expected) - 1)] == expected[:-1]
    assert f"features/{len(expected) - 1}" not in shapes
    assert shapes["embedding"] == expected[-1]
    assert shapes["logits"] == (100,)
    assert shapes["preact/1"] == shapes["features/1"]


@pytest.mark.parametrize("name", names())
def test_outputs_and_input_gradient_equal_the_reference(name: str) -> None:
    facts, arrays = _reference(name)
    model = _filled(build_model(name, num_classes=100), facts["fillB_g"]).eval().requires_grad_(False)
    images = torch.from_numpy(arrays["in/x2"]).double().requires_grad_()
    found = model(images, model.output_names())
    _assert_close(found["logits"].detach().numpy(), arrays["B/f64/logits"])
    features = arrays["B/f64/feat_stats"]
    preacts = arrays["B/f64/preact_feat_stats"]
    for index in range(len(features) - 1):
        _assert_close(_stat(found[f"features/{index}"]), features[index])
        if index > 0:
            _assert_close(_stat(found[f"preact/{index}"]), preacts[index])
    _assert_close(_stat(found["embedding"]), features[-1])
    cotangent = torch.from_numpy(arrays["in/cotangent"])
    (gradient,) = torch.autograd.grad((found["logits"] * cotangent).sum(), images)
    _assert_close(_stat(gradient), arrays["B/f64/input_grad_stat"])


@pytest.mark.parametrize("name", names())
def test_training_step_equals_the_reference(name: str) -> None:
    _, arrays = _reference(name)
    model = _filled(build_model(name, num_classes=100), 1.0).train()
    images = torch.from_numpy(arrays["in/x4"]).double()
    # preact is asked for as well: it must neither change gradients nor count the batch twice.
    found = model(images, ("logits", "preact/1", "preact/3"))
    loss = F.cross_entropy(found["logits"], torch.tensor([3, 14, 15, 92]))
    torch.autograd.backward(loss)
    reference = {key.removeprefix("B_g1_train/f64/"): value for key, value in arrays.items()}
    _assert_close(found["logits"].detach().numpy(), reference["logits"])
    assert loss.item() == pytest.approx(float(reference["ce_loss"]), rel=_RTOL)
    norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    # Biases in front of a normalisation have zero gradient in theory, so only an absolute bound makes sense
    # there.
    bound = 1e-12 * max(norms)
    np.testing.assert_allclose(norms, reference["param_grad_norms"], rtol=1e-8, atol=bound)
    sums = [float(buffer.double().sum()) for buffer in model.buffers()]
    np.testing.assert_allclose(sums, reference["running_stats_sums_after"], rtol=_RTOL, atol=1e-9)
