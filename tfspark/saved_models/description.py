"""The signatures in a ``saved_model.pb``, read without TensorFlow, whose import takes seconds.

Field numbers are those of TensorFlow's ``saved_model.proto``, ``meta_graph.proto`` and ``tensor_shape.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tfspark.records.wire import VARINT, delimited, fields, signed, varint

_META_GRAPH = delimited(2)
_META_INFO, _SIGNATURE = delimited(1), delimited(5)
_TAG = delimited(4)
_INPUT, _OUTPUT, _METHOD = delimited(1), delimited(2), delimited(3)
_TENSOR_NAME, _DTYPE, _SHAPE = delimited(1), 2 << 3 | VARINT, delimited(3)
_DIMENSION, _UNKNOWN_RANK = delimited(2), 3 << 3 | VARINT
_SIZE = 1 << 3 | VARINT
_KEY, _VALUE = delimited(1), delimited(2)

DTYPES = [
    "float32",
    "float64",
    "int32",
    "uint8",
    "int16",
    "int8",
    "string",
    "complex64",
    "int64",
    "bool",
    "qint8",
    "quint8",
    "qint32",
    "bfloat16",
    "qint16",
    "quint16",
    "uint16",
    "complex128",
    "float16",
    "resource",
    "variant",
    "uint32",
    "uint64",
    "float8_e5m2",
    "float8_e4m3fn",
]
"""Names of TensorFlow's dtypes, by their numbers in ``types.proto``, of which the first is 1."""


@dataclass
class DescribedTensor:
    """One input or output: its tensor in the graph, its dtype, and its shape, in which ``None`` is any length."""

    name: str = ""
    dtype: str = "invalid"
    shape: tuple[int | None, ...] | None = ()


@dataclass
class DescribedSignature:
    """One signature."""

    method: str = ""
    inputs: dict[str, DescribedTensor] = field(default_factory=dict)
    outputs: dict[str, DescribedTensor] = field(default_factory=dict)


def serving_signatures(data: bytes) -> dict[str, DescribedSignature]:
    """Return the signatures of the first graph that is tagged for serving.

    Raises
    ------
    MalformedMessage
        If this is no SavedModel's description.
    UnicodeDecodeError
        If a name in it is no text.
    """
    for tag, start, end in fields(data, 0, len(data)):
        if tag == _META_GRAPH and "serve" in _tags(data, start, end):
            found = (_entry(data, s, e) for t, s, e in fields(data, start, end) if t == _SIGNATURE)
            return {name: _signature(data, *place) for name, place in found}
    return {}


def _tags(data: bytes, start: int, end: int) -> set[str]:
    infos = (place for tag, *place in fields(data, start, end) if tag == _META_INFO)
    return {_text(data, s, e) for info in infos for tag, s, e in fields(data, *info) if tag == _TAG}


def _entry(data: bytes, start: int, end: int) -> tuple[str, tuple[int, int]]:
    """Return the key of an entry of a map, and where its value is."""
    key, value = "", (end, end)
    for tag, s, e in fields(data, start, end):
        if tag == _KEY:
            key = _text(data, s, e)
        elif tag == _VALUE:
            value = s, e
    return key, value


def _signature(data: bytes, start: int, end: int) -> DescribedSignature:
    out = DescribedSignature()
    for tag, s, e in fields(data, start, end):
        if tag == _METHOD:
            out.method = _text(data, s, e)
        elif tag in (_INPUT, _OUTPUT):
            name, place = _entry(data, s, e)
            (out.inputs if tag == _INPUT else out.outputs)[name] = _tensor(data, *place)
    return out


def _tensor(data: bytes, start: int, end: int) -> DescribedTensor:
    out = DescribedTensor()
    for tag, s, e in fields(data, start, end):
        if tag == _TENSOR_NAME:
            out.name = _text(data, s, e)
        elif tag == _DTYPE:
            number = varint(data, s, e)[0]
            out.dtype = DTYPES[number - 1] if 1 <= number <= len(DTYPES) else f"dtype {number}"
        elif tag == _SHAPE:
            out.shape = _shape(data, s, e)
    return out


def _shape(data: bytes, start: int, end: int) -> tuple[int | None, ...] | None:
    if any(varint(data, s, e)[0] for tag, s, e in fields(data, start, end) if tag == _UNKNOWN_RANK):
        return None
    return tuple(_sizes(data, start, end))


def _sizes(data: bytes, start: int, end: int) -> Iterator[int | None]:
    for tag, s, e in fields(data, start, end):
        if tag == _DIMENSION:
            sizes = [signed(varint(data, a, b)[0]) for t, a, b in fields(data, s, e) if t == _SIZE]
            size = sizes[-1] if sizes else 0
            yield None if size < 0 else size


def _text(data: bytes, start: int, end: int) -> str:
    return data[start:end].decode()
