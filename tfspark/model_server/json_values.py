"""Converts JSON values to arrays and back, with the rules of TensorFlow Serving's REST API."""

from __future__ import annotations

import base64
import binascii
import json
from itertools import chain
from typing import Any

import numpy as np
import tensorflow as tf

from tfspark.model_server.errors import RequestError
from tfspark.saved_models.signatures import TensorInfo

BYTES_SUFFIX = "_bytes"
"""Outputs whose names have this suffix are encoded in base64; so are strings that are not valid UTF-8."""

MOST_DIMENSIONS = 32


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a body, which must be a JSON object.

    Raises
    ------
    RequestError
        If the body is not a JSON object.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise RequestError(f"JSON Parse error: {e}") from None
    if not isinstance(value, dict):
        raise RequestError("JSON Parse error: the body must be an object.")
    return value


def decode(name: str, value: Any, info: TensorInfo) -> np.ndarray:
    """Return a JSON value as an array of the input's dtype; its shape is that of the nested lists.

    Raises
    ------
    RequestError
        If the value does not fit the dtype or is not rectangular.
    """
    if info.dtype == "string":
        return _strings(name, value)
    target = tf.as_dtype(info.dtype)
    if target.is_bool:
        return _numbers(name, value, info.dtype, {bool}, np.dtype(bool))
    if target.is_integer:
        return _integers(name, value, info.dtype)
    if target.is_floating:
        return _floats(name, value, info.dtype)
    raise RequestError(f'Input "{name}" takes {info.dtype}, which JSON cannot hold.')


def _numbers(name: str, value: Any, dtype: str, types: set[type], target: np.dtype[Any]) -> np.ndarray:
    # If one value is a string, NumPy makes an array of strings, all with the length of the longest.
    if not leaf_types(name, value) <= types:
        raise RequestError(f'Input "{name}" takes {dtype}, but has values of another type.')
    try:
        return np.array(value, target)
    except (ValueError, RecursionError):
        raise RequestError(f'Input "{name}" holds lists of different lengths.') from None


def _integers(name: str, value: Any, dtype: str) -> np.ndarray:
    target = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    limits = np.iinfo(target)
    try:
        found = _numbers(name, value, dtype, {int}, np.dtype(np.int64))
    except OverflowError:
        # Integers of Python have no limits.
        found = _numbers(name, value, dtype, {int}, np.dtype(object))
    if found.size and not (limits.min <= found.min() and found.max() <= limits.max):
        raise RequestError(f'Input "{name}" takes {dtype}, but holds a number beyond its range.')
    return found.astype(target)


def _floats(name: str, value: Any, dtype: str) -> np.ndarray:
    target = tf.as_dtype(dtype)
    try:
        found = _numbers(name, value, dtype, {int, float}, np.dtype(np.float64))
    except OverflowError:
        raise RequestError(f'Input "{name}" takes {dtype}, but holds a number beyond its range.') from None
    if target.size < 8:
        finite = found[np.isfinite(found)]
        if finite.size and np.abs(finite).max() > float(target.max):
            raise RequestError(f'Input "{name}" takes {dtype}, but holds a number beyond its range.')
    exact = 2 ** (53 if target.size == 8 else 24) - 1
    if found.size and np.abs(found).max() > exact and any(type(v) is int and abs(v) > exact for v in _leaves(value)):
        raise RequestError(f'Input "{name}" has whole numbers that {dtype} cannot hold exactly.')
    return found.astype(target.as_numpy_dtype)


def leaf_types(name: str, value: Any) -> set[type]:
    """Return the types of the items of nested lists; if ragged, of the outermost level that mixes lists and items."""
    level = [value]
    for _ in range(MOST_DIMENSIONS + 1):
        types = set(map(type, level))
        if types != {list}:
            return types - {list}
        level = list(chain.from_iterable(level))
    raise _too_deep(name)


def _leaves(value: Any) -> list[Any]:
    level = [value]
    while level and type(level[0]) is list:
        level = list(chain.from_iterable(level))
    return level


def _too_deep(name: str) -> RequestError:
    return RequestError(f'Input "{name}" has more than {MOST_DIMENSIONS} dimensions.')


def _strings(name: str, value: Any) -> np.ndarray:
    shape = []
    level = value
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
        if len(shape) > MOST_DIMENSIONS:
            raise _too_deep(name)
    leaves = [value]
    for size in shape:
        if not all(isinstance(v, list) and len(v) == size for v in leaves):
            raise RequestError(f'Input "{name}" holds lists of different lengths.')
        leaves = [v for inner in leaves for v in inner]
    array = np.empty(len(leaves), object)
    array[:] = [text(name, v) for v in leaves]
    return array.reshape(shape)


def is_base64(value: Any) -> bool:
    """Return whether a JSON value is ``{"b64": ...}``, which stands for bytes."""
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def text(name: str, value: Any) -> bytes:
    """Return the bytes of a JSON string or of ``{"b64": ...}``; the padding of base64 may be missing.

    Raises
    ------
    RequestError
        If the value is neither, or is invalid.
    """
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise RequestError(f'"{name}" has a string with an unpaired surrogate.') from None
    if is_base64(value):
        digits = "".join(value["b64"].split()).rstrip("=")
        try:
            return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise RequestError(f'"{name}" has a "b64" value that is not base64.') from None
    raise RequestError(f'"{name}" takes strings, or {{"b64": ...}}.')


def encode(name: str, array: np.ndarray) -> Any:
    """Return an output as a JSON value; numbers have the fewest digits that identify them.

    Raises
    ------
    RequestError
        If JSON has no values for its dtype.
    """
    kind = array.dtype.kind
    if kind in "OSU":
        flat = np.empty(array.size, object)
        flat[:] = [_encode_bytes(v, name.endswith(BYTES_SUFFIX)) for v in array.reshape(-1)]
        return flat.reshape(array.shape).tolist()
    if array.dtype == np.float64 or kind in "biu":
        return array.tolist()
    if kind == "f" or array.dtype.name == "bfloat16":
        # Python's float is a double: the float32 0.2 would become 0.20000000298.
        shortest = [float(str(v)) for v in array.astype(np.float32).reshape(-1)]
        return np.array(shortest, np.float64).reshape(array.shape).tolist()
    raise RequestError(f'Output "{name}" is {array.dtype.name}, which JSON cannot hold.')


def _encode_bytes(value: bytes, as_base64: bool) -> Any:
    if not as_base64:
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": base64.b64encode(value).decode()}
