"""Ports to listen on: reserved before their server starts, and held until it has ended.

gRPC, which Flight and TensorFlow use, binds with ``SO_REUSEADDR`` and ``SO_REUSEPORT``. So it can bind a port that a
socket of this module has bound with ``SO_REUSEADDR`` without listening. Other programs cannot get that port: the kernel
rejects a second server while one listens, and never selects a bound port for a socket that requests any free port.

TensorFlow listens on all addresses, whatever address its cluster spec has. So its port must be reserved on all of them:
a port that is free on one address may be in use on another.
"""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType

from tfspark.errors import ConfigurationError, ResourceError

Ports = tuple[int, int]
"""First and last port of a range, both included."""


def check_ports(ports: Ports | None) -> Ports | None:
    """Check the ``ports`` of a cluster.

    Raises
    ------
    ConfigurationError
        If it is not a pair of ports in ascending order.
    """
    if ports is None:
        return None
    both = list(ports) if isinstance(ports, (tuple, list)) else []
    if len(both) != 2 or not all(isinstance(p, int) and not isinstance(p, bool) for p in both):
        raise ConfigurationError(
            f"ports must be a pair of whole numbers, got {ports!r}.",
            hint="Pass the first and the last port, for example ports=(20000, 20100).",
        )
    first, last = both
    if not 0 < first <= last < 1 << 16:
        raise ConfigurationError(f"ports must satisfy 1 <= first <= last <= 65535, got {ports!r}.")
    return first, last


class ReservedPort:
    """A port that is reserved until `close`.

    Parameters
    ----------
    host
        Address that the server will bind; all addresses if None.
    ports
        Range to take the port from; any port by default.

    Raises
    ------
    ResourceError
        If all ports of the range are in use.
    """

    def __init__(self, host: str | None, ports: Ports | None = None) -> None:
        self._held = contextlib.ExitStack()
        self.port = self._bind(host, 0) if ports is None else self._first_free(host, ports)

    def _first_free(self, host: str | None, ports: Ports) -> int:
        for port in range(ports[0], ports[1] + 1):
            try:
                lock = self._held.enter_context(socket.socket(socket.AF_UNIX))
                # Two processes could both bind the port, because both set SO_REUSEADDR: without it, a port whose last
                # connection ended less than a minute ago counts as used. So a Unix socket with an abstract name (it
                # begins with a null byte, and belongs to the network namespace as ports do) is the lock.
                lock.bind(f"\0tfspark-port-{port}")
                return self._bind(host, port)
            except OSError:
                self.close()
        raise ResourceError(
            f"All ports from {ports[0]} to {ports[1]} are in use on {host or 'this host'}.",
            hint="A node needs two ports, and the driver needs one per cluster: widen ports=(first, last).",
        )

    def _bind(self, host: str | None, port: int) -> int:
        if host is None:
            host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
        s = self._held.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        s.bind((host, port))
        return int(s.getsockname()[1])

    def close(self) -> None:
        """Release the port."""
        self._held.close()

    def __enter__(self) -> ReservedPort:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
