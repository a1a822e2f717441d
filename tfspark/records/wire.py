"""Protobuf's wire format: reads numbers and fields from untrusted bytes.

No function recurses, and a length field alone never causes memory to be allocated.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from tfspark.records.errors import MalformedMessage

VARINT, FIXED64, DELIMITED, GROUP, END_GROUP, FIXED32 = range(6)

Spans = list[tuple[int, int]]
"""Start and end offsets of the parts of a message."""

# The same limit as in protobuf's own parsers.
_MAX_GROUP_DEPTH = 100
_MAX_VARINT_BYTES = 10
_MAX_TAG_BYTES = 5

# numpy decodes packed lists of at least _NUMPY_BYTES bytes, in pieces of _PIECE_BYTES bytes to limit its memory.
_NUMPY_BYTES = 64
_PIECE_BYTES = 1 << 20


def delimited(number: int) -> int:
    """Return the tag of a length-delimited field: a message, bytes, or packed numbers."""
    return number << 3 | DELIMITED


_KEY, _VALUE = delimited(1), delimited(2)


def varint(data: bytes, start: int, end: int, most: int = _MAX_VARINT_BYTES) -> tuple[int, int]:
    """Return the unsigned number at `start`, and the offset after it."""
    value = shift = 0
    for position in range(start, min(end, start + most)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + 1
        shift += 7
    raise MalformedMessage(f"a number has more than {most} bytes" if end - start >= most else "a number is truncated")


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the tag, and the start and end of the content, of each field of a message; skip groups."""
    while start < end:
        tag, start = _tag(data, start, end)
        if tag & 7 == GROUP:
            start = _skip_group(data, start, end, tag >> 3)
            continue
        start, after = _content(data, start, end, tag)
        yield tag, start, after
        start = after


def text(data: bytes, start: int, end: int, what: str) -> str:
    """Return the UTF-8 string in `data`; the error calls it `what`."""
    try:
        return data[start:end].decode()
    except UnicodeDecodeError as e:
        raise MalformedMessage(f"{what} is not UTF-8: {data[start:end][:80]!r}") from e


def entry(data: bytes, start: int, end: int, what: str) -> tuple[str, Spans]:
    """Return the key of an entry of a map from strings to messages, and the spans of its value.

    If the value has several parts, the message is their concatenation.
    """
    key, value = "", []
    for tag, a, b in fields(data, start, end):
        if tag == _KEY:
            key = text(data, a, b, what)
        elif tag == _VALUE:
            value.append((a, b))
    return key, value


def _tag(data: bytes, start: int, end: int) -> tuple[int, int]:
    tag, start = varint(data, start, end, _MAX_TAG_BYTES)
    if not 8 <= tag <= 0xFFFFFFFF:
        raise MalformedMessage(f"{tag} is not a valid field tag")
    return tag, start


def _content(data: bytes, start: int, end: int, tag: int) -> tuple[int, int]:
    """Return the start and end of the content of a field that is not a group."""
    kind = tag & 7
    if kind == VARINT:
        return start, varint(data, start, end)[1]
    if kind == DELIMITED:
        length, start = varint(data, start, end, _MAX_TAG_BYTES)
    elif kind == FIXED32:
        length = 4
    elif kind == FIXED64:
        length = 8
    elif kind == END_GROUP:
        raise MalformedMessage("a group ends without a beginning")
    else:
        raise MalformedMessage(f"{kind} is not a valid wire type")
    if length > end - start:
        raise MalformedMessage("a field is longer than its message")
    return start, start + length


def _skip_group(data: bytes, start: int, end: int, number: int) -> int:
    open_groups = [number]
    while open_groups:
        tag, start = _tag(data, start, end)
        if tag & 7 == GROUP:
            if len(open_groups) == _MAX_GROUP_DEPTH:
                raise MalformedMessage("groups are nested too deep")
            open_groups.append(tag >> 3)
        elif tag & 7 == END_GROUP:
            if open_groups.pop() != tag >> 3:
                raise MalformedMessage("a group is not closed")
        else:
            start = _content(data, start, end, tag)[1]
    return start


def signed(value: int) -> int:
    """Return the int64 with the two's complement `value`."""
    return value - (1 << 64) if value >> 63 else value


def packed_ints(data: bytes, start: int, end: int) -> array[int]:
    """Return the int64 values of a packed list."""
    values = array("q")
    if end - start < _NUMPY_BYTES:
        while start < end:
            value, start = varint(data, start, end)
            values.append(signed(value))
        return values
    while start < end:
        start = _decode_piece(data, start, min(end, start + _PIECE_BYTES), values)
    return values


def _decode_piece(data: bytes, start: int, end: int, values: array[int]) -> int:
    """Append the numbers that end before `end` to `values`; return the offset after the last one."""
    import numpy as np

    piece = np.frombuffer(data, np.uint8, end - start, start)
    ends = np.flatnonzero(piece < 0x80)
    used = int(ends[-1]) + 1 if len(ends) else 0
    starts = np.concatenate(([0], ends[:-1] + 1)) if used else ends
    sizes = ends - starts + 1
    if len(piece) - used >= _MAX_VARINT_BYTES or (used and int(sizes.max()) > _MAX_VARINT_BYTES):
        raise MalformedMessage(f"a number has more than {_MAX_VARINT_BYTES} bytes")
    if not used:
        raise MalformedMessage("a number is truncated")
    shifts = (np.arange(used) - np.repeat(starts, sizes)) * 7
    parts = (piece[:used] & 0x7F).astype(np.uint64) << shifts.astype(np.uint64)
    values.frombytes(np.bitwise_or.reduceat(parts, starts).tobytes())
    return start + used


def packed_floats(data: bytes, start: int, end: int) -> array[float]:
    """Return the little-endian 32-bit floats from `start` to `end`."""
    import sys

    if (end - start) % 4:
        raise MalformedMessage(f"a packed list of floats has {end - start} bytes")
    values = array("f", data[start:end])
    if sys.byteorder == "big":
        values.byteswap()
    return values
