"""The calling side of control messages."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.flight as flight

from tfspark.transport.auth import TLS_NAME, Secret, call_options
from tfspark.transport.messages import Message
from tfspark.transport.server import location_of

CALL_TIMEOUT_SECONDS = 10.0
"""How long a short call may take; longer means that the other side is gone or stopped."""


class MessageClient:
    """Sends messages to one server. Safe to use from several threads."""

    def __init__(self, host: str, port: int, secret: Secret) -> None:
        self.host, self.port, self.token = host, port, secret.token
        options = [("grpc.enable_http_proxy", 0)]
        tls = bool(secret.certificate)
        trust = {"tls_root_certs": secret.certificate, "override_hostname": TLS_NAME} if tls else {}
        self.flight = flight.FlightClient(location_of(host, port, tls), generic_options=options, **trust)

    def send(self, message: Message, timeout: float = CALL_TIMEOUT_SECONDS) -> bytes:
        """Send `message` and return the answer.

        Raises
        ------
        pyarrow.flight.FlightError
            If the server is not there, refuses, or does not answer within `timeout` seconds.
        """
        action = flight.Action(type(message).__name__, message.encode())
        answers = list(self.flight.do_action(action, call_options(self.token, timeout)))
        return answers[0].body.to_pybytes() if answers else b""

    def ask(self, message: Message, timeout: float = CALL_TIMEOUT_SECONDS) -> Any:
        """Send `message` and return the answer decoded from JSON."""
        return json.loads(self.send(message, timeout) or b"null")

    def close(self) -> None:
        """Close the connection."""
        self.flight.close()
