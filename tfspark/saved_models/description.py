"""Reads the signatures of a SavedModel from ``saved_model.pb`` without TensorFlow, whose import takes seconds.

The field numbers come from TensorFlow's ``saved_model.proto``, ``meta_graph.proto`` and ``tensor_shape.proto``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace

from tfspark.errors import ConfigurationError
from tfspark.records.errors import MalformedMessage
from tfspark.records.wire import VARINT, Spans, delimited, entry, fields, signed, text, varint
from tfspark.saved_models.signatures import DEFAULT, PREDICT, Signature, TensorInfo
from tfspark.saved_models.versions import SAVED_MODEL_FILE

_META_GRAPH = delimited(2)
_META_INFO, _SIGNATURE = delimited(1), delimited(5)
_TAG = delimited(4)
_INPUT, _OUTPUT, _METHOD = delimited(1), delimited(2), delimited(3)
_TENSOR_NAME, _DTYPE, _SHAPE, _COMPOSITE = delimited(1), 2 << 3 | VARINT, delimited(3), delimited(5)
_COMPONENT = delimited(2)
_DIMENSION, _UNKNOWN_RANK = delimited(2), 3 << 3 | VARINT
_SIZE = 1 << 3 | VARINT
_GRAPH, _LIBRARY, _FUNCTION, _ARGUMENTS = delimited(2), delimited(2), delimited(1), delimited(7)
_SIGNATURE_OF_FUNCTION, _ARGUMENT, _NAME = delimited(1), delimited(2), delimited(1)
_KEY_OF_ARGUMENT, _VALUE_OF_ARGUMENT, _ATTRIBUTE, _STRING = 1 << 3 | VARINT, delimited(2), delimited(1), delimited(2)

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
"""Names of TensorFlow's dtypes, in the order of their numbers in ``types.proto``, which start at 1."""


def read_signatures(directory: str) -> dict[str, Signature]:
    """Return the signatures of the graph with the tag ``serve``, in the alphabetical order of their names.

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
        If the SavedModel has no signature of this name.
    """
    found = read_signatures(directory)
    if name not in found:
        raise ConfigurationError(f"{directory} has no signature {name!r}; its signatures are {list(found)}.")
    return found[name]


def _serving_signatures(data: bytes) -> dict[str, Signature]:
    """Return the signatures of the first graph with the tag ``serve``."""
    for tag, start, end in fields(data, 0, len(data)):
        if tag == _META_GRAPH and "serve" in _tags(data, start, end):
            found = (
                entry(data, s, e, "the name of a signature") for t, s, e in fields(data, start, end) if t == _SIGNATURE
            )
            signatures = {name: _signature(name, data, value) for name, value in found}
            if any(_maybe_splits(s.inputs) for s in signatures.values()):
                ragged = _split_arguments(data, start, end)
                return {name: _with_splits(s, ragged) for name, s in signatures.items()}
            return signatures
    return {}


def _maybe_splits(inputs: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return the inputs that may be row splits, each with the name of the input that it may split.

    TensorFlow numbers the parts of a ragged tensor ``x``: the row splits are ``x_1``, ``x_2`` and so on.
    """
    heads = {n: n.rpartition("_") for n, i in inputs.items() if i.dtype in ("int64", "int32") and i.shape == (None,)}
    return {n: head for n, (head, _, number) in heads.items() if number.isdecimal() and head in inputs}


def _with_splits(signature: Signature, ragged: set[tuple[str, str]]) -> Signature:
    splits = {n: head for n, head in _maybe_splits(signature.inputs).items() if (n, head) in ragged}
    inputs = {n: replace(info, splits_of=splits.get(n, "")) for n, info in signature.inputs.items()}
    return replace(signature, inputs=inputs)


def _split_arguments(data: bytes, start: int, end: int) -> set[tuple[str, str]]:
    """Return arguments of the graph's functions that are parts of a tensor, each with the user's name for the tensor.

    A function of a ``RaggedTensor`` ``x`` has the arguments ``x`` and ``x_1``; the user's name for both is ``x``.
    """
    found = set()
    graphs = [(s, e) for tag, s, e in fields(data, start, end) if tag == _GRAPH]
    libraries = [(s, e) for tag, s, e in _fields(data, graphs) if tag == _LIBRARY]
    for _, s, e in (f for f in _fields(data, libraries) if f[0] == _FUNCTION):
        parts = list(fields(data, s, e))
        signatures = [(a, b) for tag, a, b in parts if tag == _SIGNATURE_OF_FUNCTION]
        arguments = [(a, b) for tag, a, b in _fields(data, signatures) if tag == _ARGUMENT]
        names = [
            text(data, c, d, "the name of an argument")
            for a, b in arguments
            for tag, c, d in fields(data, a, b)
            if tag == _NAME
        ]
        for number, name in _names_by_users(data, [(a, b) for tag, a, b in parts if tag == _ARGUMENTS]):
            if number < len(names) and names[number] != name:
                found.add((names[number], name))
    return found


def _names_by_users(data: bytes, arguments: Spans) -> Iterator[tuple[int, str]]:
    """Yield the position of each argument of a function, and the name that the user gave it."""
    for start, end in arguments:
        number, values = 0, []
        for tag, s, e in fields(data, start, end):
            if tag == _KEY_OF_ARGUMENT:
                number = varint(data, s, e)[0]
            elif tag == _VALUE_OF_ARGUMENT:
                values.append((s, e))
        for tag, s, e in _fields(data, values):
            if tag == _ATTRIBUTE:
                name, value = entry(data, s, e, "the name of an attribute")
                if name == "_user_specified_name":
                    yield from (
                        (number, text(data, a, b, "an argument's name"))
                        for t, a, b in _fields(data, value)
                        if t == _STRING
                    )


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
    components: list[TensorInfo] = []
    for tag, s, e in _fields(data, spans):
        if tag == _TENSOR_NAME:
            name = text(data, s, e, "the name of a tensor")
        elif tag == _DTYPE:
            number = varint(data, s, e)[0]
            dtype = DTYPES[number - 1] if 1 <= number <= len(DTYPES) else f"dtype {number}"
        elif tag == _SHAPE:
            shape.append((s, e))
        elif tag == _COMPOSITE:
            components = [_tensor(data, [(a, b)]) for t, a, b in fields(data, s, e) if t == _COMPONENT]
    if components:
        # The components of a ragged tensor are its flat values, then its row splits.
        values, *splits = components
        row = values.row_shape
        return TensorInfo(values.dtype, None if row is None else (None,) * (len(splits) + 1) + row, name)
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
