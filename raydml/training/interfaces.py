"""An address that all workers can reach in; the network interface that leads to it out.

Left alone, gloo listens where the machine's own name leads, and that is loopback on many machines (Debian's
`127.0.1.1`): workers of other machines would never reach it.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import suppress

VARIABLE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface


def meet_by(host: str) -> None:
    """Have gloo listen on the interface towards `host`, unless somebody named another one."""
    name = interface_towards(host)
    if name is not None:
        os.environ.setdefault(VARIABLE, name)


def interface_towards(host: str) -> str | None:
    """The interface by which packets leave for an IPv4 address, `lo` for this machine's own loopback.

    None where the system does not tell.
    """
    if not sys.platform.startswith("linux"):
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((host, 1))  # sends nothing: only the route is looked up
        except OSError:
            return None
        address = socket.inet_aton(asking.getsockname()[0])
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # one without an address
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if answer[20:24] == address:
                    return name
    return None
