"""The client of control messages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow.flight as flight

from tfspark.messages import Message
from tfspark.settings import Settings
from tfspark.transport.auth import TLS_NAME, Secret, call_options
from tfspark.transport.server import location_of

A = TypeVar("A", bound=Message)

FIRST_PAUSE_SECONDS = 0.1
"""Pause before the second try of a call; each further pause is twice as long, up to `LONGEST_PAUSE_SECONDS`."""

LONGEST_PAUSE_SECONDS = 2.0

MAY_PASS = (flight.FlightUnavailableError, flight.FlightTimedOutError, flight.FlightCancelledError)
"""Errors of a server that does not answer now. Only after these a call is retried: others would occur again."""


_CONTEXT = re.compile(r"[.\s]*(?:Detail: \w+[.\s]*)?gRPC client debug context:.*", re.S)


def without_context(error: BaseException) -> str:
    """Return the message of an error of a call, without what gRPC adds about itself.

    Examples
    --------
    >>> without_context(RuntimeError("no rows. gRPC client debug context: UNKNOWN"))
    'no rows'
    """
    return _CONTEXT.sub("", str(error))


class MessageClient:
    """Sends messages to one server. Several threads may use it.

    Parameters
    ----------
    host, port
        Where the server listens.
    secret
        The credentials of the cluster.
    timeout
        Seconds within which the server must answer a call that has no other timeout; after that the server counts as
        ended or stopped.
    """

    def __init__(self, host: str, port: int, secret: Secret, timeout: float = Settings.call_timeout) -> None:
        self.timeout = timeout
        self.host, self.port, self.token = host, port, secret.token
        options = [("grpc.enable_http_proxy", 0)]
        tls = bool(secret.certificate)
        trust = {"tls_root_certs": secret.certificate, "override_hostname": TLS_NAME} if tls else {}
        self.flight = flight.FlightClient(location_of(host, port, tls), generic_options=options, **trust)

    def send(self, message: Message, timeout: float | None = None) -> bytes:
        """Send `message` and return the encoded answer.

        Raises
        ------
        pyarrow.flight.FlightError
            If the server cannot be reached, rejects the call, or does not answer within `timeout` seconds.
        """
        action = flight.Action(type(message).__name__, message.encode())
        answers = list(
            self.flight.do_action(action, call_options(self.token, self.timeout if timeout is None else timeout))
        )
        return answers[0].body.to_pybytes() if answers else b""

    def ask(self, message: Message, answer: type[A], timeout: float | None = None) -> A:
        """Send `message` and return the answer, which is of type `answer`.

        Raises
        ------
        pyarrow.flight.FlightError
            As for `send`.
        ValueError
            If the answer has another type.
        """
        return answer.decode(self.send(message, timeout))

    def insist(
        self,
        message: Message,
        answer: type[A],
        patience: float,
        timeout: float | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> A:
        """Send `message` until the server answers; the server must handle a message that arrives twice.

        Parameters
        ----------
        message, answer, timeout
            As for `ask`; `timeout` is the timeout of each try.
        patience
            Seconds after which no further try is made.
        pause
            Called between two tries with the number of seconds to wait; if it returns true, no further try is made.

        Raises
        ------
        pyarrow.flight.FlightError
            The error of the last try; after the first try if another one cannot help (see `MAY_PASS`).
        """
        return answer.decode(self.insist_on_sending(message, patience, timeout, pause))

    def insist_on_sending(
        self,
        message: Message,
        patience: float,
        timeout: float | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> bytes:
        """Send `message` until the server confirms it; parameters and errors are those of `insist`."""
        deadline = time.monotonic() + patience
        seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                return self.send(message, timeout)
            except MAY_PASS:
                if time.monotonic() + seconds > deadline or pause(seconds):
                    raise
                seconds = min(2 * seconds, LONGEST_PAUSE_SECONDS)

    def close(self) -> None:
        """Close the connection."""
        self.flight.close()
