"""Reservations of nodes, among threads of one process.

The original's server unpickled all data that was sent to its port. tfspark's rendezvous is part of `tfspark.Cluster`
and needs a token for every call. This module does not listen on a port, and a `Client` reaches only the `Server` of its
own process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from tfspark.compat.tensorflowonspark import _notes, util
from tfspark.errors import ConfigurationError, StartTimeout

TFOS_SERVER_PORT = "TFOS_SERVER_PORT"
TFOS_SERVER_HOST = "TFOS_SERVER_HOST"

_FORM = "tfspark.Cluster waits for its nodes"
_servers: dict[tuple[str, int], Server] = {}


class Reservations:
    """The reservations of nodes, until all nodes are registered.

    Parameters
    ----------
    required
        Number of nodes.
    """

    def __init__(self, required: int) -> None:
        self.required = required
        self.reservations: list[Any] = []
        self.changed = threading.Condition()

    def add(self, meta: Any) -> None:
        """Add the reservation of a node."""
        with self.changed:
            self.reservations.append(meta)
            self.changed.notify_all()

    def done(self) -> bool:
        """Return whether all nodes are registered."""
        with self.changed:
            return len(self.reservations) >= self.required

    def get(self) -> list[Any]:
        """Return the reservations so far."""
        with self.changed:
            return list(self.reservations)

    def remaining(self) -> int:
        """Return how many reservations are missing."""
        with self.changed:
            return self.required - len(self.reservations)


class MessageSocket:
    """Not supported: tfspark does not unpickle data from a socket."""

    def receive(self, sock: Any) -> Any:
        """Raise `ConfigurationError`."""
        raise _notes.gone("MessageSocket.receive", "Nodes and driver speak Arrow Flight")

    def send(self, sock: Any, msg: Any) -> Any:
        """Raise `ConfigurationError`."""
        raise _notes.gone("MessageSocket.send", "Nodes and driver speak Arrow Flight")


class Server(MessageSocket):
    """Holds the reservations of this process.

    Parameters
    ----------
    count
        Number of nodes.

    Raises
    ------
    ConfigurationError
        If `count` is less than 1.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ConfigurationError(f"count must be >= 1, got {count}.")
        _notes.note("reservation.Server", _FORM)
        self.reservations = Reservations(count)
        self.done = False

    def start(self) -> tuple[str, int]:
        """Return the address under which a `Client` of this process finds it; no port is opened."""
        address = (self.get_server_ip(), len(_servers) + 1)
        _servers[address] = self
        return address

    def await_reservations(self, sc: Any, status: Mapping[str, str] = {}, timeout: float = 600) -> list[Any]:
        """Wait until all nodes are registered and return their reservations.

        Raises
        ------
        StartTimeout
            If reservations are missing after `timeout` seconds.
        """
        found = self.reservations
        with found.changed:
            if not found.changed.wait_for(found.done, timeout):
                raise StartTimeout(
                    f"{found.remaining()} of {found.required} reservations are missing after {timeout} s."
                )
        return found.get()

    def get_server_ip(self) -> str:
        """Return ``TFOS_SERVER_HOST``, or this host's address."""
        return os.environ.get(TFOS_SERVER_HOST) or util.get_ip_address()

    def get_server_ports(self) -> list[int]:
        """Return the ports in ``TFOS_SERVER_PORT``, which is one port or a range; ``[0]`` stands for any port.

        Raises
        ------
        ConfigurationError
            If the variable is neither a port nor a range.
        """
        text = os.environ.get(TFOS_SERVER_PORT, "0")
        try:
            first, *last = (int(part) for part in text.split("-"))
        except ValueError:
            last = [0, 0]
        if len(last) > 1:
            raise ConfigurationError(f"{TFOS_SERVER_PORT} must be a port or a range of ports, got {text}.")
        return list(range(first, last[0] + 1)) if last else [first]

    def start_listening_socket(self) -> Any:
        """Raise `ConfigurationError`."""
        raise _notes.gone("Server.start_listening_socket", _FORM)

    def stop(self) -> None:
        """Mark the server as done and remove its address."""
        self.done = True
        for address in [a for a, server in _servers.items() if server is self]:
            del _servers[address]


class Client(MessageSocket):
    """Accesses a `Server` of this process.

    Parameters
    ----------
    server_addr
        What `Server.start` returned.

    Raises
    ------
    ConfigurationError
        If this process has no such server.
    """

    def __init__(self, server_addr: tuple[str, int]) -> None:
        self.server_addr = server_addr
        found = _servers.get((server_addr[0], server_addr[1]))
        if found is None:
            raise ConfigurationError(
                f"This process has no server at {server_addr}.", hint="Servers of other processes cannot be reached."
            )
        self._server = found

    def register(self, reservation: Any) -> str:
        """Add the reservation of a node."""
        self._server.reservations.add(reservation)
        return "OK"

    def get_reservations(self) -> list[Any]:
        """Return the reservations so far."""
        return self._server.reservations.get()

    def await_reservations(self) -> list[Any]:
        """Wait until all nodes are registered and return their reservations."""
        found = self._server.reservations
        with found.changed:
            found.changed.wait_for(found.done)
        return found.get()

    def request_stop(self) -> str:
        """Mark the server as done."""
        self._server.done = True
        return "OK"

    def close(self) -> None:
        """Do nothing: there is no connection."""
