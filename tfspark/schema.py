"""From Arrow columns to tensors: which dtype and shape a column has, and whether a batch keeps the rule.

One table, `_DTYPES`, says which TensorFlow dtype an Arrow type becomes. Spark types reach it through Spark's own
Arrow schema. No Spark and no TensorFlow in here: the driver plans with it, feed tasks prepare batches by it
(`tfspark/prepare.py`), and nodes read tensor specs from it.

The rules
---------
- numbers and booleans keep their type; strings and binary become ``tf.string``; a date becomes the ``int32`` day
  since 1970-01-01, a timestamp the ``int64`` microsecond since 1970-01-01 UTC, a decimal a ``float64``.
- an array column, or one of arrays of arrays, is dense with a shape declared for it, and a ``RaggedTensor`` otherwise.
- a struct column is a dict of its fields' tensors, an ML vector a dense array, or a ``SparseTensor`` if asked for.
- a null is an error that names the column, unless a fill value or a mask column is asked for. A null inside an array
  is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

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


Shape = Sequence[int | None] | int

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
        Number of dimensions of any length, which come before those of `shape`.
    sparse
        Whether it becomes a ``SparseTensor`` with rows of the length that `shape` says.
    levels
        Depth of the arrays in which the values of `shape` come from Spark: 1 if they come flat.
    fill
        Replaces nulls; ``None`` makes a null an error.
    path
        Keys under which it is found in the nested dicts of a dataset; ``()`` for its name alone.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    ragged: int = 0
    sparse: bool = False
    levels: int = 0
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
        if self.sparse:
            return pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(value))])
        t = pa.list_(value, math.prod(self.shape)) if self.shape else value
        for _ in range(self.ragged):
            t = pa.list_(t)
        return t

    def to_json(self) -> dict[str, Any]:
        """Encode for the wire; what only concerns Spark's side has done its work by then."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "ragged": self.ragged,
            "sparse": self.sparse,
            "path": list(self.path),
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> ColumnSpec:
        """Decode what `to_json` made."""
        return cls(d["name"], d["dtype"], tuple(d["shape"]), d["ragged"], d["sparse"], path=tuple(d["path"]))


def _dtype_of(t: pa.DataType) -> str | None:
    if pa.types.is_timestamp(t):
        return "int64"
    if pa.types.is_decimal(t):
        return "float64"
    return _DTYPES.get(t)


def plan_columns(
    schema: pa.Schema,
    shapes: Mapping[str, Shape] | None = None,
    fill: Mapping[str, Any] | None = None,
    sparse: Sequence[str] = (),
) -> tuple[ColumnSpec, ...]:
    """Decide the tensor of every column.

    Parameters
    ----------
    schema
        Arrow schema of the rows.
    shapes
        Shape of one row for array columns that are to be dense; ``None`` for dimensions of any length.
    fill
        Value that replaces nulls, by column.
    sparse
        Columns of ML vectors that become sparse tensors.

    Raises
    ------
    SchemaError
        If a type has no tensor form, or `shapes` or `fill` do not fit the columns.
    """
    shapes, fill = dict(shapes or {}), dict(fill or {})
    for what, given in (("shapes", shapes), ("fill", fill), ("sparse", sparse)):
        unknown = sorted(set(given) - set(schema.names))
        if unknown:
            raise SchemaError(
                f"{what} names {unknown}, which are no columns of the data.",
                hint=f"The columns are {schema.names}.",
            )
    if len(set(schema.names)) != len(schema.names):
        raise SchemaError(f"Column names are not unique: {schema.names}.")
    specs = (_plan_column(f, shapes.get(f.name), fill.get(f.name), f.name in sparse) for f in schema)
    return tuple(replace(s, path=_path_of(f)) for f, s in zip(schema, specs, strict=True))


def with_path(f: pa.Field, path: Sequence[str]) -> pa.Field:
    """Return the field with the note that its tensor belongs into nested dicts."""
    return f.with_metadata({_PATH: json.dumps(list(path)).encode()})


