"""From Arrow columns to tensors: which dtype and shape a column has, and whether a batch keeps the rule.

`tfspark/columns/types.py` has the dtypes. This module imports neither Spark nor TensorFlow: the driver plans with it,
feed tasks prepare batches by it (`tfspark/columns/prepare.py`), and nodes read tensor specs from it.

The rules
---------
- Numbers and booleans keep their type. Strings and binary become ``tf.string``. A date becomes an ``int32``, the days
  since 1970-01-01; a timestamp an ``int64``, the microseconds since 1970-01-01 UTC; a decimal a ``float64``.
- An array column, also of arrays of arrays, has the shape that is declared for it; ``None`` makes it a
  ``RaggedTensor``. Without a declared shape it is open: a feed settles it by the lengths of the first rows
  (`tfspark/columns/lengths.py`); where nothing settles it, it is ragged.
- A struct column becomes a dict of its fields' tensors. An ML vector becomes a dense array, or a ``SparseTensor`` if
  the caller lists it in ``sparse``.
- A null is an error that names the column, unless the caller gives a fill value or asks for a mask column. A null
  inside an array is an error.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from tfspark.columns.types import dtype_of, is_list, list_levels
from tfspark.errors import SchemaError

Shape = Sequence[int | None] | int | None
"""Shape of one row. A dimension of ``None`` may have any length; ``None`` instead of a shape means that all may."""

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
        Number of dimensions of any length; they come before those of `shape`.
    sparse
        Whether it becomes a ``SparseTensor`` with rows of the length in `shape`.
    levels
        Depth of the arrays in which Spark sends the values of `shape`; 1 if they are flat.
    fill
        Value that replaces nulls; ``None`` makes a null an error.
    path
        Keys of the tensor in the nested dicts of a dataset; ``()`` for its name alone.
    open
        Whether the first rows decide its shape: each `ragged` dimension that turns out to have one length becomes
        dense. The column is sent as a ragged one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    ragged: int = 0
    sparse: bool = False
    levels: int = 0
    fill: Any = None
    path: tuple[str, ...] = ()
    open: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the tensor in the nested dicts of a dataset."""
        return self.path or (self.name,)

    @property
    def label(self) -> str:
        """The name that users know it by: a field of a struct is ``outer.inner``."""
        return ".".join(self.keys)

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type in which the column is sent and kept in the spool."""
        value = pa.binary() if self.dtype == "string" else pa.type_for_alias(self.dtype)
        if self.sparse:
            return pa.struct([("indices", pa.list_(pa.int32())), ("values", pa.list_(value))])
        t = pa.list_(value, math.prod(self.shape)) if self.shape else value
        for _ in range(self.ragged):
            t = pa.list_(t)
        return t

    @property
    def on_the_wire(self) -> ColumnSpec:
        """This column without the attributes that only the preparation of rows needs."""
        return replace(self, fill=None, levels=0)


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
        Shape of one row of array columns; ``None`` for dimensions of any length. An array column without an entry is
        open if its type does not fix all lengths.
    fill
        Value that replaces nulls, by column.
    sparse
        Columns of ML vectors that become sparse tensors.

    Raises
    ------
    SchemaError
        If a type cannot become a tensor, or `shapes`, `fill` or `sparse` do not fit the columns.
    """
    shapes, fill = dict(shapes or {}), dict(fill or {})
    for what, given in (("shapes", shapes), ("fill", fill), ("sparse", sparse)):
        unknown = sorted(set(given) - set(schema.names))
        if unknown:
            raise SchemaError(
                f"{what} refers to unknown columns {unknown}; the columns are {[_label_of(f) for f in schema]}."
            )
    if twice := repeated([_label_of(f) for f in schema]):
        raise SchemaError(f"Column names must be unique, but {twice} occur more than once.")
    scalars = [_label_of(f) for f in schema if f.name in shapes and f.name not in sparse and not is_list(f.type)]
    if scalars:
        raise SchemaError(f"shapes refers to {scalars}, which are not array columns.", hint="Leave them out of shapes.")
    specs = (_plan_column(f, shapes.get(f.name), fill.get(f.name), f.name in sparse) for f in schema)
    return tuple(
        replace(s, path=_path_of(f), open=s.ragged > 0 and f.name not in shapes)
        for f, s in zip(schema, specs, strict=True)
    )


