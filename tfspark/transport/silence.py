"""Close connections that would otherwise use up the file descriptors of a server's process.

gRPC keeps a connection for two minutes if the client never sends anything, and for an unlimited time otherwise. Flight
cannot limit the number of connections. So this module asks the kernel (``TCP_INFO``, Linux) how many bytes each
connection has received, and how long ago. If it shuts a connection down, gRPC behaves as if the client had closed it. A
client whose idle connection was shut down connects again with its next call.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

SILENT_SECONDS = 10.0
"""A connection that has received nothing for longer than this is closed: gRPC clients send data at once."""

LOOK_SECONDS = 2.0
"""Pause between two checks of all connections."""

SHARE_OF_DESCRIPTORS = 0.5
"""Share of the process's file descriptors for connections; if there are more, those idle longest are closed."""

_LAST_RECEIVED_MS = 8 + 4 * 11
"""Offset of ``tcpi_last_data_recv`` in ``struct tcp_info``; before the first data, it counts from the start."""

_BYTES_RECEIVED = 8 + 4 * 24 + 8 * 3
"""Offset of ``tcpi_bytes_received``."""


@dataclass(frozen=True)
class Connection:
    """A connection as the kernel reports it.

    Attributes
    ----------
    socket
        A duplicate of its file descriptor.
    received
        Number of bytes received.
    idle
        Seconds since the last bytes were received.
    """

    socket: socket.socket
    received: int
    idle: float


class SilenceWatch:
    """Watches the connections of one listening port of this process until `close`.

    Parameters
    ----------
    port
        The port.
    silent_seconds
        Seconds that a connection may exist without having received anything.
    most
        Largest number of connections; by default `SHARE_OF_DESCRIPTORS` of the process's limit of file descriptors.
    """

    def __init__(self, port: int, silent_seconds: float = SILENT_SECONDS, most: int | None = None) -> None:
        self._port, self._silent_seconds = port, silent_seconds
        self._most = most
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tfspark-silence", daemon=True)
        if os.path.isdir("/proc/self/fd"):
            self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(LOOK_SECONDS)

    def _watch(self) -> None:
        while not self._closing.wait(min(LOOK_SECONDS, self._silent_seconds)):
            self.look()

    def look(self) -> int:
        """Close the connections that are silent, and those above the limit; return the number of closed ones."""
        with contextlib.ExitStack() as duplicates:
            found = []
            for c in connections(self._port):
                duplicates.enter_context(c.socket)
                found.append(c)
            silent = [c for c in found if not c.received and c.idle > self._silent_seconds]
            others = sorted((c for c in found if c not in silent), key=lambda c: c.idle, reverse=True)
            surplus = others[: max(0, len(others) - self._limit())]
            for c in (*silent, *surplus):
                with contextlib.suppress(OSError):
                    c.socket.shutdown(socket.SHUT_RDWR)
            return len(silent) + len(surplus)

    def _limit(self) -> int:
        if self._most is not None:
            return self._most
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return int(soft * SHARE_OF_DESCRIPTORS)


def connections(port: int) -> Iterator[Connection]:
    """Yield the connections that this process has accepted on a port; the caller must close their sockets."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            fd = os.dup(int(name))
        except OSError:
            # Another thread has closed the descriptor.
            continue
        try:
            duplicate = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            continue
        try:
            accepted = _is_accepted(duplicate, port)
            info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256) if accepted else b""
        except OSError:
            info = b""
        if len(info) < _BYTES_RECEIVED + 8:
            duplicate.close()
            continue
        (idle,) = struct.unpack_from("I", info, _LAST_RECEIVED_MS)
        (received,) = struct.unpack_from("Q", info, _BYTES_RECEIVED)
        yield Connection(duplicate, received, idle / 1000)


def _is_accepted(s: socket.socket, port: int) -> bool:
    if s.family not in (socket.AF_INET, socket.AF_INET6) or s.type != socket.SOCK_STREAM:
        return False
    # A listening socket has no peer: getpeername raises.
    return bool(s.getsockname()[1] == port and s.getpeername())
