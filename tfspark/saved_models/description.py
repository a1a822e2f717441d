"""Reads the signatures of a SavedModel from its own description, without TensorFlow, whose import takes seconds.

Field numbers are those of TensorFlow's ``saved_model.proto``, ``meta_graph.proto`` and ``tensor_shape.proto``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from tfspark.errors import ConfigurationError
from tfspark.records.faults import MalformedMessage
from tfspark.records.wire import VARINT, Spans, delimited, entry, fields, signed, text, varint
from tfspark.saved_models.signatures import DEFAULT, PREDICT, Signature, TensorInfo
from tfspark.saved_models.versions import SAVED_MODEL_FILE

_META_GRAPH = delimited(2)
_META_INFO, _SIGNATURE = delimited(1), delimited(5)
_TAG = delimited(4)
_INPUT, _OUTPUT, _METHOD = delimited(1), delimited(2), delimited(3)
_TENSOR_NAME, _DTYPE, _SHAPE = delimited(1), 2 << 3 | VARINT, delimited(3)
_DIMENSION, _UNKNOWN_RANK = delimited(2), 3 << 3 | VARINT
_SIZE = 1 << 3 | VARINT

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


def read_signatures(directory: str) -> dict[str, Signature]:
    """Return the signatures of the graph that is tagged for serving, by name, in alphabetical order.

    Raises
    ------
    ConfigurationError
        If the file cannot be read as a SavedModel.
    """
    path = os.path.join(directory, SAVED_MODEL_FILE)
    try:
        with open(path, "rb") as f:
            found = _serving_signatures(f.read())
    except (OSError, MalformedMessage) as e:
        raise ConfigurationError(f"Cannot read {path}: {e}") from None
    return {name: found[name] for name in sorted(found) if not name.startswith("__")}


def read_signature(directory: str, name: str = DEFAULT) -> Signature:
    """Return one signature of a SavedModel.

    Raises
    ------
    ConfigurationError
        If it has none of this name.
    """
    found = read_signatures(directory)
    if name not in found:
        raise ConfigurationError(f"{directory} has no signature {name!r}.", hint=f"It has {list(found)}.")
    return found[name]


def _serving_signatures(data: bytes) -> dict[str, Signature]:
    """Return the signatures of the first graph that is tagged for serving."""
    for tag, start, end in fields(data, 0, len(data)):
        if tag == _META_GRAPH and "serve" in _tags(data, start, end):
            found = (
                entry(data, s, e, "the name of a signature") for t, s, e in fields(data, start, end) if t == _SIGNATURE
            )
            return {name: _signature(name, data, value) for name, value in found}
    return {}


def _tags(data: bytes, start: int, end: int) -> set[str]:
    infos = [(s, e) for tag, s, e in fields(data, start, end) if tag == _META_INFO]
    return {text(data, s, e, "a tag") for tag, s, e in _fields(data, infos) if tag == _TAG}


def _signature(name: str, data: bytes, spans: Spans) -> Signature:
    method = ""
    tensors: dict[int, dict[str, TensorInfo]] = {_INPUT: {}, _OUTPUT: {}}
    for tag, s, e in _fields(data, spans):
        if tag == _METHOD:
            method = text(data, s, e, "the method of a signature")
        elif tag in tensors:
            of, value = entry(data, s, e, "the name of a tensor")
            tensors[tag][of] = _tensor(data, value)
    inputs, outputs = (dict(sorted(tensors[tag].items())) for tag in (_INPUT, _OUTPUT))
    return Signature(name, inputs, outputs, method or PREDICT)


def _tensor(data: bytes, spans: Spans) -> TensorInfo:
    dtype, name = "invalid", ""
    shape: Spans = []
    for tag, s, e in _fields(data, spans):
        if tag == _TENSOR_NAME:
            name = text(data, s, e, "the name of a tensor")
        elif tag == _DTYPE:
            number = varint(data, s, e)[0]
            dtype = DTYPES[number - 1] if 1 <= number <= len(DTYPES) else f"dtype {number}"
        elif tag == _SHAPE:
            shape.append((s, e))
    return TensorInfo(dtype, _shape(data, shape), name)


def _shape(data: bytes, spans: Spans) -> tuple[int | None, ...] | None:
    if any(varint(data, s, e)[0] for tag, s, e in _fields(data, spans) if tag == _UNKNOWN_RANK):
        return None
    return tuple(_size(data, s, e) for tag, s, e in _fields(data, spans) if tag == _DIMENSION)


def _size(data: bytes, start: int, end: int) -> int | None:
    sizes = [signed(varint(data, s, e)[0]) for tag, s, e in fields(data, start, end) if tag == _SIZE]
    size = sizes[-1] if sizes else 0
    return None if size < 0 else size


def _fields(data: bytes, spans: Spans) -> Iterator[tuple[int, int, int]]:
    return (found for start, end in spans for found in fields(data, start, end))
