"""The Flight server of control messages; the coordinator and every node run one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.flight as flight

from tfspark.messages import REQUESTS, Message
from tfspark.transport.auth import Secret, TokenMiddlewareFactory
from tfspark.transport.ports import Ports, ReservedPort
from tfspark.transport.silence import SilenceWatch

logger = logging.getLogger(__name__)

Handler = Callable[[Any], Message | None]

CLOSE_SECONDS = 1.0
"""How long `close` waits for running calls; gRPC needs 20 s to notice that a client's host is unreachable."""


def location_of(host: str, port: int, tls: bool) -> str:
    """Return the Flight URI of a host and port (IPv6 addresses in brackets)."""
    scheme = "grpc+tls" if tls else "grpc"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class MessageServer(flight.FlightServerBase):
    """A server that runs from construction until `close`.

    Parameters
    ----------
    host
        Address to bind.
    secret
        The cluster's secret; with a certificate, the server accepts TLS only.
    handlers
        One function per message type; it returns the answer, or None for an empty answer.
    ports
        Range to take the port from; any port by default. The attribute ``port`` has the port.

    Raises
    ------
    ResourceError
        If all ports of the range are in use.
    """

    def __init__(
        self, host: str, secret: Secret, handlers: dict[type[Message], Handler], ports: Ports | None = None
    ) -> None:
        self._handlers = handlers
        certificates = [(secret.certificate, secret.key)] if secret.certificate else None
        self._reserved = ReservedPort(host, ports) if ports is not None else None
        super().__init__(
            location_of(host, self._reserved.port if self._reserved else 0, tls=bool(certificates)),
            middleware={"token": TokenMiddlewareFactory(secret.token)},
            tls_certificates=certificates,
        )
        self.host = host
        self._silence = SilenceWatch(self.port)
        self._closed = threading.Event()

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> Iterator[bytes]:
        """Decode a message, call its handler, and return the handler's answer."""
        cls = REQUESTS.get(action.type)
        handler = self._handlers.get(cls) if cls is not None else None
        if cls is None or handler is None:
            raise flight.FlightServerError(f"Unknown action {action.type!r}.")
        try:
            message = cls.decode(action.body.to_pybytes())
        except ValueError as e:
            raise flight.FlightServerError(f"Cannot decode the message {action.type}: {e}") from None
        answer = handler(message)
        yield answer.encode() if answer is not None else b""

    def close(self) -> None:
        """Stop serving; wait at most `CLOSE_SECONDS` for running calls. Calling it again does nothing."""
        if not self._closed.is_set():
            self._closed.set()
            self._silence.close()
            closing = threading.Thread(target=self._shut_down, name="tfspark-closing", daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)
            if self._reserved:
                self._reserved.close()

    def _shut_down(self) -> None:
        self.shutdown()
        self.wait()
