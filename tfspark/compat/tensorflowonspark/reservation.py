"""Reservations of nodes, among threads of one process.

The original's server unpickled what anyone sent to its port. tfspark's rendezvous is part of `tfspark.Cluster`, with a
token on every call; nothing listens here, and a `Client` reaches the `Server` of its own process only.
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
    """What nodes have said of themselves, until all have.

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
        """Add a node."""
        with self.changed:
            self.reservations.append(meta)
            self.changed.notify_all()

    def done(self) -> bool:
        """Tell whether all are there."""
        with self.changed:
            return len(self.reservations) >= self.required

    def get(self) -> list[Any]:
        """Return what there is."""
        with self.changed:
            return list(self.reservations)

    def remaining(self) -> int:
        """Return how many are missing."""
        with self.changed:
            return self.required - len(self.reservations)


class MessageSocket:
    """Gone: nothing is unpickled from a socket."""

    def receive(self, sock: Any) -> Any:
        """Refuse."""
        raise _notes.gone("MessageSocket.receive", "Nodes and driver speak Arrow Flight")

    def send(self, sock: Any, msg: Any) -> Any:
        """Refuse."""
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
        If it is less than 1.
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
        """Wait until all nodes are there.

        Raises
        ------
        StartTimeout
            If they are not within `timeout` seconds.
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
        """Return the ports that ``TFOS_SERVER_PORT`` names, one or a range; ``[0]`` for any.

        Raises
        ------
        ConfigurationError
            If it is neither.
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
        """Refuse."""
        raise _notes.gone("Server.start_listening_socket", _FORM)

    def stop(self) -> None:
        """Forget it."""
        self.done = True
        for address in [a for a, server in _servers.items() if server is self]:
            del _servers[address]


class Client(MessageSocket):
    """Speaks to the `Server` of this process.

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
        """Add a node."""
        self._server.reservations.add(reservation)
        return "OK"

    def get_reservations(self) -> list[Any]:
        """Return the nodes that are there."""
        return self._server.reservations.get()

    def await_reservations(self) -> list[Any]:
        """Wait until all nodes are there."""
        found = self._server.reservations
        with found.changed:
            found.changed.wait_for(found.done)
        return found.get()

    def request_stop(self) -> str:
        """Have the server say that it is done."""
        self._server.done = True
        return "OK"

    def close(self) -> None:
        """Do nothing: there is no connection."""
