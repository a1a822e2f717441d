"""Authentication: a bearer token in every Flight call, checked before the body is parsed; optional TLS.

The driver makes a token, and with TLS a certificate and a key, for each cluster. They are sent in the closures of Spark
tasks, which Spark encrypts if it is configured to. They are never in an argument list, an environment variable or a
log.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow.flight as flight

_HEADER = "authorization"

TLS_NAME = "tfspark.internal"
"""Host name in the certificate. Clients check the certificate, not the address, so it is the same everywhere."""

CERTIFICATE_DAYS = 365


@dataclass(frozen=True)
class Secret:
    """The credentials that the processes of one cluster share.

    Attributes
    ----------
    token
        Clients send it with every call.
    certificate, key
        In PEM; empty without TLS. Clients do not have the key.
    """

    token: str
    certificate: str = ""
    key: str = ""

    def __repr__(self) -> str:
        return f"Secret({'with' if self.certificate else 'without'} TLS)"

    def for_clients(self) -> Secret:
        """Return the credentials for a client: without the key."""
        return replace(self, key="")

    def to_json(self) -> dict[str, str]:
        """Return the credentials as a dict, to send them to a node's standard input."""
        return asdict(self)

    @classmethod
    def from_json(cls, d: Mapping[str, str]) -> Secret:
        """Decode the output of `to_json`."""
        return cls(**d)


def new_secret(tls: bool = False) -> Secret:
    """Make the secret of one cluster: a token of 256 random bits and, with TLS, a key and its certificate."""
    token = secrets.token_urlsafe(32)
    return Secret(token, *_certificate()) if tls else Secret(token)


def _certificate() -> tuple[str, str]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, TLS_NAME)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # The clocks of the hosts may differ, so the certificate is valid from one day before now.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(TLS_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def call_options(token: str, timeout: float | None = None) -> flight.FlightCallOptions:
    """Return call options that carry `token`; `timeout` is in seconds."""
    headers = [(_HEADER.encode(), f"Bearer {token}".encode())]
    return flight.FlightCallOptions(timeout=timeout, headers=headers)


class TokenMiddlewareFactory(flight.ServerMiddlewareFactory):
    """Rejects every call without the cluster's token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._expected = f"Bearer {token}".encode()

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
        """Raise `FlightUnauthenticatedError` unless the token matches."""
        values = next((v for k, v in headers.items() if k.lower() == _HEADER), [])
        given = values[0].encode() if values else b""
        if not hmac.compare_digest(given, self._expected):
            raise flight.FlightUnauthenticatedError("The call has no token or a wrong token.")
        return None
