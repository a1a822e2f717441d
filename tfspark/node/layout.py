"""Packs Arrow columns into few arrays that pass through ``tf.data``, and turns these into the tensors of ``main``.

All scalar columns of one dtype are packed into one array, so 40 columns cost little more than one. A ragged column is
passed as its flat values and row splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfspark.columns.arrays import column_arrays
from tfspark.columns.spec import ColumnSpec
from tfspark.errors import ConfigurationError


class Layout:
    """The place of each column in a chunk and in the elements of a dataset.

    Parameters
    ----------
    fed
        The columns of the feed.
    columns, label, weight
        As for `NodeContext.dataset`.

    Raises
    ------
    ConfigurationError
        If a column is not fed, or no column is left for the features.
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
        """Whether the arrays of a chunk can differ in their first dimension."""
        return any(c.ragged or c.sparse for c in self._alone)

    @property
    def signature(self) -> tuple[tf.TensorSpec, ...]:
        """Specs of the arrays of a chunk."""
        packs = [tf.TensorSpec([None, len(pack)], tf.as_dtype(pack[0].dtype)) for pack in self._packs]
        return (*packs, *(s for c in self._alone for s in _signature(c)))

    def arrays(self, table: pa.Table, *, copy: bool) -> tuple[np.ndarray, ...]:
        """Return the rows of a table as a chunk; pass `copy` if the memory of the table must not change.

        If an array that a ``PyFunc`` returns is aligned, TensorFlow uses its memory for the tensor. An operation may
        then write its result into the memory of its input.
        """
        packs = [_pack(table, pack) for pack in self._packs]
        return (*packs, *(a for c in self._alone for a in column_arrays(table.column(c.name), c, copy=copy)))

    def no_rows(self) -> tuple[np.ndarray, ...]:
        """Return a chunk without rows."""
        return tuple(np.zeros([0 if d is None else d for d in s.shape], s.dtype.as_numpy_dtype) for s in self.signature)

    def cut(self, arrays: Sequence[tf.Tensor], batch_size: int) -> tf.data.Dataset:
        """Cut a chunk into batches; the tensors of a batch are the arguments of `structure`."""
        rest = list(arrays)
        tensors: list[Any] = [rest.pop(0) for _ in self._packs]
        for c in self._alone:
            tensors += _ragged(c, rest)
        rows = tf.cast(rows_of(tensors[0]), tf.int64)
        starts = tf.data.Dataset.range(0, rows, batch_size)
        return starts.map(graph(lambda s: tuple(t[s : tf.minimum(s + batch_size, rows)] for t in tensors)))

    def tensors(self, table: pa.Table) -> Any:
        """Return the rows of a table as one element of a dataset."""
        rest = [tf.constant(a) for a in self.arrays(table, copy=False)]
        tensors: list[Any] = [rest.pop(0) for _ in self._packs]
        for c in self._alone:
            tensors += _ragged(c, rest)
        return self.structure(tensors)

    def structure(self, tensors: Sequence[Any]) -> Any:
        """Return an element of the dataset: a dict, or a tuple with label and weight."""
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
            names = {c.name, c.label} & {self._label, self._weight}
            if names:
                targets[str(names.pop())] = by_name[c.name]
            # The label may also be a feature, as in an autoencoder.
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
    """Return the selected columns, and those selected columns that are features."""
    by_name: dict[str, list[ColumnSpec]] = {}
    for c in fed:
        # A struct column can be selected by its own name or by the name of one of its fields.
        for name in dict.fromkeys((c.name, c.keys[0], c.label)):
            by_name.setdefault(name, []).append(c)
    targets = [n for n in (label, weight) if n is not None]
    named = {id(c) for n in targets for c in by_name.get(n, [])}
    names = list(columns) if columns is not None else [c.name for c in fed if id(c) not in named]
    unknown = sorted(set(names + targets) - set(by_name))
    if unknown:
        raise ConfigurationError(f"The columns {unknown} are not fed; the fed columns are {list(by_name)}.")
    if not names:
        raise ConfigurationError(
            f"No column is left for the features; the fed columns are {list(by_name)}.",
            hint="Feed more columns, or name the features in columns=[...].",
        )
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
    """Tell AutoGraph not to convert a function: the conversion is unnecessary and slow, and writes temporary files."""
    return tf.autograph.experimental.do_not_convert(function)


def rows_of(t: Any) -> tf.Tensor:
    """Return the number of rows of a tensor."""
    return t.nrows(out_type=tf.int32) if isinstance(t, tf.RaggedTensor) else tf.shape(t)[0]


def _ragged(c: ColumnSpec, rest: list[tf.Tensor]) -> list[Any]:
    """Take the arrays of a column from `rest` and return tensors that can be sliced by rows."""
    first = rest.pop(0)
    if c.sparse:
        indices, splits = rest.pop(0), rest.pop(0)
        return [tf.RaggedTensor.from_row_splits(t, splits, validate=False) for t in (first, indices)]
    splits = [rest.pop(0) for _ in range(c.ragged)]
    return [tf.RaggedTensor.from_nested_row_splits(first, splits, validate=False) if splits else first]


def _sparse(values: tf.RaggedTensor, indices: tf.RaggedTensor, size: int) -> tf.SparseTensor:
    where = tf.stack([values.value_rowids(), indices.values], axis=1)
    # Layers need the static size of the last dimension.
    shape = tf.stack([values.nrows(), tf.constant(size, tf.int64)])
    return tf.SparseTensor(where, values.values, tf.ensure_shape(shape, [2]))
