"""Batch inference with a SavedModel that travels with the task: `tfspark.predict` without a directory to share."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tfspark.schema import Shape

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

    from tfspark.ml.plan import TrainedModel

SIGNATURE = "serving_default"

_directories: dict[str, str] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class PackedModel:
    """A SavedModel as an archive; `key` is what a process knows it by."""

    archive: bytes = field(repr=False)
    key: str

    @classmethod
    def of(cls, archive: bytes) -> PackedModel:
        """Name an archive by what it holds."""
        return cls(archive, hashlib.sha256(archive).hexdigest())

    def load(self) -> str:
        """Load the model into this process, once; returns the directory under whose name it is known."""
        from tfspark.inference import _load
        from tfspark.ml.archive import unpack

        with _lock:
            if self.key not in _directories:
                with tempfile.TemporaryDirectory(prefix="tfspark-model-") as directory:
                    unpack(self.archive, directory)
                    _load(directory, SIGNATURE)
                _directories[self.key] = directory
            return _directories[self.key]


def score(
    df: DataFrame,
    model: TrainedModel,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    batch_size: int,
    shapes: Mapping[str, Shape],
) -> DataFrame:
    """Add the outputs of a model to a DataFrame, lazily.

    Parameters
    ----------
    inputs
        Input of the model to the column that becomes it.
    outputs
        Output of the model to the column that it becomes.
    shapes
        Shape of one row for array columns whose inputs do not tell it.

    Raises
    ------
    SchemaError
        If a column has no tensor form.
    """
    from pyspark.sql.types import StructType

    from tfspark.driver.sources import widen
    from tfspark.inference import _spark_type
    from tfspark.schema import plan_columns

    columns = list(dict.fromkeys(inputs.values()))
    # Vectors go to Python as arrays, and stay vectors beside them.
    wide = widen(df, columns, (), ())
    rows = {inputs[t.name]: t.shape for t in model.inputs}
    told = {c: s for c, s in rows.items() if s and None not in s and _is_list(wide.schema.field(c).type)}
    specs = plan_columns(wide.schema, {**wide.shapes, **told, **shapes})
    by_name = {t.name: t for t in model.outputs}
    schema = StructType(list(df.schema.fields))
    for name, column in outputs.items():
        schema = schema.add(column, _spark_type(name, by_name[name].dtype, by_name[name].shape))
    keys = {t.name: t.key for t in (*model.inputs, *model.outputs)}
    fed = {keys[name]: c for name, c in inputs.items()}
    wanted = {keys[name]: c for name, c in outputs.items()}
    packed, sources, own = PackedModel.of(model.saved_model), wide.sources, len(df.columns)

    def apply(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        from tfspark.inference import predict_batches

        for batch in batches:
            if not batch.num_rows:
                continue
            directory = packed.load()
            arrays = pa.RecordBatch.from_arrays([batch.column(sources[c]) for c in columns], names=columns)
            start = 0
            for scored in predict_batches(iter([arrays]), directory, SIGNATURE, fed, specs, wanted, batch_size):
                kept = batch.slice(start, scored.num_rows).columns[:own]
                yield pa.RecordBatch.from_arrays([*kept, *scored.columns[len(columns) :]], names=schema.names)
                start += scored.num_rows

    return wide.df.mapInArrow(apply, schema)


def _is_list(t: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(t) or pa.types.is_large_list(t))
