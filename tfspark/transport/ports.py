"""Ports to listen on, claimed before the server that will use them exists, and held as long as it does.

gRPC, under Flight and TensorFlow alike, binds with ``SO_REUSEADDR`` and ``SO_REUSEPORT``. So it gets a port that a
socket with ``SO_REUSEADDR`` has bound without listening, and nobody else does: the kernel refuses a second server while
one listens, and gives a bound port to nobody who asks for any.

TensorFlow listens on all addresses, whatever its cluster is told. So its port must be claimed on all of them: a port
that is free on one address may be another server's, or that of somebody's connection, on the next.
"""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType

from tfspark.errors import ConfigurationError, ResourceError

Ports = tuple[int, int]
"""First and last port of a range."""


def check_ports(ports: Ports | None) -> Ports | None:
    """Check the ``ports`` of a cluster.

    Raises
    ------
    ConfigurationError
        If it is no range of ports.
    """
    if ports is None:
        return None
    try:
        first, last = (int(p) for p in ports)
    except (TypeError, ValueError):
        raise ConfigurationError(f"ports={ports!r}: give the first and the last, as in (20000, 20100).") from None
    if not 0 < first <= last < 1 << 16:
        raise ConfigurationError(f"ports={ports!r}: the first is at least 1, the last at most 65535.")
    return first, last


class Claim:
    """A port that is ours until `close`.

    Parameters
    ----------
    host
        Address that the server will bind; all there are if None.
    ports
        The range it must be of; any port by default.

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
                # Two claimants could both bind the port, as both must set SO_REUSEADDR: without it, a port whose
                # last connections ended less than a minute ago counts as used. Names that begin with a null byte
                # are no files, and as ports they belong to the network namespace.
                lock.bind(f"\0tfspark-port-{port}")
                return self._bind(host, port)
            except OSError:
                self.close()
        raise ResourceError(
            f"All ports from {ports[0]} to {ports[1]} are in use on {host or 'this host'}.",
            hint="A node needs two, the driver one for each cluster: widen ports=(first, last).",
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
        """Give the port up."""
        self._held.close()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
