"""Networks that are handed over: built by name in this process, known nowhere else, sent without their weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from raydistill.api.handed import PREFIX, hand_over, offered, write_weights
from raydistill.errors import ConfigError
from raydistill.models.loading import build_described
from raydistill.models.zoo import build_model, check_name
from raydistill.network_config import NetworkConfig
from tests.api.networks import small

IMAGES = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def test_a_name_builds_the_network_with_its_outputs_and_the_file_its_weights(tmp_path: Path) -> None:
    network = small().eval()
    name = hand_over(network, "teacher")
    check_name(name)
    path = write_weights(name, network, tmp_path)
    built = build_described(NetworkConfig(model=name, weights=str(path)), 10, 1).eval()
    outputs = built(IMAGES)
    assert torch.equal(outputs["logits"], network(IMAGES))
    assert torch.equal(outputs["embedding"], network.body(IMAGES).mean(dim=(2, 3)))


def test_networks_alike_but_for_their_weights_share_a_name_and_not_a_file(tmp_path: Path) -> None:
    one, other = small(seed=1), small(seed=2)
    name = hand_over(one, "teacher")
    assert hand_over(other, "student") == name
    assert write_weights(name, one, tmp_path) != write_weights(name, other, tmp_path)


def test_what_is_built_is_a_copy() -> None:
    network = small()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    name = hand_over(network, "student")
    with torch.no_grad():
        for value in build_model(name, 10).parameters():
            value.zero_()
    for now in (network, build_model(name, 10)):
        assert all(torch.equal(value, before[key]) for key, value in now.state_dict().items())


def test_pickles_hold_no_weights_and_keep_what_no_state_dict_holds() -> None:
    from raydistill.api.pickling import pickled, unpickled

    network = nn.Sequential(small(), nn.Linear(10, 300), nn.Linear(300, 300, bias=False))
    network.add_module("tied", nn.Linear(300, 300, bias=False))
    network.tied.weight = network[2].weight
    network[1].weight.requires_grad_(False)
    network[0].grid += 5
    data = pickled(network)
    assert len(data) < 20_000 < 4 * network[2].weight.numel()
    built = unpickled(data)
    assert built.tied.weight is built[2].weight
    assert not built[1].weight.requires_grad and built[2].weight.requires_grad
    assert torch.equal(built[0].grid, network[0].grid)
    built.load_state_dict(network.state_dict())
    assert torch.equal(built.eval()(IMAGES), network.eval()(IMAGES))


def test_another_process_is_told_where_the_network_is_known() -> None:
    with pytest.raises(
        ConfigError, match=r"Other_0123456789ab': a network that another process handed to .* resume=True"
    ):
        build_model(f"{PREFIX}Other_0123456789ab", 10)
    with pytest.raises(ConfigError, match="has no 'anything'"):
        build_model(f"{PREFIX}anything", 10)


def test_networks_that_cannot_be_copied_or_kept_are_refused() -> None:
    with pytest.raises(ConfigError, match="student: Sequential has lazy layers that saw no image yet"):
        hand_over(nn.Sequential(nn.LazyLinear(3)), "student")
    with pytest.raises(ConfigError, match="student: ReLU has neither parameters nor buffers"):
        hand_over(nn.ReLU(), "student")
    stuck = small()
    stuck.product = stuck.fc.weight * 2  # no leaf, which torch does not copy
    with pytest.raises(ConfigError, match="teacher: Small cannot be copied: Only Tensors"):
        hand_over(stuck, "teacher")


@pytest.mark.usefixtures("ray_session")
def test_workers_build_what_is_offered_and_nothing_afterwards() -> None:
    import ray

    network = small(width=5)
    name = hand_over(network, "student")

    def build(name: str) -> tuple[int, str, list[str]]:
        from raydistill.models.zoo import build_model

        try:
            return os.getpid(), "", list(build_model(name, 10).state_dict())
        except ConfigError as error:
            return os.getpid(), str(error), []

    with offered([("student", name), ("teacher", name)]):
        process, _, names = ray.get(ray.remote(build).remote(name))
    assert process != os.getpid()
    assert names == list(network.state_dict())
    with offered([("student", name)]):  # at once, by the same name
        assert isinstance(ray.get(ray.get_actor(name).data.remote()), bytes)

    other = hand_over(small(width=4), "student")
    _, message, _ = ray.get(ray.remote(build).remote(other))
    assert "a network that another process handed to raydistill.distill" in message


@pytest.mark.usefixtures("ray_session")
def test_what_cannot_be_pickled_is_refused_in_one_line() -> None:
    network = small(width=3)

    class Held:
        def __deepcopy__(self, memo: object) -> Held:
            return self

        def __reduce__(self) -> str:
            raise TypeError("an open file")

    network.held = Held()
    name = hand_over(network, "student")
    refusal = pytest.raises(ConfigError, match="student: Small cannot be sent to Ray's workers: an open file")
    with refusal, offered([("student", name)]):
        pass
