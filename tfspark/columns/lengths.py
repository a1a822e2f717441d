"""The lengths of arrays in open columns: read them from a batch, settle shapes by them, find other lengths later.

All functions take prepared batches (`tfspark/columns/prepare.py`). This module imports neither Spark nor TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.columns.spec import ColumnSpec, ragged_first
from tfspark.errors import SchemaError

Lengths = tuple[int | None, ...]
"""The length of all arrays at each ragged level of a column, outermost first; ``None`` where they vary."""


@dataclass(frozen=True)
class OtherLength:
    """An array whose length differs from the length of the arrays before it.

    Attributes
    ----------
    column, label
        Name of its column, and the name that users know it by.
    level
        Depth of the array; 0 for an array that is a whole row.
    expected, found
        Length of the arrays before it, and its own length.
    """

    column: str
    label: str
    level: int
    expected: int
    found: int

    def error(self) -> SchemaError:
        """Return the error of a feed that makes the column dense."""
        where = "" if self.level == 0 else f" at depth {self.level + 1}"
        return SchemaError(
            f"Column {self.label!r} has arrays of length {self.expected} in the first rows{where}, "
            f"but a later row has one of length {self.found}.",
            hint=f"Pass shapes={{{self.label!r}: None}} to make it a RaggedTensor, or make all arrays of one length.",
        )


def lengths_of(batch: pa.RecordBatch, columns: Sequence[ColumnSpec]) -> dict[str, Lengths]:
    """Return the lengths of the arrays of each open column in a batch."""
    return {c.name: _lengths(batch.column(c.name), c.ragged) for c in columns if c.open}


def _lengths(a: pa.Array, levels: int) -> Lengths:
    out: list[int | None] = []
    for _ in range(levels):
        extent = pc.min_max(pc.list_value_length(a)).as_py()
        # Length 0 counts as variable: a dimension of 0 holds no values, and rows that are not empty may follow.
        out.append(extent["min"] if extent["min"] and extent["min"] == extent["max"] else None)
        a = a.flatten()
    return tuple(out)


def other_length(
    batch: pa.RecordBatch, columns: Sequence[ColumnSpec], expected: Mapping[str, Lengths]
) -> OtherLength | None:
    """Return the first array of a batch whose length is not the expected one."""
    for c in columns:
        lengths = expected.get(c.name, ())
        a = batch.column(c.name)
        for level, length in enumerate(lengths):
            if length is not None:
                found = pc.list_value_length(a).to_numpy(zero_copy_only=False)
                others = np.flatnonzero(found != length)
                if len(others):
                    return OtherLength(c.name, c.label, level, length, int(found[others[0]]))
            a = a.flatten()
    return None


def settled(c: ColumnSpec, seen: Sequence[Lengths]) -> ColumnSpec:
    """Return an open column with the shape that follows from the lengths seen.

    A dimension is dense if it and all dimensions inside it have one length everywhere.
    """
    dims = ragged_first([of_one.pop() if len(of_one := set(level)) == 1 else None for level in zip(*seen, strict=True)])
    ragged = sum(d is None for d in dims) if seen else c.ragged
    dense = tuple(d for d in dims if d is not None)
    return replace(c, shape=(*dense, *c.shape), ragged=ragged, open=False)


def expected_lengths(open_: Sequence[ColumnSpec], settled_: Sequence[ColumnSpec]) -> dict[str, Lengths]:
    """Return the lengths that arrays of open columns must have after the columns are settled."""
    return {
        before.name: (*[None] * after.ragged, *after.shape[: before.ragged - after.ragged])
        for before, after in zip(open_, settled_, strict=True)
        if before.open
    }
