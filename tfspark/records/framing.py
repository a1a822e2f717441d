"""The framing of TFRecord files.

Per record: a little-endian 64-bit length, the masked CRC32C of the length, the data, and the masked CRC32C of the data.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c

from tfspark.records.errors import BadRecord

HEADER_BYTES = 12
FOOTER_BYTES = 4

#: Default limit for the length of a record, in bytes; a record with a larger length field is rejected.
MAX_RECORD_BYTES = 1 << 30

# Data is read in pieces of this many bytes, so a wrong length never takes more memory than the file has bytes.
_PIECE_BYTES = 1 << 20

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")

# Errors that Python's and Arrow's decompressors raise if compressed data is damaged or ends early.
_DAMAGE = (OSError, EOFError, ValueError, zlib.error)


def masked_crc(data: bytes) -> int:
    """Return the masked CRC32C of `data`, as in TFRecord files: the CRC rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def is_header(head: bytes) -> bool:
    """Return whether `head`, the first bytes of a file, is the header of a record."""
    return len(head) >= HEADER_BYTES and masked_crc(head[:8]) == _CRC.unpack_from(head, 8)[0]


class RecordReader:
    """Reads the records of a stream one after the other.

    Parameters
    ----------
    stream
        The stream, at the beginning of the first record.
    path
        Name of the file for error messages.
    verify_checksum
        Whether to check the CRC of the data. The CRC of the length is always checked.
    max_record_bytes
        A record with a larger length field is rejected.
    strict
        Whether to raise `BadRecord` if the data does not match its CRC; if False, `intact` tells whether it matches.
    """

    def __init__(
        self,
        stream: BinaryIO,
        path: str,
        *,
        verify_checksum: bool = True,
        max_record_bytes: int = MAX_RECORD_BYTES,
        strict: bool = True,
    ) -> None:
        self._stream = stream
        self._path = path
        self._verify = verify_checksum
        self._most = max_record_bytes
        self._strict = strict
        self._next = 0
        #: Index of the current record, from 0, and the position of its header.
        self.record = -1
        self.offset = 0
        #: Whether the data of the current record matches its CRC; True if the CRC is not checked.
        self.intact = True

    def __iter__(self) -> Iterator[bytes]:
        while (data := self.read()) is not None:
            yield data

    def read(self) -> bytes | None:
        """Return the data of the next record, or None at the end of the file."""
        length = self._header()
        if length is None:
            return None
        whole = f"a record of {length} bytes"
        data = self._exactly(length, whole)
        stored = _CRC.unpack(self._exactly(FOOTER_BYTES, whole))[0]
        self.intact = not self._verify or masked_crc(data) == stored
        if not self.intact and self._strict:
            raise self.fault(
                "the data does not match its checksum", "Pass --no-verify-checksum to read it without the check."
            )
        return data

    def skip(self) -> bool:
        """Skip the next record without reading its data; return False at the end of the file."""
        length = self._header()
        if length is None:
            return False
        rest = length + FOOTER_BYTES
        if self._stream.seekable():
            # A seek beyond the end of a file succeeds, so the last byte is read to check that it exists.
            self._guarded_seek(rest - 1)
            rest = 1
        whole = f"a record of {length} bytes"
        while rest:
            n = min(rest, _PIECE_BYTES)
            self._exactly(n, whole)
            rest -= n
        return True

    def fault(self, reason: str, hint: str | None = None) -> BadRecord:
        """Return an error for the current record."""
        return BadRecord(self._path, self.record, self.offset, reason, hint)

    def _header(self) -> int | None:
        self.record += 1
        self.offset = self._next
        head = self._some(HEADER_BYTES)
        if not head:
            return None
        if len(head) < HEADER_BYTES:
            raise self._cut_off("the header of a record")
        length, crc = _HEADER.unpack(head)
        if masked_crc(head[:8]) != crc:
            raise self.fault(
                "this is not a TFRecord file: the length does not match its checksum"
                if not self.record
                else "the length does not match its checksum"
            )
        if length > self._most:
            raise self.fault(
                f"the record has a length of {length} bytes; the limit is {self._most}",
                "If this length is right, raise the limit with --max-record-bytes.",
            )
        self._next += HEADER_BYTES + length + FOOTER_BYTES
        return int(length)

    def _exactly(self, n: int, what: str) -> bytes:
        if n <= _PIECE_BYTES:
            data = self._some(n)
        else:
            pieces: list[bytes] = []
            rest = n
            while rest and (piece := self._some(min(rest, _PIECE_BYTES))):
                pieces.append(piece)
                rest -= len(piece)
            data = b"".join(pieces)
        if len(data) < n:
            raise self._cut_off(what)
        return data

    def _some(self, n: int) -> bytes:
        """Read `n` bytes, or fewer at the end of the file."""
        try:
            data = self._stream.read(n)
            # A decompressing stream may return fewer bytes than requested before its end.
            while 0 < len(data) < n and (more := self._stream.read(n - len(data))):
                data += more
            return data
        except _DAMAGE as e:
            raise self.fault(f"cannot read the rest of the file: {e}") from e

    def _guarded_seek(self, n: int) -> None:
        try:
            self._stream.seek(n, os.SEEK_CUR)
        except _DAMAGE as e:
            raise self.fault(f"cannot seek {n} bytes ahead: {e}") from e

    def _cut_off(self, what: str) -> BadRecord:
        return self.fault(f"the file ends within {what}: it is truncated or still being written")
