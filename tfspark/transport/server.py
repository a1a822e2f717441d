"""A Flight server that answers control messages; the coordinator and every node run one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.flight as flight

from tfspark.transport.auth import Secret, TokenMiddlewareFactory
from tfspark.transport.messages import Message, message_type
from tfspark.transport.ports import Claim, Ports

logger = logging.getLogger(__name__)

Handler = Callable[[Any], bytes]

CLOSE_SECONDS = 1.0
"""How long running calls may take to end; gRPC gives up a caller whose host was cut off only after 20 s."""


def location_of(host: str, port: int, tls: bool) -> str:
    """Return the Flight URI of a host and port (IPv6 addresses in brackets)."""
    scheme = "grpc+tls" if tls else "grpc"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class MessageServer(flight.FlightServerBase):
    """Serves from construction until `close`.

    Parameters
    ----------
    host
        Address to bind.
    secret
        The cluster's; with a certificate, the server speaks TLS only.
    handlers
        One function per message type; its bytes are the answer.
    ports
        Range of the port, which is found in ``.port``; any by default.

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
        self._claim = Claim(host, ports) if ports is not None else None
        super().__init__(
            location_of(host, self._claim.port if self._claim else 0, tls=bool(certificates)),
            middleware={"token": TokenMiddlewareFactory(secret.token)},
            tls_certificates=certificates,
        )
        self.host = host
        self._closed = threading.Event()

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> Iterator[bytes]:
        """Decode a message, hand it to its handler, and send back what that returns."""
        cls = message_type(action.type)
        handler = self._handlers.get(cls) if cls is not None else None
        if cls is None or handler is None:
            raise flight.FlightServerError(f"unknown action {action.type!r}")
        try:
            message = cls.decode(action.body.to_pybytes())
        except (ValueError, TypeError) as e:
            raise flight.FlightServerError(f"malformed {action.type}: {e}") from None
        yield handler(message)

    def close(self) -> None:
        """Stop serving and wait, not for long, until running calls have ended; safe to call twice."""
        if not self._closed.is_set():
            self._closed.set()
            closing = threading.Thread(target=self._shut_down, name="tfspark-closing", daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)
            if self._claim:
                self._claim.close()

    def _shut_down(self) -> None:
        self.shutdown()
        self.wait()
