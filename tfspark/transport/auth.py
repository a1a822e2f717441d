"""Bearer-token authentication of every Flight call, checked before a byte of its body is read."""

from __future__ import annotations

import hmac
import secrets
from typing import Any

import pyarrow.flight as flight

_HEADER = "authorization"


def new_token() -> str:
    """Make the secret of one cluster: 256 random bits as text."""
    return secrets.token_urlsafe(32)


def call_options(token: str, timeout: float | None = None) -> flight.FlightCallOptions:
    """Return call options that carry `token`; `timeout` is in seconds."""
    headers = [(_HEADER.encode(), f"Bearer {token}".encode())]
    return flight.FlightCallOptions(timeout=timeout, headers=headers)


class TokenMiddlewareFactory(flight.ServerMiddlewareFactory):
    """Refuses every call that does not carry the cluster's token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._expected = f"Bearer {token}".encode()

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
        """Raise `FlightUnauthenticatedError` unless the token matches."""
        values = next((v for k, v in headers.items() if k.lower() == _HEADER), [])
        given = values[0].encode() if values else b""
        if not hmac.compare_digest(given, self._expected):
            raise flight.FlightUnauthenticatedError("unknown or missing token")
        return None
