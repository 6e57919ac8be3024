"""Ports on loopback."""

from __future__ import annotations

import random
import socket
import sys

from polarstream.broker.settings import HOST
from streams.errors import BrokerUnavailable

#: Below the ports that systems give to outgoing connections, so that a stopped broker finds its own
#: free when it comes back.
_PORTS = range(20_000, 32_000)
_TRIES = 100


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def kept_or_free(kept: int | None, besides: int | None = None) -> int:
    """The port that was kept, if it is free; else some free one, other than `besides`."""
    if kept is not None and kept != besides and is_free(kept):
        return kept
    for port in random.sample(_PORTS, _TRIES):
        if port != besides and is_free(port):
            return port
    raise BrokerUnavailable(f"no port of {_PORTS} is free on {HOST}: choose one")
