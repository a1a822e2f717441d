"""Parses records as ``tf.train.Example`` and ``tf.train.SequenceExample``, without TensorFlow.

It accepts and rejects the same bytes as protobuf's ``FromString``.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeVar

from tfspark.records.wire import (
    FIXED32,
    VARINT,
    Spans,
    delimited,
    entry,
    fields,
    packed_floats,
    packed_ints,
    signed,
    varint,
)

T = TypeVar("T")


class RecordType(str, Enum):
    """The type of a record; the values are those of the connector's option ``recordType``."""

    EXAMPLE = "Example"
    SEQUENCE_EXAMPLE = "SequenceExample"
    BYTE_ARRAY = "ByteArray"


class Kind(str, Enum):
    """The kind of a feature's list."""

    BYTES = "bytes"
    FLOAT = "float"
    INT64 = "int64"


class Feature(NamedTuple):
    """A feature: the kind of its list (None if it has no list) and its values."""

    kind: Kind | None
    values: Sequence[int] | Sequence[float] | Sequence[bytes]


@dataclass
class Record:
    """The content of a record: features of an Example or of a SequenceExample's context, and feature lists."""

    features: dict[str, Feature] = field(default_factory=dict)
    lists: dict[str, list[Feature]] = field(default_factory=dict)


_KINDS = {delimited(1): Kind.BYTES, delimited(2): Kind.FLOAT, delimited(3): Kind.INT64}
_ONE, _TWO = delimited(1), delimited(2)
_ONE_VARINT, _ONE_FIXED32 = 1 << 3 | VARINT, 1 << 3 | FIXED32


def parse(data: bytes, record_type: RecordType) -> Record:
    """Parse a record. A ByteArray may be any bytes; its result is empty.

    Raises
    ------
    MalformedMessage
        If `data` is not a message of this type.
    """
    record = Record()
    if record_type is RecordType.BYTE_ARRAY:
        return record
    for tag, start, end in fields(data, 0, len(data)):
        if tag == _ONE:
            _entries(data, start, end, _feature, record.features)
        elif tag == _TWO and record_type is RecordType.SEQUENCE_EXAMPLE:
            _entries(data, start, end, _feature_list, record.lists)
    return record


def _entries(data: bytes, start: int, end: int, parse_value: Callable[[bytes, Spans], T], into: dict[str, T]) -> None:
    """Read a map from strings to messages; if a key is repeated, its last value is used."""
    for tag, a, b in fields(data, start, end):
        if tag != _ONE:
            continue
        name, value = entry(data, a, b, "the name of a feature")
        into[name] = parse_value(data, value)


def _feature_list(data: bytes, spans: Spans) -> list[Feature]:
    return [_feature(data, [(a, b)]) for start, end in spans for tag, a, b in fields(data, start, end) if tag == _ONE]


def _feature(data: bytes, spans: Spans) -> Feature:
    feature = Feature(None, ())
    for start, end in spans:
        for tag, a, b in fields(data, start, end):
            kind = _KINDS.get(tag)
            if kind is None:
                continue
            values = _LISTS[kind](data, a, b)
            # Lists of the same kind are concatenated; a list of another kind replaces the lists before it.
            if kind is feature.kind:
                feature.values.extend(values)  # type: ignore[union-attr]
            else:
                feature = Feature(kind, values)
    return feature


def _ints(data: bytes, start: int, end: int) -> array[int]:
    values = array("q")
    for tag, a, b in fields(data, start, end):
        if tag == _ONE:
            values.extend(packed_ints(data, a, b))
        elif tag == _ONE_VARINT:
            values.append(signed(varint(data, a, b)[0]))
    return values


def _floats(data: bytes, start: int, end: int) -> array[float]:
    values = array("f")
    for tag, a, b in fields(data, start, end):
        if tag in (_ONE, _ONE_FIXED32):
            values.extend(packed_floats(data, a, b))
    return values


def _bytes(data: bytes, start: int, end: int) -> list[bytes]:
    return [data[a:b] for tag, a, b in fields(data, start, end) if tag == _ONE]


_LISTS: dict[Kind, Callable[[bytes, int, int], Sequence[int] | Sequence[float] | Sequence[bytes]]] = {
    Kind.BYTES: _bytes,
    Kind.FLOAT: _floats,
    Kind.INT64: _ints,
}