def _path_of(f: pa.Field) -> tuple[str, ...]:
    return tuple(json.loads((f.metadata or {}).get(_PATH, b"[]")))


def _plan_column(f: pa.Field, shape: Shape | None, fill: Any, sparse: bool) -> ColumnSpec:
    if sparse:
        return _plan_sparse(f, shape, fill)
    sizes, leaf = _list_levels(f.type)
    dtype = _dtype_of(leaf)
    if dtype is None:
        raise SchemaError(
            f"Column {f.name!r} has type {f.type}, for which there is no tensor.",
            hint="Cast it, select its fields, or drop it: tensors hold numbers, booleans, strings, binary, dates, "
            "timestamps, decimals, and arrays of these.",
        )
    if not sizes and shape is not None:
        raise SchemaError(f"shapes gives {f.name!r} the shape {shape}, but it is no array column.")
    if sizes and fill is not None:
        raise SchemaError(f"fill replaces nulls of scalar columns; {f.name!r} is an array column.")
    if not sizes:
        return ColumnSpec(f.name, dtype, fill=fill)
    dims = _declared(f.name, shape) if shape is not None else _ragged_first(sizes)
    ragged = sum(d is None for d in dims)
    dense = tuple(d for d in dims[ragged:] if d is not None)
    if len(dims) != len(sizes) and len(sizes) - ragged != 1:
        raise SchemaError(
            f"shapes gives {f.name!r} the shape {shape}, but it is an array of depth {len(sizes)}.",
            hint="Give one dimension for each depth; None where lengths vary.",
        )
    return ColumnSpec(f.name, dtype, dense, ragged, levels=len(sizes) - ragged)


def _list_levels(t: pa.DataType) -> tuple[list[int | None], pa.DataType]:
    """Return the size of each level of arrays, ``None`` where it varies, and the type of the innermost values."""
    sizes: list[int | None] = []
    while True:
        if pa.types.is_fixed_size_list(t):
            sizes.append(t.list_size)
        elif pa.types.is_list(t) or pa.types.is_large_list(t):
            sizes.append(None)
        else:
            return sizes, t
        t = t.value_type


def _ragged_first(sizes: list[int | None]) -> tuple[int | None, ...]:
    """Make ragged also what is around something ragged, as a RaggedTensor wants it."""
    last = max((i for i, s in enumerate(sizes) if s is None), default=-1)
    return (*[None] * (last + 1), *sizes[last + 1 :])


def _declared(name: str, shape: Shape) -> tuple[int | None, ...]:
    dims = (shape,) if isinstance(shape, int) else tuple(None if d is None else int(d) for d in shape)
    ragged = sum(d is None for d in dims)
    if not dims or any(d is None for d in dims[ragged:]) or any(d is not None and d < 1 for d in dims):
        raise SchemaError(
            f"shapes gives {name!r} the shape {shape}; every dimension must be at least 1, or None, which comes first."
        )
    return dims


def _plan_sparse(f: pa.Field, shape: Shape | None, fill: Any) -> ColumnSpec:
    if not pa.types.is_struct(f.type) or {c.name for c in f.type} != {"type", "size", "indices", "values"}:
        raise SchemaError(f"sparse names {f.name!r}, which is no column of ML vectors but {f.type}.")
    if fill is not None:
        raise SchemaError(f"fill replaces nulls of scalar columns; {f.name!r} is a vector column.")
    if shape is None:
        raise SchemaError(
            f"The size of the vectors in {f.name!r} is not known.",
            hint=f"VectorAssembler notes it in the column; else declare it: shapes={{{f.name!r}: size}}.",
        )
    dims = _declared(f.name, shape)
    if len(dims) != 1 or dims[0] is None:
        raise SchemaError(f"shapes gives {f.name!r} the shape {shape}, but a sparse vector has one dimension.")
    return ColumnSpec(f.name, "float32", (dims[0],), sparse=True)


def arrow_schema(columns: Sequence[ColumnSpec]) -> pa.Schema:
    """Return the schema in which prepared batches travel."""
    return pa.schema([pa.field(c.name, c.arrow_type, nullable=False) for c in columns])
