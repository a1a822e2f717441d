"""How columns of Arrow travel through ``tf.data`` as few arrays, and become the tensors that ``main`` sees.

Scalar columns of one dtype travel side by side in one array: 40 columns cost what a few cost. A ragged column
travels as its flat values and row splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfspark.arrays import column_arrays
from tfspark.errors import ConfigurationError
from tfspark.schema import ColumnSpec


class Layout:
    """Where each column is in a chunk, and in what a dataset gives.

    Parameters
    ----------
    fed
        The columns of the feed.
    columns, label, weight
        As for `NodeContext.dataset`.

    Raises
    ------
    ConfigurationError
        If a column is not among those fed.
    """

    def __init__(
        self, fed: Sequence[ColumnSpec], columns: Sequence[str] | None, label: str | None, weight: str | None
    ) -> None:
        self._label, self._weight = label, weight
        self._kept, self._features = _select(fed, columns, label, weight)
        scalars: dict[str, list[ColumnSpec]] = {}
        for c in self._kept:
            if not (c.shape or c.ragged or c.sparse):
                scalars.setdefault(c.dtype, []).append(c)
        self._packs = [pack for pack in scalars.values() if len(pack) > 1]
        packed = {c.name for pack in self._packs for c in pack}
        self._alone = [c for c in self._kept if c.name not in packed]

    @property
    def varies(self) -> bool:
        """Whether arrays of a chunk differ in their first dimension."""
        return any(c.ragged or c.sparse for c in self._alone)

    @property
    def signature(self) -> tuple[tf.TensorSpec, ...]:
        """Specs of the arrays of a chunk."""
        packs = [tf.TensorSpec([None, len(pack)], tf.as_dtype(pack[0].dtype)) for pack in self._packs]
        return (*packs, *(s for c in self._alone for s in _signature(c)))

    def arrays(self, table: pa.Table, *, copy: bool) -> tuple[np.ndarray, ...]:
        """Return the rows of a table as a chunk; `copy` if the table's memory must stay as it is.

        TensorFlow takes the memory of arrays that a ``PyFunc`` returns, if it is aligned, for a tensor's own: an
        operation whose input nobody else needs may write its result over it.
        """
        packs = [_pack(table, pack) for pack in self._packs]
        return (*packs, *(a for c in self._alone for a in column_arrays(table.column(c.name), c, copy=copy)))

    def no_rows(self) -> tuple[np.ndarray, ...]:
        """Return a chunk without rows."""
        return tuple(np.zeros([0 if d is None else d for d in s.shape], s.dtype.as_numpy_dtype) for s in self.signature)

    def cut(self, arrays: Sequence[tf.Tensor], batch_size: int) -> tf.data.Dataset:
        """Cut a chunk into batches of the tensors that `structure` takes."""
        rest = list(arrays)
        tensors: list[Any] = [rest.pop(0) for _ in self._packs]
        for c in self._alone:
            tensors += _ragged(c, rest)
        rows = tf.cast(rows_of(tensors[0]), tf.int64)
        starts = tf.data.Dataset.range(0, rows, batch_size)
        return starts.map(graph(lambda s: tuple(t[s : tf.minimum(s + batch_size, rows)] for t in tensors)))

    def tensors(self, table: pa.Table) -> Any:
        """Return the rows of a table as what a dataset gives, at once."""
        rest = [tf.constant(a) for a in self.arrays(table, copy=False)]
        tensors: list[Any] = [rest.pop(0) for _ in self._packs]
        for c in self._alone:
            tensors += _ragged(c, rest)
        return self.structure(tensors)

    def structure(self, tensors: Sequence[Any]) -> Any:
        """Return what the dataset gives: a dict, or a tuple with label and weight."""
        rest = list(tensors)
        by_name: dict[str, Any] = {}
        for pack in self._packs:
            by_name |= zip((c.name for c in pack), tf.unstack(rest.pop(0), axis=1), strict=True)
        for c in self._alone:
            values = rest.pop(0)
            by_name[c.name] = _sparse(values, rest.pop(0), c.shape[0]) if c.sparse else values
        features: dict[str, Any] = {}
        targets: dict[str, Any] = {}
        for c in self._kept:
            names = ({c.name, c.keys[0]} if len(c.keys) == 1 else {c.name}) & {self._label, self._weight}
            if names:
                targets[str(names.pop())] = by_name[c.name]
            # An autoencoder's features are its labels.
            if c not in self._features:
                continue
            level = features
            for key in c.keys[:-1]:
                level = level.setdefault(key, {})
            level[c.keys[-1]] = by_name[c.name]
        if not targets:
            return features
        return (features, *[targets[n] for n in (self._label, self._weight) if n is not None])


def _select(
    fed: Sequence[ColumnSpec], columns: Sequence[str] | None, label: str | None, weight: str | None
) -> tuple[list[ColumnSpec], set[ColumnSpec]]:
    """Return all columns that are wanted, and those of them that are features."""
    by_name: dict[str, list[ColumnSpec]] = {}
    for c in fed:
        # A struct column is asked for by its own name or by that of one of its fields.
        for name in dict.fromkeys((c.name, c.keys[0])):
            by_name.setdefault(name, []).append(c)
    targets = [n for n in (label, weight) if n is not None]
    named = {id(c) for n in targets for c in by_name.get(n, [])}
    names = list(columns) if columns is not None else [c.name for c in fed if id(c) not in named]
    unknown = sorted(set(names + targets) - set(by_name))
    if unknown:
        raise ConfigurationError(f"No column named {unknown} is fed.", hint=f"The columns are {list(by_name)}.")
    if not names:
        raise ConfigurationError("No column is left for the features.", hint="Name some in columns=.")
    kept = dict.fromkeys(c for n in names + targets for c in by_name[n])
    return list(kept), {c for n in names for c in by_name[n]}


def _pack(table: pa.Table, pack: Sequence[ColumnSpec]) -> np.ndarray:
    columns = [column_arrays(table.column(c.name), c)[0] for c in pack]
    packed = np.empty((len(columns[0]), len(columns)), columns[0].dtype)
    for i, values in enumerate(columns):
        packed[:, i] = values
    return packed


def _signature(c: ColumnSpec) -> list[tf.TensorSpec]:
    dtype = tf.as_dtype(c.dtype)
    splits = tf.TensorSpec([None], tf.int64)
    if c.sparse:
        return [tf.TensorSpec([None], dtype), splits, splits]
    if c.ragged:
        return [tf.TensorSpec([None, *c.shape], dtype), *[splits] * c.ragged]
    return [tf.TensorSpec([None, *c.shape], dtype)]


def graph(function: Any) -> Any:
    """Mark a function as graph code already: AutoGraph would only slow the start and write temporary files."""
    return tf.autograph.experimental.do_not_convert(function)


def rows_of(t: Any) -> tf.Tensor:
    """Return the number of rows of a tensor."""
    return t.nrows(out_type=tf.int32) if isinstance(t, tf.RaggedTensor) else tf.shape(t)[0]


def _ragged(c: ColumnSpec, rest: list[tf.Tensor]) -> list[Any]:
    """Take a column's arrays from `rest` and return tensors that can be cut by rows."""
    first = rest.pop(0)
    if c.sparse:
        indices, splits = rest.pop(0), rest.pop(0)
        return [tf.RaggedTensor.from_row_splits(t, splits, validate=False) for t in (first, indices)]
    splits = [rest.pop(0) for _ in range(c.ragged)]
    return [tf.RaggedTensor.from_nested_row_splits(first, splits, validate=False) if splits else first]


def _sparse(values: tf.RaggedTensor, indices: tf.RaggedTensor, size: int) -> tf.SparseTensor:
    where = tf.stack([values.value_rowids(), indices.values], axis=1)
    # Known as far as it can be: layers look at the last dimension.
    shape = tf.stack([values.nrows(), tf.constant(size, tf.int64)])
    return tf.SparseTensor(where, values.values, tf.ensure_shape(shape, [2]))
