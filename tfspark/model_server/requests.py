"""Requests as TensorFlow Serving's REST API defines them: JSON to tensors by the signature, and outputs to JSON."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import tensorflow as tf

from tfspark.model_server.faults import RequestError, TooLarge
from tfspark.saved_models.signatures import CLASSIFY, DEFAULT, PREDICT, REGRESS, Signature, TensorInfo

BYTES_SUFFIX = "_bytes"
"""Outputs whose names end so are encoded in base64; so are strings that are not UTF-8."""

MOST_DIMENSIONS = 32


@dataclass(frozen=True)
class Call:
    """What is to be asked of a model.

    Attributes
    ----------
    signature
        Name of the signature.
    inputs
        Arrays by input name.
    rows
        How many rows they have; 1 if that makes no sense.
    by_row
        Whether the answer is to be written row by row.
    """

    signature: str
    inputs: dict[str, np.ndarray]
    rows: int
    by_row: bool = True


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a body, which must be a JSON object.

    Raises
    ------
    RequestError
        If it is not.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise RequestError(f"JSON Parse error: {e}") from None
    if not isinstance(value, dict):
        raise RequestError("JSON Parse error: the body must be an object.")
    return value


def signature_of(body: Mapping[str, Any], signatures: Mapping[str, Signature]) -> Signature:
    """Return the signature that a request names, or the default one.

    Raises
    ------
    RequestError
        If there is none.
    """
    name = body.get("signature_name") or DEFAULT
    if not isinstance(name, str):
        raise RequestError('"signature_name" must be a string.')
    if name not in signatures:
        raise RequestError(f'Serving signature name: "{name}" not found in signature def; there are {list(signatures)}')
    return signatures[name]


# --- predict


def predict_call(body: Mapping[str, Any], signature: Signature) -> Call:
    """Return the call of a ``:predict`` request, by rows (``instances``) or by columns (``inputs``).

    Raises
    ------
    RequestError
        If it does not fit the signature.
    """
    if ("instances" in body) == ("inputs" in body):
        raise RequestError('The body must have one of "instances" (rows) and "inputs" (columns).')
    by_row = "instances" in body
    columns = _rows_to_columns(body["instances"], signature) if by_row else _columns(body["inputs"], signature)
    arrays = {n: decode(n, columns[n], info) for n, info in signature.inputs.items()}
    sizes = {n: a.shape[0] if a.ndim else 1 for n, a in arrays.items()}
    have_rows = by_row or all(i.has_rows for i in signature.inputs.values())
    if have_rows and len(set(sizes.values())) > 1:
        raise RequestError(f"Inputs have different numbers of rows: {sizes}")
    return Call(signature.name, arrays, next(iter(sizes.values()), 1), by_row)


def _rows_to_columns(instances: Any, signature: Signature) -> dict[str, Any]:
    if not isinstance(instances, list) or not instances:
        raise RequestError('"instances" must be a list of at least one row.')
    names = list(signature.inputs)
    if not _is_named(instances[0]):
        if len(names) != 1:
            raise RequestError(f"Each instance must be an object with the inputs {names}.")
        return {names[0]: instances}
    for i, row in enumerate(instances):
        if not _is_named(row):
            raise RequestError(f"Instance {i} is no object, but instance 0 is.")
        _check_names(row, names, f"Instance {i}")
    return {n: [row[n] for row in instances] for n in names}


def _columns(inputs: Any, signature: Signature) -> dict[str, Any]:
    names = list(signature.inputs)
    if not _is_named(inputs):
        if len(names) != 1:
            raise RequestError(f'"inputs" must be an object with the inputs {names}.')
        return {names[0]: inputs}
    _check_names(inputs, names, '"inputs"')
    return dict(inputs)


def _is_named(value: Any) -> bool:
    """Whether a value gives tensors by name; ``{"b64": ...}`` is a value itself."""
    return isinstance(value, dict) and not _is_b64(value)


def _check_names(given: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    if set(given) != set(names):
        raise RequestError(f"{what} has {sorted(given)}, but the inputs are {list(names)}.")


def predict_answer(call: Call, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the answer to a ``:predict`` request.

    Raises
    ------
    RequestError
        If it is to be by row, and an output does not have one value per row.
    """
    if not call.by_row:
        encoded = {n: encode(n, a) for n, a in outputs.items()}
        return {"outputs": next(iter(encoded.values())) if len(encoded) == 1 else encoded}
    for n, a in outputs.items():
        if a.shape[:1] != (call.rows,):
            raise RequestError(f'Output "{n}" has shape {a.shape} for {call.rows} rows: ask by columns, with "inputs".')
    columns = {n: encode(n, a) for n, a in outputs.items()}
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


# --- classify and regress


