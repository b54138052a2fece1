"""Which interface has an address."""

from __future__ import annotations

import os
import sys

import pytest

from raydistill.training.interfaces import GLOO_INTERFACE, interface_of, meet_at

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")


def test_loopback_has_its_address_and_nobody_has_one_of_the_documentation() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


@pytest.mark.parametrize(("before", "after"), [(None, "lo"), ("eth7", "eth7")])
def test_an_interface_that_the_user_named_stays(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.setenv(GLOO_INTERFACE, before or "")
    if before is None:
        monkeypatch.delenv(GLOO_INTERFACE)
    meet_at("127.0.0.1")
    assert os.environ[GLOO_INTERFACE] == after
