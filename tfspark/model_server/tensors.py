"""Converts TensorProtos to arrays and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfspark.model_server.errors import RequestError, TooLarge
from tfspark.saved_models.signatures import TensorInfo

_FIELDS: dict[str, str] = {
    **dict.fromkeys(["int8", "int16", "int32", "uint8", "uint16"], "int_val"),
    **{"float32": "float_val", "float64": "double_val", "bool": "bool_val"},
    **{"int64": "int64_val", "uint32": "uint32_val", "uint64": "uint64_val"},
}
"""Field into which TensorFlow Serving writes outputs, by dtype; clients without TensorFlow read outputs there."""


def from_proto(name: str, proto: Any, info: TensorInfo, most_bytes: int) -> np.ndarray:
    """Return a TensorProto as an array for an input.

    Parameters
    ----------
    most_bytes
        Largest size of the array; a small message can encode a large array of equal values.

    Raises
    ------
    RequestError
        If its dtype differs, its shape is unknown, it is too large, or it has fewer values than its shape.
    """
    wanted = tf.as_dtype(info.dtype)
    if proto.dtype != wanted.as_datatype_enum:
        raise RequestError(f'Input "{name}" takes {info.dtype}, but is {_dtype_name(proto.dtype)}.')
    dims = [d.size for d in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(d < 0 for d in dims):
        raise RequestError(f'Input "{name}" has an unknown shape: {dims}.')
    size = math.prod(dims) * max(wanted.size or 0, 8 if wanted == tf.string else 1)
    if size > most_bytes:
        raise TooLarge(f'Input "{name}" of shape {dims} has {size} bytes; the limit is {most_bytes} bytes.')
    try:
        array = tf.make_ndarray(proto)
    except (TypeError, ValueError) as e:
        raise RequestError(f'Cannot read input "{name}": {e}') from None
    if wanted == tf.string and not all(isinstance(v, bytes) for v in array.reshape(-1)):
        raise RequestError(f'Input "{name}" holds fewer values than its shape {dims} has.')
    return array


def _dtype_name(number: int) -> str:
    try:
        return tf.as_dtype(number).name
    except TypeError:
        return f"of type {number}"


def to_proto(array: np.ndarray) -> Any:
    """Return an output as a TensorProto."""
    if array.dtype.kind in "OSU":
        proto = tf.make_tensor_proto([], tf.string)
        proto.string_val.extend(array.reshape(-1).tolist())
    elif array.dtype.name in _FIELDS:
        proto = tf.make_tensor_proto([], tf.as_dtype(array.dtype))
        getattr(proto, _FIELDS[array.dtype.name]).extend(array.reshape(-1).tolist())
    else:
        return tf.make_tensor_proto(array)
    del proto.tensor_shape.dim[:]
    for d in array.shape:
        proto.tensor_shape.dim.add(size=d)
    return proto
