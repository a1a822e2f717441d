"""From Arrow columns to tensors: which dtype and shape a column has, and whether a batch keeps the rule.

One table, `_DTYPES`, says which TensorFlow dtype an Arrow type becomes. Spark types reach it through Spark's own
Arrow schema. No Spark and no TensorFlow in here: the driver plans with it, feed tasks check and prepare batches
with it, and nodes read tensor specs from it.

The rules
---------
- numbers and booleans keep their type; strings and binary become ``tf.string``; a date becomes the ``int32`` day
  since 1970-01-01, a timestamp the ``int64`` microsecond since 1970-01-01 UTC, a decimal a ``float64``.
- an array column is dense with a shape declared for it, and a ``RaggedTensor`` otherwise.
- a struct column is a dict of its fields' tensors, an ML vector a dense array.
- a null is an error that names the column, unless a fill value or a mask column is asked for. A null inside an array
  is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.errors import SchemaError

_DTYPES: dict[pa.DataType, str] = {
    pa.bool_(): "bool",
    pa.int8(): "int8",
    pa.int16(): "int16",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.float32(): "float32",
    pa.float64(): "float64",
    pa.string(): "string",
    pa.large_string(): "string",
    pa.binary(): "string",
    pa.large_binary(): "string",
    pa.date32(): "int32",
}


_PATH = b"tfspark.path"


@dataclass(frozen=True)
class ColumnSpec:
    """The tensor that a column becomes.

    Attributes
    ----------
    name
        Column name.
    dtype
        Name of the TensorFlow dtype.
    shape
        Shape of one row; ``()`` for a scalar.
    ragged
        Whether rows are lists of any length (then ``shape`` is ``()``).
    fill
        Replaces nulls; ``None`` makes a null an error.
    path
        Keys under which it is found in the nested dicts of a dataset; ``()`` for its name alone.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    ragged: bool = False
    fill: Any = None
    path: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Where the tensor is in the dict that a dataset gives."""
        return self.path or (self.name,)

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type in which the column travels and waits in the spool."""
        value = pa.binary() if self.dtype == "string" else pa.type_for_alias(self.dtype)
        if self.ragged:
            return pa.list_(value)
        return pa.list_(value, math.prod(self.shape)) if self.shape else value

    def to_json(self) -> dict[str, Any]:
        """Encode for the wire; the fill has done its work by then."""
        shape, path = list(self.shape), list(self.path)
        return {"name": self.name, "dtype": self.dtype, "shape": shape, "ragged": self.ragged, "path": path}

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> ColumnSpec:
        """Decode what `to_json` made."""
        return cls(d["name"], d["dtype"], tuple(d["shape"]), d["ragged"], path=tuple(d["path"]))


def _dtype_of(t: pa.DataType) -> str | None:
    if pa.types.is_timestamp(t):
        return "int64"
    if pa.types.is_decimal(t):
        return "float64"
    return _DTYPES.get(t)


def plan_columns(
    schema: pa.Schema,
    shapes: Mapping[str, Sequence[int] | int] | None = None,
    fill: Mapping[str, Any] | None = None,
) -> tuple[ColumnSpec, ...]:
    """Decide the tensor of every column.

    Parameters
    ----------
    schema
        Arrow schema of the rows.
    shapes
        Shape of one row for array columns that are to be dense.
    fill
        Value that replaces nulls, by column.

    Raises
    ------
    SchemaError
        If a type has no tensor form, or `shapes` or `fill` do not fit the columns.
    """
    shapes, fill = dict(shapes or {}), dict(fill or {})
    for what, given in (("shapes", shapes), ("fill", fill)):
        unknown = sorted(set(given) - set(schema.names))
        if unknown:
            raise SchemaError(
                f"{what} names {unknown}, which are no columns of the data.",
                hint=f"The columns are {schema.names}.",
            )
    if len(set(schema.names)) != len(schema.names):
        raise SchemaError(f"Column names are not unique: {schema.names}.")
    specs = (_plan_column(f, shapes.get(f.name), fill.get(f.name)) for f in schema)
    return tuple(replace(s, path=_path_of(f)) for f, s in zip(schema, specs, strict=True))


def with_path(f: pa.Field, path: Sequence[str]) -> pa.Field:
    """Return the field with the note that its tensor belongs into nested dicts."""
    return f.with_metadata({_PATH: json.dumps(list(path)).encode()})


def _path_of(f: pa.Field) -> tuple[str, ...]:
    return tuple(json.loads((f.metadata or {}).get(_PATH, b"[]")))


