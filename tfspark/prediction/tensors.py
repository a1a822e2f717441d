"""Convert a column to the tensor of an input by its `InputRule`: pad it, replace nulls, and check all values.

This is called in tasks, for whole columns at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tfspark.columns.conversions import DoesNotFit, converted
from tfspark.columns.prepare import null_error
from tfspark.columns.rows import RowName
from tfspark.errors import SchemaError
from tfspark.prediction.inputs import Dims, InputRule, shown

if TYPE_CHECKING:
    from tensorflow import Tensor

ALIGNMENT = 64
"""Alignment, in bytes, of the memory of a tensor."""


@dataclass
class _Levels:
    """The values of a column, and for each level of arrays their common size, or their offsets if sizes differ."""

    levels: list[int | np.ndarray]
    values: pa.Array

    def row_of(self, index: int) -> int:
        """Return the row of a value, by the index of the value."""
        for level in reversed(self.levels):
            index = index // level if isinstance(level, int) else int(np.searchsorted(level, index, "right")) - 1
        return index


def tensors_of(array: pa.Array, rule: InputRule, row: RowName, fill_hint: str) -> list[Tensor]:
    """Return a column as the tensor of its input, followed by its row splits, outermost first, if the rule is ragged.

    Parameters
    ----------
    array
        Rows of the column.
    row
        Function that names a row in errors.
    fill_hint
        Hint that says what to do about a null.

    Raises
    ------
    SchemaError
        If a value does not fit.
    """
    import tensorflow as tf

    found = _levels(_without_null_rows(array, rule, row, fill_hint), rule, row, fill_hint)
    splits: list[np.ndarray] = []
    for i in range(rule.ragged):
        level = found.levels[i]
        count = len(array) if not i else int(splits[-1][-1])
        splits.append(np.arange(count + 1, dtype=np.int64) * level if isinstance(level, int) else level)
    rows = int(splits[-1][-1]) if splits else len(array)
    dims = None if rule.dims is None else rule.dims[rule.ragged :]
    inner = found.levels[rule.ragged :]
    sizes, shape = _sizes(found, inner, dims, rows, rule, row)
    even = all(isinstance(level, int) and level == size for level, size in zip(inner, sizes, strict=True))
    tensor = _dense(found, rule, row, [rows, *shape], None if even else _positions(inner, sizes, rows))
    return [tensor, *[tf.constant(s) for s in splits]]


def _without_null_rows(a: pa.Array, rule: InputRule, row: RowName, hint: str) -> pa.Array:
    if not a.null_count:
        return a
    if rule.fill is None:
        raise null_error({rule.column: a}, row, hint)
    fill: Any = rule.fill.tolist() if isinstance(rule.fill, np.ndarray) else rule.fill
    if rule.fills_values:
        fill = _full(fill, rule)
    try:
        filled = pa.concat_arrays([a, pa.array([fill], a.type)])
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError) as e:
        raise _unfit_fill(rule, a.type, e) from None
    index = np.arange(len(a))
    index[a.is_null().to_numpy(zero_copy_only=False)] = len(a)
    return filled.take(pa.array(index))


def _unfit_fill(rule: InputRule, kind: pa.DataType, e: Exception) -> SchemaError:
    return SchemaError(f"fill value {rule.fill!r} does not fit column {rule.column!r} ({kind}): {e}")


def _full(value: Any, rule: InputRule) -> Any:
    """Return the array that replaces a null array: full of `value` where its size is known, else empty."""
    dims = rule.dims or ()
    sizes = list(dims[: rule.depth])
    if rule.depth and len(dims) > rule.depth and None not in dims:
        sizes[-1] = math.prod(d or 1 for d in dims[rule.depth - 1 :])
    for size in reversed(sizes or [None]):
        value = [] if size is None else [value] * size
    return value


def _levels(a: pa.Array, rule: InputRule, row: RowName, hint: str) -> _Levels:
    """Return the values and array levels of a column; fill nulls inside arrays if the rule has a value for them."""
    found = _Levels([], a)
    for depth in range(rule.depth):
        if pa.types.is_fixed_size_list(a.type):
            level: int | np.ndarray = a.type.list_size
        else:
            offsets = a.offsets.to_numpy().astype(np.int64)
            offsets = offsets - offsets[0]
            lengths = np.diff(offsets)
            even = len(lengths) and lengths[0] and (lengths == lengths[0]).all()
            level = int(lengths[0]) if even else offsets
        found.levels.append(level)
        a = a.flatten()
        if a.null_count:
            innermost = depth == rule.depth - 1
            if not (innermost and rule.fills_values):
                first = found.row_of(int(np.argmax(a.is_null().to_numpy(zero_copy_only=False))))
                raise SchemaError(
                    f"Column {rule.column!r} holds {a.null_count} null(s) inside its arrays (first: {row(first)}).",
                    hint=hint if innermost else "Remove or replace them in Spark (pyspark.sql.functions.transform).",
                )
            try:
                a = a.fill_null(pa.scalar(rule.fill, a.type))
            except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError) as e:
                raise _unfit_fill(rule, a.type, e) from None
    found.values = a
    return found


def _sizes(
    found: _Levels, inner: Sequence[int | np.ndarray], dims: Dims | None, rows: int, rule: InputRule, row: RowName
) -> tuple[list[int], list[int]]:
    """Return the length to which the arrays of each level are padded, and the resulting shape of a row."""
    if dims is None:
        dims = (None,) * len(inner)
    wanted: list[int | None] = list(dims[: len(inner)])
    rest = [d or 1 for d in dims[len(inner) :]]
    unit = 1
    if inner and math.prod(rest) > 1:
        # Flat arrays: the last level contains the values of all remaining dimensions.
        unit = math.prod(rest)
        wanted[-1] = None if wanted[-1] is None else wanted[-1] * unit
    sizes = []
    for i, (level, size) in enumerate(zip(inner, wanted, strict=True)):
        lengths = np.array([level]) if isinstance(level, int) else np.diff(level)
        step = unit if i == len(inner) - 1 else 1
        wrong = (lengths % step != 0) if size is None else (lengths != size)
        if wrong.any() and (rows or not isinstance(level, int)):
            first = int(np.argmax(wrong))
            above = _Levels(found.levels[: rule.ragged + i], found.values)
            shape = shown(rule.dims)
            needs = f"a multiple of {step} values" if size is None else f"{size} values"
            raise SchemaError(
                f"Column {rule.column!r} holds an array of {lengths[first]} values in {row(above.row_of(first))}, but "
                f"the input {rule.name!r} takes rows of shape {shape}, which need {needs} there.",
                hint="Make arrays of that length in Spark, or export the model with None for that dimension.",
            )
        sizes.append(size if size is not None else int(lengths.max()) if len(lengths) else 0)
    shape_of_row = list(sizes)
    if unit > 1:
        shape_of_row[-1] //= unit
    return sizes, [*shape_of_row, *rest]


def _positions(levels: Sequence[int | np.ndarray], sizes: Sequence[int], rows: int) -> np.ndarray:
    """Return the position of each value in the padded tensor."""
    at = np.arange(rows)
    for level, size in zip(levels, sizes, strict=True):
        if isinstance(level, int):
            at = (at[:, None] * size + np.arange(level)).reshape(-1)
        else:
            lengths = np.diff(level)
            within = np.arange(level[-1]) - np.repeat(level[:-1], lengths)
            at = np.repeat(at * size, lengths) + within
    return at


def _dense(found: _Levels, rule: InputRule, row: RowName, shape: list[int], positions: np.ndarray | None) -> Tensor:
    import tensorflow as tf

    expected = tf.as_dtype(rule.dtype)
    values = _leaf(found, rule, row)
    if positions is None and expected != tf.string and values.type == _arrow_type(expected):
        shared = shared_tensor(values)
        if shared is not None:
            return tf.reshape(shared, shape)
    if expected == tf.string:
        flat = np.asarray(values.to_numpy(zero_copy_only=False), dtype=object)
    else:
        flat = np.asarray(values.to_numpy(zero_copy_only=not pa.types.is_boolean(values.type)))
        try:
            flat = converted(flat, np.dtype(expected.as_numpy_dtype))
        except DoesNotFit as e:
            raise _unfit(found, rule, row, e.index, e.value) from None
    if positions is not None:
        padded = np.full(math.prod(shape), _padding(rule, flat.dtype), flat.dtype)
        padded[positions] = flat
        flat = padded
    return tf.constant(flat.reshape(shape))


def _arrow_type(dtype: Any) -> pa.DataType | None:
    try:
        return pa.from_numpy_dtype(dtype.as_numpy_dtype)
    except (pa.ArrowNotImplementedError, TypeError):
        return None


def _padding(rule: InputRule, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "O":
        value = b"" if rule.padding is None else rule.padding
        return value.encode() if isinstance(value, str) else value
    try:
        return converted(np.array(0 if rule.padding is None else rule.padding), dtype)
    except (DoesNotFit, TypeError, ValueError, KeyError):
        raise SchemaError(
            f"padding_values gives {rule.column!r} the value {rule.padding!r}, which {rule.dtype} cannot hold."
        ) from None


def _leaf(found: _Levels, rule: InputRule, row: RowName) -> pa.Array:
    """Return the values as an Arrow array of a type that numpy can take."""
    values, kind = found.values, found.values.type
    if rule.dtype == "string":
        return values if kind == pa.binary() else values.cast(pa.binary())
    if pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
    if pa.types.is_date32(kind):
        return values.cast(pa.int32())
    if pa.types.is_decimal(kind):
        to = pa.int64() if "int" in rule.dtype else pa.float64()
        try:
            return values.cast(to)
        except pa.ArrowInvalid:
            index = _first_unfit(values, to)
            raise _unfit(found, rule, row, index, values[index].as_py()) from None
    return values


def _first_unfit(values: pa.Array, to: pa.DataType) -> int:
    """Return the index of the first value that Arrow cannot cast; at least one value must be of this kind."""
    start, end = 0, len(values)
    while end - start > 1:
        middle = (start + end) // 2
        try:
            values.slice(start, middle - start).cast(to)
            start = middle
        except pa.ArrowInvalid:
            end = middle
    return start


def _unfit(found: _Levels, rule: InputRule, row: RowName, index: int, value: Any) -> SchemaError:
    is_time = pa.types.is_timestamp(rule.kind)
    # The value is a whole number that is in range, but that the float cannot hold exactly.
    rounded = "float" in rule.dtype and isinstance(value, int)
    as_text = f"{found.values[index].as_py()}, {value} as microseconds since 1970," if is_time else str(value)
    hint = f"Cast the column in Spark, or export the model with an input of another type than {rule.dtype}."
    if is_time:
        hint = "Make a number of it in Spark, for example with pyspark.sql.functions.unix_timestamp."
    elif rounded:
        hint = f"To have such numbers rounded, cast the column to {'double' if rule.dtype == 'float64' else 'float'}."
    return SchemaError(
        f"Column {rule.column!r} holds {as_text} in {row(found.row_of(index))}, which the input {rule.name!r} of type "
        f"{rule.dtype} cannot hold{' exactly' if rounded else ''}.",
        hint=hint,
    )


def shared_tensor(values: pa.Array) -> Any:
    """Return numbers as a tensor in the same memory, or ``None`` if TensorFlow cannot read the memory in place.

    This is safe: operations may write their result over an input that nobody else holds, but the caller holds this one.
    """
    import tensorflow as tf

    if not len(values) or not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return None
    lent = _Lent(values)
    return None if lent.address % ALIGNMENT else tf.experimental.dlpack.from_dlpack(np.asarray(lent).__dlpack__())


class _Lent:
    """Arrow numbers presented as a writable array, because DLPack supports no read-only arrays."""

    def __init__(self, values: pa.Array) -> None:
        dtype = np.dtype(values.type.to_pandas_dtype())
        self._values = values
        self.address = values.buffers()[1].address + values.offset * dtype.itemsize
        shape = (len(values),)
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (self.address, False)}
