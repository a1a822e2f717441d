"""From the user's DataFrame to the frames that are fed: columns, weights, and rows set aside for validation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.driver.sources import quoted
from tfspark.errors import ConfigurationError, SchemaError
from tfspark.schema import Shape

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

WEIGHT = "tfspark_weight"
"""Column of the weights that are made of weightCol and classWeight; 1 on average."""

_SPLIT = "tfspark_validates"


@dataclass(frozen=True)
class Frames:
    """Rows to train on, and rows to validate with if there are any."""

    training: DataFrame
    validation: DataFrame | None


def require_columns(df: DataFrame, wanted: Mapping[str, Sequence[str]]) -> None:
    """Refuse columns that do not exist.

    Parameters
    ----------
    wanted
        Names of columns by the Param that names them.

    Raises
    ------
    SchemaError
        If there is no such column.
    """
    for param, columns in wanted.items():
        missing = [c for c in columns if c not in df.columns]
        if missing:
            raise SchemaError(f"{param} names {missing}, which are no columns.", hint=f"There are {df.columns}.")


@contextmanager
def split_frames(
    df: DataFrame, columns: Sequence[str], indicator: str | None, share: float, seed: int
) -> Iterator[Frames]:
    """Set rows aside for validation: those that a column marks, or a share of all.

    A random share is drawn once, and kept as long as the block lasts: Spark would otherwise draw it anew for each of
    the two frames, and need not come to the same result.
    """
    from pyspark.sql import functions as F

    kept = [F.col(quoted(c)) for c in dict.fromkeys(columns)]
    if indicator is not None:
        validates = F.coalesce(F.col(quoted(indicator)).cast("boolean"), F.lit(False))
        yield Frames(df.where(~validates).select(*kept), df.where(validates).select(*kept))
    elif share > 0:
        drawn = df.select(*kept, (F.rand(seed) < share).alias(_SPLIT)).persist()
        try:
            validates = F.col(_SPLIT)
            yield Frames(drawn.where(~validates).select(*kept), drawn.where(validates).select(*kept))
        finally:
            drawn.unpersist()
    else:
        yield Frames(df.select(*kept), None)


def with_weights(df: DataFrame, weight: str | None, label: str = "", class_weight: Any = None) -> DataFrame:
    """Add the column `WEIGHT`: the row's own weight times that of its label, divided by the average of all rows.

    Keras divides the weighted losses of a batch by its rows, so that a row weighs the same whatever batch it falls
    into; with an average of 1 that gives, over all batches, the weighted mean.

    Raises
    ------
    SchemaError
        If a row has no weight.
    ConfigurationError
        If the weights do not add up to more than 0.
    """
    from pyspark.sql import functions as F

    own: Column = F.col(quoted(weight)).cast("double") if weight else F.lit(1.0)
    if class_weight == "balanced":
        class_weight = balanced(df, own, label)
    of_label: Column = F.lit(1.0)
    for value, factor in (class_weight or {}).items():
        of_label = F.when(F.col(quoted(label)).cast("double") == value, F.lit(factor)).otherwise(of_label)
    weighed = own * of_label
    found = df.agg(F.avg(weighed), F.count(F.when(own.isNull(), 1)), F.count("*")).first()
    assert found is not None
    average, missing, rows = found
    if missing:
        raise SchemaError(f"{missing} of {rows} rows have no weight: column {weight!r} is null there.")
    if rows and not average > 0:
        raise ConfigurationError(f"The weights of the rows average {average}: there is nothing to learn from them.")
    return df.withColumn(WEIGHT, (weighed / F.lit(average or 1.0)).cast("float"))


def balanced(df: DataFrame, weight: Column, label: str) -> dict[float, float]:
    """Return the weights with which each label weighs the same in all, and a row weighs 1 on average."""
    from pyspark.sql import functions as F

    counts = df.groupBy(F.col(quoted(label)).cast("double").alias("label")).agg(F.sum(weight).alias("weight")).collect()
    total = sum(r["weight"] or 0.0 for r in counts)
    return {r["label"]: total / (len(counts) * r["weight"]) for r in counts if r["weight"]}


def shapes_of(df: DataFrame, columns: Sequence[str], declared: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shape of one row for each array or vector column, of the first row where nothing else tells it.

    Raises
    ------
    ConfigurationError
        If a shape is declared for a column that is not fed.
    SchemaError
        If the first row does not tell it.
    """
    unknown = sorted(set(declared) - set(columns))
    if unknown:
        raise ConfigurationError(f"shapes names {unknown}, which are not fed.", hint=f"These are: {list(columns)}.")
    fields = {f.name: f for f in df.schema.fields}
    wanted = []
    for column in columns:
        kind, metadata = fields[column].dataType.typeName(), fields[column].metadata
        known = column in declared or metadata.get("ml_attr", {}).get("num_attrs")
        if not known and kind in ("array", "vectorudt"):
            wanted.append(column)
    if not wanted:
        return dict(declared)
    row = df.select(*[quoted(c) for c in wanted]).first()
    # Without rows there is nothing to know: feeding says that there are none.
    found = {c: _shape_of(c, row[c]) for c in wanted} if row is not None else {}
    return {**found, **declared}


def _shape_of(column: str, value: Any) -> tuple[int, ...]:
    if value is None:
        raise SchemaError(f"The first row of column {column!r} is null.", hint="Drop or fill nulls before fit.")
    dims: list[int] = []
    while hasattr(value, "__len__") and not isinstance(value, (str, bytes, bytearray)):
        dims.append(len(value))
        value = value[0] if len(value) else None
    if math.prod(dims) == 0:
        raise SchemaError(
            f"The first row of column {column!r} holds an empty array.",
            hint=f"Say what shape rows have: shapes={{{column!r}: [None]}} if their lengths vary.",
        )
    return tuple(dims)