def _plan_column(f: pa.Field, shape: Sequence[int] | int | None, fill: Any) -> ColumnSpec:
    t = f.type
    is_list = pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t)
    dtype = _dtype_of(t.value_type if is_list else t)
    if dtype is None:
        raise SchemaError(
            f"Column {f.name!r} has type {t}, for which there is no tensor.",
            hint="Cast it, select its fields, or drop it: tensors hold numbers, booleans, strings, binary, dates, "
            "timestamps, decimals, and arrays of these.",
        )
    if not is_list and shape is not None:
        raise SchemaError(f"shapes gives {f.name!r} the shape {shape}, but it is no array column.")
    if is_list and fill is not None:
        raise SchemaError(f"fill replaces nulls of scalar columns; {f.name!r} is an array column.")
    if not is_list:
        return ColumnSpec(f.name, dtype, fill=fill)
    if shape is None and pa.types.is_fixed_size_list(t):
        shape = t.list_size
    if shape is None:
        return ColumnSpec(f.name, dtype, ragged=True)
    dims = (shape,) if isinstance(shape, int) else tuple(int(d) for d in shape)
    if not dims or any(d < 1 for d in dims):
        raise SchemaError(f"shapes gives {f.name!r} the shape {shape}; every dimension must be at least 1.")
    return ColumnSpec(f.name, dtype, dims)


def arrow_schema(columns: Sequence[ColumnSpec]) -> pa.Schema:
    """Return the schema in which prepared batches travel."""
    return pa.schema([pa.field(c.name, c.arrow_type, nullable=False) for c in columns])


def prepare_batch(batch: pa.RecordBatch, columns: Sequence[ColumnSpec], schema: pa.Schema) -> pa.RecordBatch:
    """Check a batch against the rules and bring it into the form of `arrow_schema`; no copy where none is needed.

    Raises
    ------
    SchemaError
        If a value breaks the rule of its column.
    """
    arrays = [_prepare(batch.column(c.name), c) for c in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _prepare(a: pa.Array, c: ColumnSpec) -> pa.Array:
    if a.null_count:
        if c.fill is None:
            row = int(np.argmax(a.is_null().to_numpy(zero_copy_only=False)))
            raise SchemaError(
                f"Column {c.name!r} holds {a.null_count} null(s) in {len(a)} rows (first: row {row} of its batch).",
                hint=f"Pass fill={{{c.name!r}: value}} to feed(), or drop or fill the nulls in Spark.",
            )
        try:
            a = a.fill_null(pa.scalar(c.fill, a.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as e:
            raise SchemaError(f"fill value {c.fill!r} does not fit column {c.name!r} ({a.type}): {e}") from None
    if not c.shape and not c.ragged:
        return _values(a, c.arrow_type)
    values = a.flatten()
    if values.null_count:
        raise SchemaError(
            f"Column {c.name!r} holds {values.null_count} null(s) inside its arrays.",
            hint="Remove or replace them in Spark, for example with pyspark.sql.functions.transform.",
        )
    if c.shape:
        size = math.prod(c.shape)
        _check_lengths(a, c, size)
        return pa.FixedSizeListArray.from_arrays(_values(values, c.arrow_type.value_type), size)
    offsets = a.offsets.to_numpy().astype(np.int64)
    offsets = pa.array((offsets - offsets[0]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, _values(values, c.arrow_type.value_type))


def _check_lengths(a: pa.Array, c: ColumnSpec, size: int) -> None:
    if pa.types.is_fixed_size_list(a.type):
        wrong = len(a) > 0 and a.type.list_size != size
        found = a.type.list_size
    else:
        extent = pc.min_max(pc.list_value_length(a)).as_py()
        wrong = len(a) > 0 and (extent["min"] != size or extent["max"] != size)
        found = extent["min"] if extent["min"] != size else extent["max"]
    if wrong:
        raise SchemaError(
            f"Column {c.name!r} was declared with shape {c.shape} ({size} values a row), "
            f"but a row holds {found} values.",
            hint="Declare the true shape, or none: then the column becomes a RaggedTensor.",
        )


def _values(a: pa.Array, t: pa.DataType) -> pa.Array:
    if a.type == t:
        return a
    if pa.types.is_timestamp(a.type):
        a = a.cast(pa.timestamp("us", a.type.tz))
    return a.cast(t)


def row_nbytes(batch: pa.RecordBatch) -> int:
    """Return the bytes that the rows of `batch` take, without what its buffers hold beside them."""
    return int(batch.get_total_buffer_size() if batch.num_rows else 0)
