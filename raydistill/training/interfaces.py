"""By which network interface the workers of a run reach each other."""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import suppress

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_ADDRESS_OF = 0x8915
"""Linux' SIOCGIFADDR: asks for the IPv4 address of an interface."""


def meet_at(address: str) -> None:
    """Let gloo listen at this node's address, by which the others know it, unless the user has named an interface.

    By itself it takes what the host's name stands for, which many systems say is loopback; others then never reach it.
    """
    if name := interface_of(address):
        os.environ.setdefault(GLOO_INTERFACE, name)


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an IPv4 address; None where none has, or the system is not Linux."""
    if sys.platform != "linux":
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no such address
                answer = fcntl.ioctl(asking.fileno(), _ADDRESS_OF, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
