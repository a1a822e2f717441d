"""Errors of requests: a message, and a code for HTTP and gRPC."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any


class Code(Enum):
    """Error codes, which are the same in TensorFlow and gRPC, with their HTTP status."""

    CANCELLED = (1, 408)
    UNKNOWN = (2, 500)
    INVALID_ARGUMENT = (3, 400)
    DEADLINE_EXCEEDED = (4, 504)
    NOT_FOUND = (5, 404)
    ALREADY_EXISTS = (6, 409)
    PERMISSION_DENIED = (7, 403)
    RESOURCE_EXHAUSTED = (8, 503)
    FAILED_PRECONDITION = (9, 412)
    ABORTED = (10, 409)
    OUT_OF_RANGE = (11, 400)
    UNIMPLEMENTED = (12, 501)
    INTERNAL = (13, 500)
    UNAVAILABLE = (14, 503)
    DATA_LOSS = (15, 500)
    UNAUTHENTICATED = (16, 401)

    @property
    def number(self) -> int:
        """Return the number of the code in TensorFlow and gRPC."""
        return self.value[0]

    @property
    def http(self) -> int:
        """Return the HTTP status."""
        return self.value[1]


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes
    ----------
    code
        The error code.
    status
        The HTTP status; usually that of the code.
    """

    code = Code.INVALID_ARGUMENT

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = self.code.http if status is None else status


class Forbidden(RequestError):
    """The client is not allowed to do this."""

    code = Code.PERMISSION_DENIED


class NotFound(RequestError):
    """The model or version does not exist."""

    code = Code.NOT_FOUND


class MissingSignature(RequestError):
    """The model does not have the signature. gRPC's Predict has a separate code for it; REST answers status 400."""

    code = Code.FAILED_PRECONDITION

    def __init__(self, message: str) -> None:
        super().__init__(message, 400)


class Unimplemented(RequestError):
    """The request is not supported."""

    code = Code.UNIMPLEMENTED


class TooLarge(RequestError):
    """The request is larger than the limit."""

    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, message: str) -> None:
        super().__init__(message, 413)


class Overloaded(RequestError):
    """More rows are waiting than the limit allows."""

    code = Code.UNAVAILABLE


class ModelFailed(RequestError):
    """The model's graph rejected its inputs or failed; created from TensorFlow's error."""

    def __init__(self, error: Any) -> None:
        self.code = next((c for c in Code if c.number == error.error_code), Code.INTERNAL)
        super().__init__(_what_failed(str(error.message)))


def _what_failed(message: str) -> str:
    """Return the line of TensorFlow's message that gives the reason, without the position in the graph."""
    noise = ("Graph execution error", "Detected at node", "<stack traces", " ", "\t", "Stack trace")
    lines = [line for line in message.splitlines() if line and not line.startswith(noise)]
    return re.sub(r"\{\{.*?\}\} ?", "", lines[0] if lines else message.strip())