def example_call(body: Mapping[str, Any], signature: Signature, method: str, most_bytes: int) -> Call:
    """Return the call of a ``:classify`` or ``:regress`` request: its examples, serialized.

    Parameters
    ----------
    method
        What the signature must be for.
    most_bytes
        How large the context may be, in JSON, once for each example.

    Raises
    ------
    RequestError
        If the signature is for something else, the examples are none, or the context is too large.
    """
    info = signature.inputs.get("inputs")
    outputs = {CLASSIFY: {"classes", "scores"}, REGRESS: {"outputs"}}[method]
    # Signatures of TensorFlow 2 are all for predict; then their form tells.
    if signature.method not in (method, PREDICT) or info is None or info.dtype != "string" or len(signature.inputs) > 1:
        found: set[str] = set()
    else:
        found = set(signature.outputs) & outputs
    if not found or set(signature.outputs) - outputs:
        raise RequestError(
            f"Expected a signature for {method}, but {signature.name!r} is for {signature.method}; "
            'name another one as "signature_name".'
        )
    examples = body.get("examples")
    if not isinstance(examples, list) or not examples:
        raise RequestError('"examples" must be a list of at least one object.')
    context = body.get("context", {})
    if not isinstance(context, dict):
        raise RequestError('"context" must be an object.')
    repeated = len(json.dumps(context)) * len(examples)
    if repeated > most_bytes:
        raise TooLarge(
            f'"context" is part of each of the {len(examples)} examples, which makes {repeated} bytes, more than the '
            f"{most_bytes} that are allowed."
        )
    serialized = np.empty(len(examples), object)
    for i, example in enumerate(examples):
        if not isinstance(example, dict):
            raise RequestError(f"Example {i} is no object.")
        serialized[i] = _example({**context, **example})
    return Call(signature.name, {"inputs": serialized}, len(examples))


def _example(features: Mapping[str, Any]) -> bytes:
    feature = {name: _feature(name, value) for name, value in features.items()}
    return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def _feature(name: str, value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    try:
        if all(isinstance(v, (bool, int)) for v in values):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        if all(isinstance(v, (bool, int, float)) for v in values):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    except (ValueError, OverflowError):
        raise RequestError(f'Feature "{name}" holds a number that is too large.') from None
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[_text(name, v) for v in values]))


def classify_answer(call: Call, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the answer to a ``:classify`` request: label and score of each class, for each example."""
    some = next(iter(outputs.values()))
    scores = outputs.get("scores", np.zeros(some.shape, np.float32)).reshape(call.rows, -1)
    labels = outputs.get("classes", np.full(scores.shape, b"", object)).reshape(call.rows, -1)
    rows = zip(encode("classes", labels), encode("scores", scores), strict=True)
    return {"result": [[list(pair) for pair in zip(*row, strict=True)] for row in rows]}


def regress_answer(call: Call, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the answer to a ``:regress`` request: one number for each example."""
    return {"result": encode("outputs", outputs["outputs"].reshape(call.rows))}


# --- values


def decode(name: str, value: Any, info: TensorInfo) -> np.ndarray:
    """Return a JSON value as the array that an input takes.

    Raises
    ------
    RequestError
        If its type or shape is another one.
    """
    array = _strings(name, value) if info.dtype == "string" else _numbers(name, value, info.dtype)
    if info.shape is not None:
        fits = len(info.shape) == array.ndim and all(
            d in (None, n) for d, n in zip(info.shape, array.shape, strict=True)
        )
        if not fits:
            raise RequestError(f'Input "{name}" takes {info}, but has shape {array.shape}.')
    return array


def _numbers(name: str, value: Any, dtype: str) -> np.ndarray:
    if not _leaf_types(name, value) <= {bool, int, float}:
        # One string would make NumPy an array in which every entry has its length.
        raise RequestError(f'Input "{name}" takes {dtype}, but holds something else.')
    try:
        found = np.array(value)
    except (ValueError, RecursionError):
        raise RequestError(f'Input "{name}" holds lists of different lengths.') from None
    target = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    kinds = {"bool": "b"}.get(dtype, "iu" if "int" in dtype else "iuf")
    if found.size and found.dtype.kind not in kinds:
        raise RequestError(f'Input "{name}" takes {dtype}, but holds something else.')
    if "int" in dtype and found.size:
        limits = np.iinfo(target)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            raise RequestError(f'Input "{name}" takes {dtype}, but holds a number beyond its range.')
    with np.errstate(over="ignore"):
        return found.astype(target)


def _leaf_types(name: str, value: Any) -> set[type]:
    """Return the types of what nested lists hold; if ragged, of what is beside lists in the outermost such level."""
    level = [value]
    for _ in range(MOST_DIMENSIONS + 1):
        types = set(map(type, level))
        if types != {list}:
            return types - {list}
        level = list(chain.from_iterable(level))
    raise _too_deep(name)


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
    array[:] = [_text(name, v) for v in leaves]
    return array.reshape(shape)


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"}


def _text(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise RequestError(f'"{name}" holds half a surrogate pair.') from None
    if _is_b64(value) and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise RequestError(f'"{name}" holds a "b64" that is no base64.') from None
    raise RequestError(f'"{name}" takes strings, or {{"b64": ...}}.')


def encode(name: str, array: np.ndarray) -> Any:
    """Return an output as a JSON value."""
    if array.dtype.kind not in "OSU":
        return array.astype(np.float32).tolist() if array.dtype.name == "bfloat16" else array.tolist()
    flat = np.empty(array.size, object)
    flat[:] = [_encode_bytes(v, name.endswith(BYTES_SUFFIX)) for v in array.reshape(-1)]
    return flat.reshape(array.shape).tolist()


def _encode_bytes(value: bytes, as_base64: bool) -> Any:
    if not as_base64:
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": base64.b64encode(value).decode()}
