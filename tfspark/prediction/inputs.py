"""How a column becomes an input: its dtype and shape, its padding, and the values that replace nulls.

When the driver plans, it makes an `InputRule` for each input; `tfspark.prediction.tensors` makes tensors by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tfspark.columns.spec import plan_columns
from tfspark.columns.types import list_levels
from tfspark.errors import SchemaError
from tfspark.saved_models.signatures import TensorInfo

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class InputRule:
    """How a column becomes an input.

    Attributes
    ----------
    name, column
        Name of the input, and name of the column.
    dtype
        Name of the input's dtype.
    dims
        Shape of one row, with ``None`` for dimensions of any length; ``None`` if the number of dimensions is unknown.
    ragged
        Number of leading dimensions that are passed as row splits, to a signature that takes a ``RaggedTensor``.
    depth
        Depth of the column's arrays; 0 for single values.
    kind
        Arrow type of the column's values.
    fill
        Value that replaces nulls; ``None`` makes a null an error.
    padding
        Value with which arrays are padded.
    """

    name: str
    column: str
    dtype: str
    dims: Dims | None
    ragged: int
    depth: int
    kind: pa.DataType
    fill: Any = None
    padding: Any = None

    @property
    def fixed(self) -> tuple[int, ...]:
        """The shape of a row if it is completely known, else ``()``."""
        dims = self.dims or ()
        return () if self.ragged or None in dims else tuple(d for d in dims if d is not None)

    @property
    def fills_values(self) -> bool:
        """Whether nulls inside arrays are replaced."""
        return self.depth > 0 and self.fill is not None and not isinstance(self.fill, (list, tuple, np.ndarray))


def rule_of(
    name: str, info: TensorInfo, ragged: int, field: pa.Field, shape: Any = None, fill: Any = None, padding: Any = None
) -> InputRule:
    """Decide how a column becomes an input.

    Parameters
    ----------
    name, info, ragged
        Name, tensor and number of row splits of the input; with row splits, `info` describes the flat values.
    field
        Arrow field of the column.
    shape
        Shape of a row, for dimensions that the signature leaves open.

    Raises
    ------
    SchemaError
        If the column cannot become this input.
    """
    if pa.types.is_struct(field.type):
        raise SchemaError(
            f"Column {field.name!r} holds structs, and the input {name!r} takes {info}.",
            hint=f"Name one of the fields: inputs={{{name!r}: {f'{field.name}.{field.type[0].name}'!r}}}.",
        )
    sizes, kind = list_levels(field.type)
    depth = len(sizes)
    (spec,) = plan_columns(pa.schema([pa.field(field.name, kind)]))
    if (info.dtype == "string") != (spec.dtype == "string"):
        raise SchemaError(
            f"Input {name!r} takes {info.dtype}, but the column {field.name!r} holds {spec.dtype}.",
            hint="Cast the column, or map another one: inputs={input: column}.",
        )
    dims = info.row_shape
    if dims is not None and ragged:
        dims = (*[None] * ragged, *dims)
    if shape is not None:
        dims = _narrowed(name, field.name, dims, shape, depth)
    _check_depth(name, field.name, info, dims, depth, ragged)
    _check_fill(field.name, fill, depth)
    return InputRule(name, field.name, info.dtype, dims, ragged, depth, kind, fill, padding)


def _narrowed(name: str, column: str, dims: Dims | None, shape: Any, depth: int) -> Dims:
    """Return the shape that the caller declares; raise an error if it contradicts the signature."""
    declared: Dims = (shape,) if isinstance(shape, int) else tuple(shape)
    if not depth:
        raise SchemaError(f"shapes gives {column!r} the shape {shape}, but it is not an array column.")
    if any(isinstance(d, bool) or not (d is None or (isinstance(d, int) and d > 0)) for d in declared):
        raise SchemaError(f"shapes gives {column!r} the shape {shape}; every dimension must be >= 1 or None.")
    if dims is None:
        return declared
    if math.prod(d or 1 for d in declared) == math.prod(d or 1 for d in dims) and None not in (*declared, *dims):
        return dims
    if len(declared) < len(dims):
        declared = (*declared, *[1 if d in (1, None) else d for d in dims[len(declared) :]])
    if len(declared) != len(dims) or any(a and b and a != b for a, b in zip(declared, dims, strict=True)):
        raise SchemaError(
            f"shapes gives {column!r} the shape {shape}, but the input {name!r} takes rows of shape {shown(dims)}."
        )
    return tuple(b or a for a, b in zip(declared, dims, strict=True))


def _check_depth(name: str, column: str, info: TensorInfo, dims: Dims | None, depth: int, ragged: int) -> None:
    """Raise an error for arrays if the input takes single values, for the reverse case, or if the depth is wrong."""
    if dims is None:
        return
    holds = "single values" if not depth else "arrays" if depth == 1 else f"arrays of depth {depth}"
    rest = dims[depth:]
    flat_into = depth > ragged and all(d is not None for d in rest)
    if depth > len(dims) or depth < ragged or not (all(d in (1, None) for d in rest) or flat_into):
        raise SchemaError(
            f"Input {name!r} takes {info.dtype} in rows of shape {shown(dims)}, but the column {column!r} holds "
            f"{holds}.",
            hint="Map another column: inputs={input: column}; or make arrays of that shape in Spark.",
        )


def _check_fill(column: str, fill: Any, depth: int) -> None:
    if isinstance(fill, (list, tuple, np.ndarray)) and not depth:
        raise SchemaError(f"fill gives {column!r} an array, {fill!r}, but it is not an array column.")


def shown(dims: Dims | None) -> str:
    """Return a shape as text for messages, with ``?`` for dimensions of any length."""
    if dims is None:
        return "any"
    inner = ", ".join("?" if d is None else str(d) for d in dims)
    return f"({inner},)" if len(dims) == 1 else f"({inner})"
