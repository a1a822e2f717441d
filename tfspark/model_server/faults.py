"""What is wrong with a request, and the HTTP status that says so."""

from __future__ import annotations


class RequestError(Exception):
    """Answered as ``{"error": message}`` with an HTTP status."""

    status = 400

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Forbidden(RequestError):
    """Whoever asks may not."""

    status = 403


class NotFound(RequestError):
    """There is no such model, version or label."""

    status = 404


class TooLarge(RequestError):
    """The body has more bytes than are allowed."""

    status = 413


class Overloaded(RequestError):
    """More rows wait than are allowed."""

    status = 503
