"""Errors in the data: a malformed message, or a record that cannot be read."""

from __future__ import annotations

from tfspark.errors import TFSparkError


class MalformedMessage(TFSparkError):
    """Bytes that are not a valid protobuf message of the expected type."""


class BadRecord(TFSparkError):
    """A record that cannot be read.

    Parameters
    ----------
    path
        The file.
    record
        Index of the record in the file, from 0.
    offset
        Position of the record's header, in bytes after decompression.
    reason
        What is wrong with the record.
    hint
        How to fix it.
    """

    def __init__(self, path: str, record: int, offset: int, reason: str, hint: str | None = None) -> None:
        super().__init__(f"{path}, record {record} at offset {offset}: {reason}", hint)
        self.path = path
        self.record = record
        self.offset = offset
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.path, self.record, self.offset, self.reason, self.hint)