def with_path(f: pa.Field, path: Sequence[str]) -> pa.Field:
    """Return the field with metadata that gives the keys of its tensor in nested dicts."""
    return f.with_metadata({_PATH: json.dumps(list(path)).encode()})


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once."""
    return sorted(name for name, n in Counter(names).items() if n > 1)


def _label_of(f: pa.Field) -> str:
    return ".".join(_path_of(f)) or str(f.name)


def _path_of(f: pa.Field) -> tuple[str, ...]:
    return tuple(json.loads((f.metadata or {}).get(_PATH, b"[]")))


def _plan_column(f: pa.Field, shape: Shape | None, fill: Any, sparse: bool) -> ColumnSpec:
    if sparse:
        return _plan_sparse(f, shape, fill)
    sizes, leaf = list_levels(f.type)
    dtype = dtype_of(leaf)
    if dtype is None:
        raise SchemaError(
            f"Column {_label_of(f)!r} has type {f.type}, which cannot become a tensor.",
            hint="Cast it, select its fields, or drop it: tensors hold numbers, booleans, strings, binary, dates, "
            "timestamps, decimals, and arrays of these.",
        )
    if sizes and fill is not None:
        raise SchemaError(
            f"fill works for scalar columns; {_label_of(f)!r} is an array column.",
            hint="Replace its nulls in Spark: F.coalesce(column, F.array(...)), F.transform for nulls within it.",
        )
    if not sizes:
        return ColumnSpec(f.name, dtype, fill=fill)
    dims = _declared(_label_of(f), shape) if shape is not None else ragged_first(sizes)
    ragged = sum(d is None for d in dims)
    dense = tuple(d for d in dims[ragged:] if d is not None)
    if len(dims) != len(sizes) and len(sizes) - ragged != 1:
        raise SchemaError(
            f"shapes gives {_label_of(f)!r} the shape {shape}, but it is an array of depth {len(sizes)}.",
            hint="Give one dimension for each depth; None where lengths vary.",
        )
    return ColumnSpec(f.name, dtype, dense, ragged, levels=len(sizes) - ragged)


def ragged_first(sizes: Sequence[int | None]) -> tuple[int | None, ...]:
    """Return the sizes with all dimensions outside a ragged one made ragged too, as a RaggedTensor requires."""
    last = max((i for i, s in enumerate(sizes) if s is None), default=-1)
    return (*[None] * (last + 1), *sizes[last + 1 :])


def _declared(name: str, shape: Sequence[int | None] | int) -> tuple[int | None, ...]:
    dims = (shape,) if isinstance(shape, int) else tuple(None if d is None else int(d) for d in shape)
    ragged = sum(d is None for d in dims)
    if not dims or any(d is None for d in dims[ragged:]) or any(d is not None and d < 1 for d in dims):
        raise SchemaError(
            f"shapes gives {name!r} the shape {shape}; every dimension must be >= 1 or None, and None must come first."
        )
    return dims


def _plan_sparse(f: pa.Field, shape: Shape | None, fill: Any) -> ColumnSpec:
    if not pa.types.is_struct(f.type) or {c.name for c in f.type} != {"type", "size", "indices", "values"}:
        raise SchemaError(f"sparse works for columns of ML vectors; {_label_of(f)!r} has type {f.type}.")
    if fill is not None:
        raise SchemaError(
            f"fill works for scalar columns; {_label_of(f)!r} is a vector column.",
            hint="Replace its nulls in Spark, or drop these rows: df.dropna().",
        )
    if shape is None:
        raise SchemaError(
            f"The size of the vectors in {_label_of(f)!r} is not known.",
            hint=f"VectorAssembler notes it in the column; else declare it: shapes={{{_label_of(f)!r}: size}}.",
        )
    dims = _declared(_label_of(f), shape)
    if len(dims) != 1 or dims[0] is None:
        raise SchemaError(f"shapes gives {_label_of(f)!r} the shape {shape}, but a sparse vector has one dimension.")
    return ColumnSpec(f.name, "float32", (dims[0],), sparse=True)


def arrow_schema(columns: Sequence[ColumnSpec]) -> pa.Schema:
    """Return the Arrow schema of prepared batches."""
    return pa.schema([pa.field(c.name, c.arrow_type, nullable=False) for c in columns])
