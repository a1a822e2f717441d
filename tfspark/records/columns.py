"""Converts Arrow columns to records and back, with exactly the same results as the connector in the JVM.

Sessions without a JVM use this module. The connector's code is in ``connectors/tfrecord/src`` (``RecordEncoder``,
``RecordDecoder``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tfspark.records.errors import MalformedMessage
from tfspark.records.example import Feature, Kind, Record, RecordType, parse
from tfspark.records.wire import delimited

_KINDS = {"an Int64List": (Kind.INT64,), "a BytesList": (Kind.BYTES,)}
_NUMBERS = "a FloatList or an Int64List"
_FIELDS = {Kind.BYTES: 1, Kind.FLOAT: 2, Kind.INT64: 3}
_NAMES = {Kind.BYTES: "a BytesList", Kind.FLOAT: "a FloatList", Kind.INT64: "an Int64List", None: "no list"}


def encoded(structs: pa.StructArray, record_type: RecordType) -> pa.Array:
    """Return the record of each struct; a null struct gives null.

    Raises
    ------
    MalformedMessage
        If a record cannot hold a value.
    """
    fields = [(f.name, _writer(f, record_type)) for f in structs.type]
    columns = [_plain(structs.field(i)).to_pylist() for i in range(len(fields))]
    nested = [_depth(f.type) == 2 for f in structs.type]
    records: list[bytes | None] = []
    for row, there in enumerate(structs.is_valid().to_pylist()):
        parts = {False: b"", True: b""}
        for (name, write), values, lists in zip(fields, columns, nested, strict=True):
            if there and values[row] is not None:
                parts[lists] += _message(1, _message(1, name.encode()) + _message(2, _named(name, write, values[row])))
        record = _message(1, parts[False])
        if record_type is RecordType.SEQUENCE_EXAMPLE:
            record += _message(2, parts[True])
        records.append(record if there else None)
    return pa.array(records, pa.binary())


def _named(name: str, write: Callable[[Any], bytes], value: Any) -> bytes:
    try:
        return write(value)
    except MalformedMessage as e:
        raise MalformedMessage(f"to_example: column '{name}': {e.message}", e.hint) from None


def _depth(t: pa.DataType) -> int:
    return 1 + _depth(t.value_type) if pa.types.is_list(t) or pa.types.is_large_list(t) else 0


def _element(t: pa.DataType) -> pa.DataType:
    return _element(t.value_type) if _depth(t) else t


def _plain(array: pa.Array) -> pa.Array:
    """Convert dates and timestamps to the numbers that records hold."""
    t = array.type
    if _depth(t):
        values = _plain(array.values)
        return type(array).from_arrays(array.offsets, values, mask=array.is_null() if array.null_count else None)
    if pa.types.is_date32(t):
        return array.cast(pa.int32())
    return array.cast(pa.int64()) if pa.types.is_timestamp(t) else array


def _kind(t: pa.DataType) -> Kind | None:
    if pa.types.is_integer(t) or pa.types.is_boolean(t) or pa.types.is_date32(t) or pa.types.is_timestamp(t):
        return Kind.INT64
    if pa.types.is_floating(t) or pa.types.is_decimal(t):
        return Kind.FLOAT
    if any(is_a(t) for is_a in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)):
        return Kind.BYTES
    return Kind.BYTES if pa.types.is_large_binary(t) else None


def _writer(field: pa.Field, record_type: RecordType) -> Callable[[Any], bytes]:
    depth, kind = _depth(field.type), _kind(_element(field.type))
    if kind is None or depth > (2 if record_type is RecordType.SEQUENCE_EXAMPLE else 1):
        raise MalformedMessage(
            f"recordType={record_type.value} cannot hold column '{field.name}' of type {field.type}",
            "Arrays of arrays need recordType=SequenceExample." if kind else None,
        )
    single = {Kind.INT64: _ints, Kind.FLOAT: _floats, Kind.BYTES: _blobs}[kind]

    def feature(values: Sequence[Any]) -> bytes:
        if any(v is None for v in values):
            raise MalformedMessage(
                "the array contains a null, which TensorFlow's lists cannot hold",
                "Remove nulls with array_compact.",
            )
        return _message(_FIELDS[kind], single(values))

    if depth == 0:
        return lambda value: feature([value])
    if depth == 1:
        return feature

    def features(lists: Sequence[Any]) -> bytes:
        if any(v is None for v in lists):
            feature([None])
        return b"".join(_message(1, feature(v)) for v in lists)

    return features


def _ints(values: Sequence[int]) -> bytes:
    return _message(1, b"".join(_varint(int(v) & 0xFFFFFFFFFFFFFFFF) for v in values)) if values else b""


def _floats(values: Sequence[Any]) -> bytes:
    if not values:
        return b""
    doubles = np.array([float(v) for v in values], np.float64)
    with np.errstate(over="ignore"):
        floats = doubles.astype("<f4")
    beyond = np.isinf(floats) & ~np.isinf(doubles)
    if beyond.any():
        value = float(doubles[beyond][0])
        raise MalformedMessage(f"the value {value} is out of range for TensorFlow's floats")
    return _message(1, floats.tobytes())


def _blobs(values: Sequence[Any]) -> bytes:
    return b"".join(_message(1, v.encode() if isinstance(v, str) else v) for v in values)


def _message(field: int, body: bytes) -> bytes:
    return _varint(delimited(field)) + _varint(len(body)) + body


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def decoded(
    records: pa.Array, schema: pa.Schema, record_type: RecordType, *, tolerant: bool, case_sensitive: bool, corrupt: str
) -> pa.StructArray:
    """Return the struct of each record; a null record gives null.

    Parameters
    ----------
    tolerant
        If True, a value that does not fit becomes null; if False, it is an error.
    corrupt
        Name of the column that gets the bytes of malformed records, if the schema has it.

    Raises
    ------
    MalformedMessage
        If a record does not fit the schema and `tolerant` is False.
    """
    columns: list[list[Any]] = [[] for _ in schema]
    readers = [None if f.name == corrupt else _Reader(f, record_type, case_sensitive) for f in schema]
    for data in records.to_pylist():
        values, fault = _row(data, readers, record_type) if data is not None else ([None] * len(readers), None)
        if fault is not None and not tolerant:
            raise MalformedMessage(f"from_example: {fault.message}", fault.hint)
        for column, reader, value in zip(columns, readers, values, strict=True):
            column.append((data if fault else None) if reader is None else value)
    arrays = [_array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    mask = records.is_null() if records.null_count else None
    return pa.StructArray.from_arrays(arrays, fields=[f.with_nullable(True) for f in schema], mask=mask)


def _array(values: list[Any], t: pa.DataType) -> pa.Array:
    if _depth(t) == 0 and (pa.types.is_date32(t) or pa.types.is_timestamp(t)):
        return pa.array(values, pa.int32() if pa.types.is_date32(t) else pa.int64()).cast(t)
    return pa.array(values, t)


def _row(
    data: bytes, readers: Sequence[_Reader | None], record_type: RecordType
) -> tuple[list[Any], MalformedMessage | None]:
    try:
        record = parse(data, record_type)
        lists = record if record.lists else _lists_of(data)
    except MalformedMessage as e:
        return [None] * len(readers), e
    values, fault = [], None
    for reader in readers:
        value = None
        try:
            value = reader.read(record, lists) if reader is not None else None
        except MalformedMessage as e:
            fault = fault or e
        values.append(value)
    return values, fault


def _lists_of(data: bytes) -> Record:
    """Return the record parsed as a SequenceExample, because error messages need its feature lists."""
    try:
        return parse(data, RecordType.SEQUENCE_EXAMPLE)
    except MalformedMessage:
        return Record()


class _Reader:
    """Reads one column."""

    def __init__(self, field: pa.Field, record_type: RecordType, case_sensitive: bool) -> None:
        self.name = field.name
        self._depth = _depth(field.type)
        self._element = _element(field.type)
        self._record_type = record_type
        self._case_sensitive = case_sensitive
        kind = _kind(self._element)
        expected = {Kind.INT64: "an Int64List", Kind.BYTES: "a BytesList"}
        self._expected = _NUMBERS if kind is None else expected.get(kind, _NUMBERS)

    def read(self, record: Record, lists: Record) -> Any:
        """Return the column's value."""
        if self._depth == 2:
            features = self._find(record.lists, "feature list")
            if features is not None:
                return [None if f.kind is None else self._values(f, "feature list") for f in features]
            if self._find(record.features, "feature list") is not None:
                self._fail("feature list", "expected a feature list, found a feature of the context")
            return None
        feature = self._find(record.features, "feature")
        if feature is None and self._find(lists.lists, "feature") is not None:
            sequence = self._record_type is RecordType.SEQUENCE_EXAMPLE
            expected = "a feature of the context" if sequence else "a feature"
            hint = "" if sequence else "Read it with recordType=SequenceExample, as array<array<...>>."
            self._fail("feature", f"expected {expected}, found a feature list", hint or None)
        if feature is None or feature.kind is None:
            return None
        values = self._values(feature, "feature")
        if self._depth:
            return values
        if len(values) > 1:
            self._fail("feature", f"expected a single value, found {len(values)}", "Read the column as an array.")
        return values[0] if values else None

    def _find(self, entries: Mapping[str, Any], what: str) -> Any:
        if self._case_sensitive:
            return entries.get(self.name)
        same = [n for n in entries if n.lower() == self.name.lower()]
        if len(same) > 1:
            other = next(n for n in same if n != self.name)
            hint = "Set spark.sql.caseSensitive=true."
            self._fail(what, f"the record also has '{other}', which differs only in case", hint)
        return entries[same[0]] if same else None

    def _values(self, feature: Feature, what: str) -> list[Any]:
        kinds = _KINDS.get(self._expected, (Kind.FLOAT, Kind.INT64))
        if feature.kind not in kinds:
            self._fail(what, f"expected {self._expected}, found {_NAMES[feature.kind]}")
        try:
            return [self._value(v) for v in feature.values]
        except MalformedMessage as e:
            self._fail(what, e.message)
            raise

    def _value(self, v: Any) -> Any:
        t = self._element
        if pa.types.is_boolean(t) and v in (0, 1):
            return bool(v)
        if pa.types.is_string(t) or pa.types.is_large_string(t):
            return v.decode(errors="replace")
        if pa.types.is_decimal(t):
            return _decimal(v, t)
        if pa.types.is_floating(t):
            return float(v)
        if pa.types.is_boolean(t) or (
            _kind(t) is Kind.INT64 and not -(1 << t.bit_width - 1) <= v < 1 << t.bit_width - 1
        ):
            raise MalformedMessage(f"the value {v} is out of range for {t}")
        return v

    def _fail(self, what: str, said: str, hint: str | None = None) -> None:
        raise MalformedMessage(f"{what} '{self.name}': {said}", hint)


def _decimal(v: Any, t: pa.DataType) -> Any:
    """Return the shortest decimal that equals the float `v`, rounded to the scale of the column."""
    import decimal

    number = decimal.Decimal(str(np.float32(v))) if isinstance(v, float) else decimal.Decimal(v)
    try:
        fitted = number.quantize(decimal.Decimal(1).scaleb(-t.scale), decimal.ROUND_HALF_UP, decimal.Context(prec=76))
    except decimal.InvalidOperation as e:
        raise MalformedMessage(f"the value {v} is not a decimal number") from e
    if len(fitted.as_tuple().digits) > t.precision:
        raise MalformedMessage(f"the value {v} is out of range for decimal({t.precision},{t.scale})")
    return fitted
