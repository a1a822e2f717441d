"""The work of a prediction task: take Arrow columns, run the model on batches of one size, return Arrow columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from tfspark.columns.arrays import to_arrow
from tfspark.columns.packed_arrays import unpacked_array, unpacked_schema
from tfspark.columns.prepare import null_error
from tfspark.columns.rows import RowName, in_partition
from tfspark.errors import SchemaError, all_of
from tfspark.prediction.inputs import InputRule
from tfspark.prediction.loading import function_of
from tfspark.prediction.plan import PredictionPlan
from tfspark.prediction.tensors import tensors_of


def rebatched(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """Cut and join batches so that all have `size` rows, except the last, which may have fewer."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        start = 0
        while rows + batch.num_rows - start >= size:
            taken = size - rows
            yield _joined([*waiting, batch.slice(start, taken)])
            waiting, rows, start = [], 0, start + taken
        if start < batch.num_rows:
            waiting.append(batch.slice(start))
            rows += batch.num_rows - start
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    (joined,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined


class Predictor:
    """Calls the model of a plan; each task makes one, but the tasks of a process share the model itself."""

    def __init__(self, plan: PredictionPlan, schema: pa.Schema) -> None:
        self._plan = plan
        self._rules = plan.rules(unpacked_schema(schema, plan.packed))
        self._function = function_of(plan.call)
        self._types = plan.arrow_types
        self._partition = partition_of_task()
        self._rows = 0

    def __call__(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """Return the kept outputs for the rows of a batch; batches must come in the order of the partition.

        Raises
        ------
        SchemaError
            If values do not fit their inputs, or an output does not have one value per row.
        """
        row = in_partition(self._partition, self._rows)
        self._rows += batch.num_rows
        feeds: dict[str, Any] = {}
        problems = []
        rules = {r.column: r for r in self._rules}
        nulls = {c: batch.column(c) for c, r in rules.items() if r.fill is None and batch.column(c).null_count}
        if nulls:
            problems.append(null_error(nulls, row, self._plan.hint_for_nulls(list(nulls))))
        for rule in self._rules:
            if rule.column in nulls:
                continue
            try:
                feeds.update(self._feeds(batch.column(rule.column), rule, row))
            except SchemaError as e:
                problems.append(e)
        if problems:
            raise all_of(problems)
        produced = self._function(**feeds)
        return [to_arrow(produced[n], batch.num_rows, n, t) for n, t in self._types.items()]

    def _feeds(self, column: pa.Array, rule: InputRule, row: RowName) -> dict[str, Any]:
        packed = self._plan.packed.get(rule.column)
        if packed is not None:
            column = unpacked_array(column, packed, rule.column, row)
        names = [rule.name, *self._plan.signature.splits_of(rule.name)]
        tensors = tensors_of(column, rule, row, self._plan.hint_for_nulls([rule.column]))
        return dict(zip(names, tensors, strict=True))


def partition_of_task() -> int:
    """Return the number of this task's partition; 0 outside a task."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return 0 if context is None else context.partitionId()
