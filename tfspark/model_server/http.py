"""HTTP connections with limits: deadlines for headers and for progress, and a maximum number of connections.

uvicorn has no such limits for slow clients. It does everything else.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

TIMEOUT_SECONDS = 30.0
MAX_CONNECTIONS = 1024


def protocol(
    timeout_seconds: float = TIMEOUT_SECONDS, max_connections: int = MAX_CONNECTIONS
) -> type[asyncio.Protocol]:
    """Return the protocol class for uvicorn.

    Parameters
    ----------
    timeout_seconds
        Deadline for the header of a request, and longest pause while a client sends the body or reads the answer.
    max_connections
        Largest number of connections; further connections get status 503 and are closed.
    """
    limits = {"timeout_seconds": timeout_seconds, "max_connections": max_connections}
    return type("BoundedProtocol", (_Bounded,), limits)


class _Bounded(H11Protocol):
    timeout_seconds: float
    max_connections: int
    _timer: asyncio.TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: Any) -> None:
        if len(self.connections) >= self.max_connections:
            self.transport = transport
            self._close("503 Service Unavailable")
            return
        super().connection_made(transport)
        # asyncio does not set TCP_NODELAY if the caller created the listening socket. Without it, answers can wait
        # 40 ms for an ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def data_received(self, data: bytes) -> None:
        waited_for_header = self._waits_for_header()
        super().data_received(data)
        # A received byte does not restart the deadline for a header.
        if not (waited_for_header and self._waits_for_header() and self._timer is not None):
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # The client may have pipelined another request.
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def _waits_for_header(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _watch(self) -> None:
        """Cancel the deadline, and start a new one if the server waits for the client."""
        self._unwatch()
        if self.transport is None or self.transport.is_closing():
            return
        self._unsent = self.transport.get_write_buffer_size()
        idle = self._waits_for_header() and self.timeout_keep_alive_task is not None
        owes = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not idle
        if owes or self.flow.write_paused:
            self._timer = self.loop.call_later(self.timeout_seconds, self._late)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.flow.write_paused:
            if self.transport.get_write_buffer_size() < self._unsent:
                self._watch()
            else:
                self.transport.abort()
        elif self.flow.read_paused:
            # The server itself has not read the client's data yet.
            self._watch()
        elif self._waits_for_header() or not self.cycle.response_started:
            self._close("408 Request Timeout")
        else:
            self.transport.abort()

    def _close(self, status: str) -> None:
        self.transport.write(f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
        self.transport.close()
