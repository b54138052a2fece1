"""Rays that take long to come up."""

from __future__ import annotations

import pytest
from ray._private import services

from raydistill import patience
from raydistill.patience import patient_start


def test_a_node_that_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def come_late(address: str, node: str) -> str:
        asked.append((address, node))
        if len(asked) < 4:
            raise RuntimeError("No node info found")
        return "there"

    monkeypatch.setattr(services, "get_node", come_late)
    with patient_start():
        assert services.get_node("127.0.0.1:1", "node") == "there"
    assert asked == [("127.0.0.1:1", "node")] * 4
    assert services.get_node is come_late


def test_a_node_that_never_comes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(address: str, node: str) -> str:
        raise RuntimeError("No node info found")

    monkeypatch.setattr(services, "get_node", never)
    monkeypatch.setattr(patience, "START_S", 0.0)
    with pytest.raises(RuntimeError, match="No node info found"), patient_start():
        services.get_node("127.0.0.1:1", "node")
    assert services.get_node is never
